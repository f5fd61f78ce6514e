"""The `.pth.tar` files of released PyTorch checkpoints, to `.ckpt` and back, with the results stored in them.

Reading executes nothing of the file: PyTorch's restricted unpickler, with NumPy's scalars and arrays allowed on top.
PyTorch is imported only when a file is touched. Layout of the files: spec, "Released checkpoints".
"""

import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvt.checkpoint.native import read_checkpoint, save_checkpoint
from dvt.checkpoint.released import from_reference, recognise, strip_module, to_reference
from dvt.errors import CheckpointError, ConfigError, listing
from dvt.models.names import reference_shapes
from dvt.models.variants import ModelConfig, model_config
from dvt.safe_files import replacing, write_failure

RESULT_KEYS = ("flops", "anytime_classification", "dynamic_threshold", "budgeted_batch_classification")
WEIGHTS_KEY = "model_state_dict"
MOST_RESULTS, MOST_NESTED = 100_000, 8  # numbers in one stored result, lists around them; released: 177 and 2
MODEL_KEY = "dvt_model"  # our own entry, only for models that names and shapes do not determine


@dataclass(frozen=True)
class TorchFile:
    """What a PyTorch file holds.

    Args:
        key: Place of the chosen set of weights in the file, "" for the whole of it.
        tensors: These weights, of at least single precision, names without `module.`.
        types: Their floating-point types in the file.
        other_sets: Keys of the sets of weights that were not chosen.
        rest: All that is no set of weights.
        model: Only in files that `convert_to_pytorch` wrote for a model that names and shapes do not determine.
    """

    key: str
    tensors: dict[str, np.ndarray]
    types: frozenset[str]
    other_sets: list[str]
    rest: dict[str, Any]
    model: ModelConfig | None


def read_weights(path: str | os.PathLike, key: str | None = None) -> TorchFile:
    """Reads any PyTorch file: the weights under `key`, or those of `model_state_dict`, a moving average, any there are.

    Nothing in the file is executed. Raises CheckpointError for a file that is missing, damaged or without weights, and
    where PyTorch is not installed.
    """
    path = Path(path)
    content = _read_torch_file(path)
    sets = _weight_sets(content)
    key = _choose(path, sets, key)
    tensors = strip_module(sets[key])
    _check_tensors(path, tensors)
    rest = {} if key == "" else {name: value for name, value in content.items() if name not in sets}
    return TorchFile(
        key,
        {name: _to_numpy(tensor) for name, tensor in tensors.items()},
        frozenset(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()),
        [each for each in sets if each != key],
        rest,
        _stored_config(path, rest.pop(MODEL_KEY, None)),
    )


def convert_from_pytorch(
    source: str | os.PathLike,
    target: str | os.PathLike,
    name: str | None = None,
    weights_key: str | None = None,
    force: bool = False,
) -> list[str]:
    """Writes the checkpoint `target` from the PyTorch file `source`; returns what it did, line by line.

    Nothing in `source` is executed. `name` asserts the variant; `weights_key` picks one of several sets of weights. The
    stored results go to `metadata["results"]`. Raises CheckpointError or ConfigError, and then writes nothing.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target, force)
    file = read_weights(source, weights_key)
    if file.model is None:
        config = recognise({tensor: value.shape for tensor, value in file.tensors.items()}, str(source), name)
    else:
        config = file.model
        _check_name(source, config, name)
    weights = from_reference(config, file.tensors, str(source))

    kept = {key: _plain(key, file.rest[key]) for key in RESULT_KEYS if key in file.rest}
    types = {key: kind for key, (_, kind) in kept.items() if kind}
    metadata = {
        "model": config,
        "converted_from": {"file": source.name, "weights": file.key, "result_types": types},
    }
    if kept:
        metadata["results"] = {key: value for key, (value, _) in kept.items()}
    save_checkpoint(target, weights, metadata)

    others = sorted(file.types - {"float32"})
    dropped = [str(key) for key in file.rest if key not in RESULT_KEYS]
    return [
        *_report(config, weights, file.key or "the whole file", kept),
        *([f"not taken: {', '.join(file.other_sets)} (--weights KEY takes another)"] if file.other_sets else []),
        *([f"precision: {', '.join(others)} in the file, float32 here"] if others else []),
        *([f"left out: {', '.join(dropped)}"] if dropped else []),
        f"written: {target}",
    ]


def convert_to_pytorch(
    source: str | os.PathLike, target: str | os.PathLike, name: str | None = None, force: bool = False
) -> list[str]:
    """Writes the released layout to `target` from the checkpoint `source`; inverse of `convert_from_pytorch`."""
    source, target = Path(source), Path(target)
    _check_target(source, target, force)
    checkpoint = read_checkpoint(source)
    torch = _torch()
    _check_name(source, checkpoint.model, name)
    state_dict = to_reference(checkpoint.model, checkpoint.weights)
    types = (checkpoint.metadata.get("converted_from") or {}).get("result_types", {})
    results = checkpoint.metadata.get("results") or {}
    tensors = ((key, torch.from_numpy(np.array(value))) for key, value in state_dict.items())
    content: dict[str, Any] = {WEIGHTS_KEY: OrderedDict(tensors)}
    content.update({key: _restore(results[key], types.get(key)) for key in RESULT_KEYS if key in results})
    if not _is_recognisable(checkpoint.model):
        content[MODEL_KEY] = checkpoint.model.to_dict()
    try:
        with replacing(target) as written:
            torch.save(content, written)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write {target}: {write_failure(target, error)}") from error
    return [*_report(checkpoint.model, state_dict, WEIGHTS_KEY, results), f"written: {target}"]


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


def _is_recognisable(config: ModelConfig) -> bool:
    try:
        return recognise(reference_shapes(config)) == config
    except CheckpointError:
        return False


def _stored_config(path: Path, stored: Any) -> ModelConfig | None:
    if not isinstance(stored, dict):
        return None
    try:
        return ModelConfig.from_dict(stored)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error


def _check_name(path: Path, config: ModelConfig, name: str | None) -> None:
    if name is not None and model_config(name).name != config.name:
        raise CheckpointError(f"{path} does not hold {name}, but {config.name}")


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "PyTorch files need PyTorch, which is not installed here: pip install -r requirements-torch.txt"
        ) from error
    return torch


def _read_torch_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; give the path of a PyTorch file, .pth.tar or .pth")
    torch = _torch()
    rebuild_array, rebuild_scalar = np.ones(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    allowed = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bhilqBHILQefd")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2 write different names
        allowed += [(rebuild_array, f"{module}._reconstruct"), (rebuild_scalar, f"{module}.scalar")]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds of errors
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needs:
            raise CheckpointError(
                f"{path} is refused, and nothing in it was run: besides tensors, numbers and NumPy arrays it asks for "
                f"{needs[1]}"
            ) from error
        ours = " If it is of this package, --to-pytorch converts it." if path.suffix == ".ckpt" else ""
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint; it is cut short or damaged.{ours}"
        ) from error


def _weight_sets(content: Any) -> dict[str, dict[str, Any]]:
    """Every dict of tensors in the file by its key; "" if the file itself is one."""
    is_tensor = _torch().is_tensor
    candidates = {"": content, **content} if isinstance(content, dict) else {}
    return {
        key: value
        for key, value in candidates.items()
        if isinstance(key, str)
        and isinstance(value, dict)
        and value
        and all(isinstance(k, str) and is_tensor(v) for k, v in value.items())
    }


def _choose(source: Path, sets: Mapping[str, Any], wanted: str | None) -> str:
    if not sets:
        raise CheckpointError(f"{source} holds no weights: neither {WEIGHTS_KEY} nor another dict of tensors")
    if wanted is not None and wanted not in sets:
        raise CheckpointError(f"{source} has no weights under {wanted!r}; it has {', '.join(map(repr, sets))}")
    averaged = [key for key in sets if "ema" in key.lower()]
    return next(key for key in (wanted, WEIGHTS_KEY, *averaged, "state_dict", "model", *sets) if key in sets)


def _check_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Raises CheckpointError for tensors that claim more numbers than the file holds, or hold them in a special form:
    made into arrays they would take any amount of memory."""
    torch = _torch()
    odd = [
        name
        for name, value in tensors.items()
        if value.layout != torch.strided
        or value.is_quantized
        or value.device.type != "cpu"
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ]
    if odd:
        raise CheckpointError(
            f"{path}: {listing(odd)} cannot be read; plain dense tensors are needed, each with all its numbers in the "
            "file. Save the state dict again with torch.save"
        )


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def _plain(key: str, value: Any, depth: int = 0) -> tuple[Any, Any]:
    """(numbers and lists, what they were): None for what JSON keeps by itself, else a dtype or a list of such."""
    size = value.numel() if _torch().is_tensor(value) else np.size(value) if isinstance(value, np.ndarray) else 0
    if depth > MOST_NESTED or size > MOST_RESULTS:
        raise CheckpointError(f"the stored {key} is not a list of results: it is too large, or nested too deeply")
    if _torch().is_tensor(value):
        return value.tolist(), str(value.dtype)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist(), f"numpy.{value.dtype}"
    if isinstance(value, list | tuple):
        pairs = [_plain(key, item, depth + 1) for item in value]
        kinds = [kind for _, kind in pairs]
        return [item for item, _ in pairs], kinds if any(kinds) else None
    if value is None or isinstance(value, bool | int | float | str):
        return value, None
    raise CheckpointError(f"the stored {key} holds a {type(value).__name__}; numbers and lists of them are needed")


def _restore(value: Any, kind: Any) -> Any:
    if kind is None:
        return value
    if isinstance(kind, list):
        return [_restore(*pair) for pair in zip(value, kind, strict=True)]
    package, dtype = kind.split(".")
    return np.array(value, dtype)[()] if package == "numpy" else _torch().tensor(value, dtype=getattr(_torch(), dtype))


def _check_target(source: Path, target: Path, force: bool) -> None:
    folder = target.parent
    if not folder.is_dir():
        raise CheckpointError(f"the output folder {folder} does not exist; make it first")
    if target.is_dir():
        raise CheckpointError(f"the output {target} is a folder; give the name of a file")
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"the output folder {folder} cannot be written to; choose another")
    if target.exists() and (not force or (source.exists() and target.samefile(source))):
        hint = "--force replaces it" if not force else "it is the input"
        raise CheckpointError(f"the output {target} exists already; {hint}")
