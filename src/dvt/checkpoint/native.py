"""Checkpoints of this package: saving that leaves a whole file or none, reading that says what is wrong with one.

`.ckpt`, the default, is MindSpore's; `.safetensors`, alone or in a folder with `config.json` and a model card, is how
people pass models on. All hold the same: parameters by name, and metadata as a JSON text (docs/files.md).

In a folder the weights have a copy of `config.json` and take their place first. It counts only for the weights whose
digest it names; so whenever a save is interrupted, the folder is the earlier model or the new one.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dvt.checkpoint.card import MARK, card
from dvt.checkpoint.format import (
    FORMAT,
    METADATA_KEY,
    WEIGHTS_FILE,
    Checkpoint,
    check_weights,
    kind_of,
    load_weights,
    metadata_text,
    read_ckpt,
    read_model,
    read_safetensors,
    weights_file,
)
from dvt.checkpoint.released import from_reference, recognise, strip_module, to_reference
from dvt.errors import CheckpointError, listing, work_begun
from dvt.models.names import EXIT_PREFIXES, parameter_shapes
from dvt.safe_files import explained, put_in_place, replacing, scratch_folder, write_failure
from dvt.value_checks import expanded

if TYPE_CHECKING:
    from mindspore import nn

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
DIGEST_KEY = "sha256"
Naming = Literal["dvt", "published"]


def save_checkpoint(
    path: str | os.PathLike,
    weights: "nn.Cell | Mapping[str, np.ndarray]",
    metadata: Mapping[str, Any] | None = None,
    naming: Naming = "dvt",
) -> None:
    """Saves `weights` (all parameters of a model, or arrays by name) and `metadata` under `path`, or nothing at all.

    `path` ends in .ckpt or .safetensors; without an ending it is a folder (`save_pretrained`). `metadata["model"]` is a
    ModelConfig or its dict; a model's own `config` is taken where it is missing. Raises CheckpointError for a path that
    cannot be written and for metadata that JSON cannot hold.
    """
    path = Path(expanded(path))
    check_writable(path)
    if not path.suffix or weights_file(path) != path:
        save_pretrained(weights, path, metadata, naming=naming)
        return
    if naming != "dvt" and path.suffix == ".ckpt":
        raise CheckpointError(f"released names are for .safetensors, folders and files of PyTorch, not for {path}")
    text = metadata_text(weights, metadata)
    try:
        with replacing(path) as written:
            if path.suffix == ".safetensors":
                _write_safetensors(written, weights, text, naming)
            else:
                _write_ckpt(written, weights, text)
    except (OSError, RuntimeError) as error:
        before = f" The {path.name} saved before is untouched." if path.exists() else ""
        with work_begun():
            raise CheckpointError(
                f"cannot save the checkpoint {path}: {write_failure(path, error)}.{before}"
            ) from error


def check_writable(path: Path) -> None:
    """Raises CheckpointError unless the name says what kind of checkpoint is to be written."""
    if path.suffix not in (".ckpt", ".safetensors") and not path.is_dir() and (path.suffix or path.exists()):
        raise CheckpointError(f"cannot save to {path}: the name of a checkpoint must end in .ckpt or .safetensors")


def save_pretrained(
    model: "nn.Cell | Mapping[str, np.ndarray]",
    folder: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
    *,
    naming: Naming = "dvt",
) -> Path:
    """Writes a model as a folder that `dvt.from_pretrained` and every command reads; returns the folder.

    Args:
        model: A DVT, or its weights by name.
        folder: Made if need be. A model in it is replaced; other files stay, also a README.md written by hand.
        metadata: What `Checkpoint.metadata` holds: class names, preprocessing, thresholds, ...; "model" for weights.
        naming: "published" gives the tensors the names and shapes of the released PyTorch checkpoints.

    Raises:
        CheckpointError: The folder cannot be written or is of another package; JSON cannot hold the metadata; the
            model has no released names.
    """
    folder, text = Path(expanded(folder)), metadata_text(model, metadata)
    if weights_file(folder) != folder and kind_of(weights_file(folder)) != "dvt safetensors":
        raise CheckpointError(f"{folder} holds a model of another package; choose another folder")
    with explained(folder, CheckpointError):
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder, "model") as stage:
            values = json.loads(text) | {DIGEST_KEY: _write_safetensors(stage / WEIGHTS_FILE, model, text, naming)}
            (stage / CONFIG_FILE).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            readme = folder / CARD_FILE
            if not readme.exists() or MARK in readme.read_text(encoding="utf-8"):
                said = card(read_model(folder, values["model"]), values, folder)
                (stage / CARD_FILE).write_text(said, encoding="utf-8")
            for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
                if (stage / name).exists():
                    put_in_place(stage / name, folder / name)
    return folder


def _write_ckpt(path: Path, weights: "nn.Cell | Mapping[str, np.ndarray]", text: str) -> None:
    import mindspore as ms

    if isinstance(weights, Mapping):
        weights = {name: ms.Tensor(np.asarray(value, order="C")) for name, value in weights.items()}
    else:
        weights = weights.parameters_dict()
    entries = [{"name": name, "data": value} for name, value in weights.items()]
    ms.save_checkpoint(entries, str(path), append_dict={METADATA_KEY: text}, crc_check=True)


def _write_safetensors(path: Path, weights: "nn.Cell | Mapping[str, np.ndarray]", text: str, naming: Naming) -> str:
    """Returns the digest of text and weights."""
    from safetensors.numpy import save_file

    if not isinstance(weights, Mapping):
        weights = {name: parameter.asnumpy() for name, parameter in weights.parameters_dict().items()}
    if naming == "published":
        weights = to_reference(read_model(path, json.loads(text)["model"]), weights)
    arrays = {name: np.asarray(value, order="C") for name, value in weights.items()}
    digest = _digest(text, arrays)
    save_file(arrays, path, {METADATA_KEY: text, DIGEST_KEY: digest})
    return digest


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value)
    return digest.hexdigest()


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint: a `.ckpt`, a folder that `save_pretrained` wrote, or a `.safetensors` file of a DVT, released
    ones included. Raises CheckpointError, with the cause, for a missing, incomplete or other kind of file."""
    path = weights_file(Path(expanded(path)))
    kind = kind_of(path)
    if kind == "PyTorch":
        raise CheckpointError(
            f"{path} is a PyTorch file. That of a DVT becomes a checkpoint by dvt convert {path} OUT.ckpt; a training "
            "can start from that of a DVT, a DeiT or a T2T-ViT as it is (train.init_checkpoint)"
        )
    if kind == "safetensors":  # a released file that was converted
        tensors = strip_module(read_safetensors(path).tensors)
        config = recognise({name: value.shape for name, value in tensors.items()}, str(path))
        metadata = {"format": FORMAT, "model": config.to_dict(), "converted_from": {"file": path.name, "weights": ""}}
        return Checkpoint(from_reference(config, tensors, str(path)), metadata, config)
    if kind == "dvt safetensors":
        return _read_own_safetensors(path)
    content = read_ckpt(path)
    text, fault = content.texts.pop(METADATA_KEY, None), None
    if text is None:
        fault = f"does not say of which model it is: its {METADATA_KEY} is missing. It was cut short, or is not of dvt"
    elif not content.has_checksum:
        fault = "is incomplete: the checksum at its end is missing; copy or save it again"
    elif content.texts:
        fault = f"holds texts where tensors belong: {listing(content.texts)}; save it again"
    if fault:
        raise CheckpointError(f"{path} {fault}")
    return Checkpoint.of(path, content.tensors, text)


def _read_own_safetensors(path: Path) -> Checkpoint:
    content = read_safetensors(path)
    tensors, digest = content.tensors, content.texts.get(DIGEST_KEY)
    if digest != _digest(content.texts[METADATA_KEY], tensors):
        raise CheckpointError(f"{path} is damaged: its content is not what was saved; copy it again")
    source, side = path, path.with_name(CONFIG_FILE)
    if path.name == WEIGHTS_FILE and side.is_file():
        try:
            beside = side.read_text(encoding="utf-8")
            if json.loads(beside).get(DIGEST_KEY) == digest:
                source, content.texts[METADATA_KEY] = side, beside
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{side} cannot be read: {error}; remove or replace it") from error
    checkpoint = Checkpoint.of(source, tensors, content.texts[METADATA_KEY])
    checkpoint.metadata.pop(DIGEST_KEY, None)
    if any(name.startswith(EXIT_PREFIXES) for name in tensors):
        tensors = from_reference(checkpoint.model, tensors, str(path))
    in_order = [*parameter_shapes(checkpoint.model), *tensors]  # safetensors sorts the names
    return replace(checkpoint, weights={name: tensors[name] for name in in_order if name in tensors})


def load_model(path: str | os.PathLike, *, kernels: bool = True) -> tuple["nn.Cell", Checkpoint]:
    """The model that `path` describes, with its weights; `kernels=False` without the compiled CPU kernels. Raises
    CheckpointError as `read_checkpoint` and `check_weights` do."""
    checkpoint = read_checkpoint(path)
    return model_of(checkpoint, str(path), kernels=kernels), checkpoint


from_pretrained = load_model  # the customary name


def model_of(checkpoint: Checkpoint, source: str, *, kernels: bool = True) -> "nn.Cell":
    """The model of a checkpoint that was read from `source`, as `load_model` builds it."""
    from dvt.models.cascade import build_from_config

    if "best" in checkpoint.metadata:
        raise CheckpointError(f"{source} is the state of a training, which --resume reads; give last.ckpt beside it")
    # Before building: a few bytes of configuration must not make a model of any size.
    check_weights(parameter_shapes(checkpoint.model), checkpoint.weights, source)
    model = build_from_config(checkpoint.model, kernels=kernels, initialised=False)
    load_weights(model, checkpoint.weights, source=source)
    return model
