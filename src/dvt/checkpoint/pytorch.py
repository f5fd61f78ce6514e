"""Files of PyTorch to checkpoints and back, the released `.pth.tar` with the results stored in them.

Reading executes nothing of the file: PyTorch's restricted unpickler, with plain values that files often hold allowed on
top. PyTorch is imported only when a file is touched.
"""

import argparse
import contextlib
import math
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from dvt.checkpoint.format import Checkpoint, kind_of, read_model, read_safetensors, weights_file
from dvt.checkpoint.native import Naming, read_checkpoint, save_checkpoint
from dvt.checkpoint.released import from_reference, recognise, require_variant, strip_module, to_reference
from dvt.errors import CheckpointError, listing, work_begun
from dvt.models.names import reference_shapes
from dvt.models.variants import ModelConfig
from dvt.safe_files import replacing, require_writable, write_failure

RESULT_KEYS = ("flops", "anytime_classification", "dynamic_threshold", "budgeted_batch_classification")
WEIGHTS_KEY = "model_state_dict"
MOST_RESULTS, MOST_NESTED = 100_000, 8  # values in one stored result, lists around them; released: 177 and 2
MODEL_KEY = "dvt_model"  # our own entry, only for models that names and shapes do not determine


class TorchFile(NamedTuple):
    """What a PyTorch file holds."""

    key: str  # place of the chosen set of weights in the file, "" for the whole of it
    tensors: dict[str, np.ndarray]  # these, at least single precision, names without what wrappers put in front of them
    notes: list[str]  # on what is read in another way than it stands in the file
    rest: dict[str, Any]  # all that is no set of weights
    model: ModelConfig | None  # only from `convert_to_pytorch`, where names and shapes do not determine it


def read_weights(path: str | os.PathLike, key: str | None = None) -> TorchFile:
    """Reads a PyTorch file or safetensors: the weights under `key`, else `model_state_dict`, a moving average, or any.

    Nothing in it is executed. Raises CheckpointError for a file without readable weights, and where PyTorch is missing.
    """
    path = Path(path)
    if kind_of(path) == "safetensors" and key is None:
        content, sets, key = {}, {"": read_safetensors(path).tensors}, ""
        tensors = arrays = strip_module(sets[""])
    else:
        content = _read_torch_file(path)
        sets, key = _weight_sets(path, content, key)
        tensors = strip_module(sets[key])
        arrays = _arrays(path, tensors)
    rest = {} if key == "" else {name: value for name, value in content.items() if name not in sets}
    stored = rest.pop(MODEL_KEY, None)
    before, after, notes = next(iter(sets[key]), ""), next(iter(tensors), ""), []
    if before != after:
        notes.append(f"names: {before} is read as {after}, and the others alike")
    if others := [each for each in sets if each != key]:
        notes.append(f"not taken: {', '.join(others)} (--weights KEY takes another)")
    if types := {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"}:
        notes.append(f"precision: {', '.join(sorted(types))} in the file, float32 here")
    model = read_model(path, stored) if isinstance(stored, dict) else None
    return TorchFile(key, arrays, notes, rest, model)


def convert_from_pytorch(
    source: str | os.PathLike,
    target: str | os.PathLike,
    name: str | None = None,
    weights_key: str | None = None,
    force: bool = False,
    *,
    naming: Naming = "dvt",
) -> list[str]:
    """Writes the checkpoint `target` (.ckpt, .safetensors, a folder) from any weights of a DVT; returns what it did.

    Nothing in `source` is executed. `name` asserts the variant; `weights_key` picks one of several sets of weights. The
    stored results go to `metadata["results"]`. Raises CheckpointError or ConfigError, and then writes nothing.
    """
    source, target = weights_file(Path(source)), Path(target)
    _check_target(source, target, force, as_folder=not target.suffix)
    ours, same = kind_of(source) in ("MindSpore", "dvt safetensors"), source.suffix == target.suffix == ".ckpt"
    if ours and not same and not weights_key:
        checkpoint = read_checkpoint(source)
        report = _report(checkpoint.model, checkpoint.weights, "all", checkpoint.metadata.get("results") or {})
    else:
        checkpoint, report = _from_pytorch(source, weights_key)
    require_variant(checkpoint.model.name, name, str(source))
    save_checkpoint(target, checkpoint.weights, checkpoint.metadata, naming)
    return [*report, f"written: {target}"]


def _from_pytorch(source: Path, weights_key: str | None) -> tuple[Checkpoint, list[str]]:
    """What the file holds as a checkpoint, and what was found in it, line by line."""
    file = read_weights(source, weights_key)
    config = file.model or recognise({key: value.shape for key, value in file.tensors.items()}, str(source))
    weights = from_reference(config, file.tensors, str(source))
    kept = {key: _plain(key, file.rest[key], iter(range(MOST_RESULTS))) for key in RESULT_KEYS if key in file.rest}
    metadata = {"model": config, "converted_from": {"file": source.name, "weights": file.key}}
    if kept:
        metadata["results"] = kept
    dropped = [str(key) for key in file.rest if key not in RESULT_KEYS]
    notes = [*file.notes, f"left out: {', '.join(dropped)}"] if dropped else file.notes
    report = _report(config, weights, file.key or "the whole file", kept)
    return Checkpoint(weights, metadata, config), report + notes


def convert_to_pytorch(
    source: str | os.PathLike, target: str | os.PathLike, name: str | None = None, force: bool = False
) -> list[str]:
    """Writes the released layout to `target` from a checkpoint of this package; inverse of the above."""
    source, target = weights_file(Path(source)), Path(target)
    _check_target(source, target, force)
    checkpoint = read_checkpoint(source)
    config, torch = checkpoint.model, _torch()
    require_variant(config.name, name, str(source))
    state_dict = to_reference(config, checkpoint.weights)
    results = checkpoint.metadata.get("results") or {}
    tensors = ((key, torch.from_numpy(np.array(value))) for key, value in state_dict.items())
    content: dict[str, Any] = {WEIGHTS_KEY: OrderedDict(tensors), MODEL_KEY: config.to_dict()}
    content.update({key: results[key] for key in RESULT_KEYS if key in results})
    with contextlib.suppress(CheckpointError):
        if recognise(reference_shapes(config)) == config:
            del content[MODEL_KEY]
    try:
        with replacing(target) as written:
            torch.save(content, written)
    except (OSError, RuntimeError) as error:
        with work_begun():
            raise CheckpointError(f"cannot write {target}: {write_failure(target, error)}") from error
    return [*_report(config, state_dict, WEIGHTS_KEY, results), f"written: {target}"]


def _report(config: ModelConfig, weights: Mapping[str, np.ndarray], key: str, results: Mapping[str, Any]) -> list[str]:
    millions = sum(value.size for value in weights.values()) / 1e6
    grids = ", ".join(f"{grid}x{grid}" for grid in config.grid_sizes)
    off = [part for part, on in (("features", config.feature_reuse), ("relations", config.relation_reuse)) if not on]
    return [
        f"model: {config.name}, {config.num_exits} exits ({grids} tokens), {config.num_classes} classes"
        + (f", without reuse of {' and '.join(off)}" if off else ""),
        f"weights: {key}, {len(weights)} tensors, {millions:.2f} M parameters; every name and shape checked",
        f"stored results: {', '.join(key for key in RESULT_KEYS if key in results) or 'none'}",
    ]


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        install = "pip install 'torch>=2.6', or its CPU build by pip install -r requirements-torch.txt"
        raise CheckpointError(f"PyTorch files need PyTorch, which is not installed here: {install}") from error
    return torch


def _read_torch_file(path: Path) -> Any:
    if kind_of(path) in ("MindSpore", "dvt safetensors"):
        others = "--to-pytorch converts it, or another ending of the output: .ckpt, .safetensors, none for a folder"
        raise CheckpointError(f"{path} is no PyTorch file; if it is a checkpoint of this package, {others}")
    if kind_of(path) == "safetensors":
        raise CheckpointError(f"{path} is a safetensors file, with one set of weights; leave --weights out")
    torch = _torch()
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_allowed()):
            warnings.simplefilter("ignore")
            _check_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise many kinds of errors
        fault = "cannot be read as a PyTorch checkpoint; it is cut short or damaged: copy or save it again"
        if needs := re.search(r"GLOBAL ([\w.]+)", str(error)):
            fault = (
                "is refused, and nothing in it was run: besides tensors, numbers and NumPy arrays it asks for "
                f"{needs[1]}. Load it where it was made, and save the weights alone: torch.save(model.state_dict(), "
                "FILE)"
            )
        elif MemoryError in (type(error), type(error.__context__)) or "allocate memory" in str(error):
            fault = "cannot be read: there is too little memory for it, or it is damaged and claims more than it holds"
        raise CheckpointError(f"{path} {fault}") from error


def _allowed() -> list[Any]:
    """What pickles may make besides tensors: plain values. Pairs give something else for the name in the file."""
    rebuild_array, rebuild_scalar = np.ones(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    allowed = [argparse.Namespace, np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bhilqBHILQefd")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2 write different names
        allowed += [(rebuild_array, f"{module}._reconstruct"), (rebuild_scalar, f"{module}.scalar")]
    for module in ("pathlib", "pathlib._local"):  # Python 3.13 writes the second
        allowed += [(PurePath, f"{module}.{kind}Path") for kind in ("Posix", "PurePosix", "Windows", "PureWindows")]
    return allowed


def _check_archive(path: Path) -> None:
    """Raises CheckpointError for an archive whose parts are more than the file: torch.save compresses nothing."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise CheckpointError(
            f"{path} is a TorchScript program, of which nothing is run. Save its weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), OUT)"
        )
    stated, size = sum(part.file_size for part in parts), path.stat().st_size
    if stated > size or any(part.compress_type for part in parts):
        raise CheckpointError(
            f"{path} is refused: its {size / 2**20:.1f} MiB would unpack to {stated / 2**20:.1f} MiB, but "
            "torch.save compresses nothing. Save the weights again with torch.save"
        )


def _weight_sets(path: Path, content: Any, wanted: str | None) -> tuple[dict[str, dict[str, Any]], str]:
    """Every dict of tensors in the file by its key ("": the file itself), and which of them to take."""
    is_tensor = _torch().is_tensor
    found = {"": content, **content} if isinstance(content, dict) else {}
    sets = {key: each for key, each in found.items() if isinstance(key, str) and isinstance(each, dict) and each}
    for key in [key for key, each in sets.items() if not all(isinstance(k, str) and is_tensor(each[k]) for k in each)]:
        del sets[key]
    if not sets:
        raise CheckpointError(f"{path} holds no weights: neither {WEIGHTS_KEY} nor another dict of tensors")
    if wanted is not None and wanted not in sets:
        raise CheckpointError(f"{path} has no weights under {wanted!r}; it has {', '.join(map(repr, sets))}")
    averaged = [key for key in sets if "ema" in key.lower()]
    preferred = (wanted, WEIGHTS_KEY, *averaged, "state_dict", "model", *sets)
    return sets, next(key for key in preferred if key in sets)


def _arrays(path: Path, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors in NumPy. Raises CheckpointError for those in a special form, and if all together claim more numbers
    than the file holds: made into arrays they would take any amount of memory."""
    strided = _torch().strided
    odd = [k for k, v in tensors.items() if v.layout != strided or v.is_quantized or v.device.type != "cpu"]
    if not odd and sum(v.numel() * v.element_size() for v in tensors.values()) > path.stat().st_size:
        odd = list(tensors)
    if odd:
        raise CheckpointError(
            f"{path}: {listing(odd)} cannot be read; plain dense tensors are needed, each with all its numbers in the "
            "file. Save the state dict again with torch.save"
        )
    # NumPy lacks some of the narrow types.
    narrow = {name for name, value in tensors.items() if value.is_floating_point() and value.element_size() < 4}
    return {name: (v.float() if name in narrow else v).detach().numpy() for name, v in tensors.items()}


def _plain(key: str, value: Any, left: Iterator[int], depth: int = 0) -> Any:
    """Numbers and lists of them, which may hold each other; `left` has one item for each value that may still come."""
    size = math.prod(getattr(value, "shape", ()))  # of NumPy's and PyTorch's
    if depth > MOST_NESTED or sum(1 for _ in islice(left, size)) < size:
        raise CheckpointError(f"the stored {key} is not a list of results: it is too large, or nested too deeply")
    if isinstance(value, list | tuple):
        return [_plain(key, item, left, depth + 1) for item in value]
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or isinstance(value, bool | int | float | str | list):
        return value
    raise CheckpointError(f"the stored {key} holds a {type(value).__name__}; numbers and lists of them are needed")


def _check_target(source: Path, target: Path, force: bool, as_folder: bool = False) -> None:
    if not target.parent.is_dir():
        raise CheckpointError(f"the output folder {target.parent} does not exist; make it first")
    require_writable(target.parent)
    if target.is_dir() and not as_folder:
        raise CheckpointError(f"the output {target} is a folder; give the name of a file")
    target = weights_file(target)
    if target.is_file() and (not force or (source.exists() and target.samefile(source))):
        hint = "--force replaces it" if not force else "it is the input"
        raise CheckpointError(f"the output {target} exists already; {hint}")
