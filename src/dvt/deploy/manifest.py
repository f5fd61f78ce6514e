"""`manifest.json`, the description of a bundle: what its files take and return, and how to decide with them.

Needs neither MindSpore nor ONNX. docs/deployment.md lists the keys for programs that read it without this package.
"""

import hashlib
import json
import os
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from dvt.early_exit.decisions import ALWAYS, NEVER, check_thresholds
from dvt.early_exit.loop import check_batch_sizes
from dvt.errors import BundleError, ConfigError
from dvt.models.cost import handed_on_shapes
from dvt.models.variants import ModelConfig
from dvt.safe_files import explained, replacing

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 2
FORMATS = ("MINDIR", "ONNX", "ONNX_INT8")  # what can be exported; ONNX_INT8 is made of ONNX
CONVERTED = "LITE"  # what MindSpore Lite's converter makes of them
PRECISIONS = ("float32", "float16")
RULE = (
    "An image leaves at the first exit whose largest probability is at least that exit's threshold; the last exit "
    "takes all that are left. The next exit gets the images that go on, and their rows of what this exit returned."
)

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Value:
    """An input or output of a graph.

    Attributes:
        role: "images", "features", "relations" or "probabilities"; an output feeds the next exit's input of its role.
        name: Its name in the file.
        shape: With the batch first; None where any number of images may come.
        dtype: "float32" or "float16".
    """

    role: str
    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class GraphFile:
    """One file with its size, hash, inputs and outputs in the order of the call."""

    file: str
    bytes: int
    sha256: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or self.file.startswith("."):
            raise ConfigError(f"{self.file!r} is not the name of a file in the bundle")


@dataclass(frozen=True)
class Setting:
    """Thresholds (K,), and where known the GMACs per image and the accuracy in percent that they were measured with.

    Infinite thresholds become the 1e8 that means the same, because JSON has no infinity.
    """

    values: tuple[float, ...]
    expected_gmacs: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(value) for value in np.clip(self.values, ALWAYS, NEVER)))


@dataclass(frozen=True)
class GraphSet:
    """The files of one format.

    Attributes:
        precision: "float32", "float16" or "int8".
        exits: One file per exit.
        whole: One file with all exits, images -> probabilities (B, K, classes); None if it was not asked for.
        thresholds: Those to be used with these files instead of the bundle's; None where the bundle's hold.
        details: How the files were made and what was measured with them.
    """

    precision: str
    exits: tuple[GraphFile, ...]
    whole: GraphFile | None = None
    thresholds: dict[str, Setting] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[GraphFile]:
        """All files."""
        return [*self.exits, *([] if self.whole is None else [self.whole])]


@dataclass(frozen=True)
class Manifest:
    """A bundle. `thresholds` are named settings, the first the default; the other attributes are named as in the file.

    `batch_sizes` are the numbers of images that backends with fixed shapes are prepared for.

    Raises:
        ConfigError: Parts do not fit the model, which would otherwise be seen only when images come.
    """

    model: ModelConfig
    class_names: list[str] | None
    preprocessing: dict[str, Any] | None
    cumulative_gmacs: list[float]
    batch_sizes: list[int]
    thresholds: dict[str, Setting]
    graphs: dict[str, GraphSet]
    versions: dict[str, str]

    def __post_init__(self) -> None:
        model, costs = self.model, self.cumulative_gmacs
        if self.class_names is not None and len(self.class_names) != model.num_classes:
            raise ConfigError(f"there are {len(self.class_names)} class_names for {model.num_classes} classes")
        if len(costs) != model.num_exits or not all(0 <= cost < float("inf") for cost in costs):
            raise ConfigError(f"cumulative_gmacs {costs} are not the costs of {model.num_exits} exits")
        check_batch_sizes(self.batch_sizes)
        for settings in (self.thresholds, *(graphs.thresholds or {} for graphs in self.graphs.values())):
            for name, setting in settings.items():
                _check_setting(name, setting.values, model.num_exits)
        for name, graphs in self.graphs.items():
            if len(graphs.exits) != model.num_exits:
                raise ConfigError(f"{name} has {len(graphs.exits)} files for {model.num_exits} exits")
            for index, entry in enumerate(graphs.exits):
                for found, expected in zip((entry.inputs, entry.outputs), exit_values(model, index), strict=True):
                    roles = sorted(value.role for value in found)
                    if roles != sorted(value.role for value in expected):
                        raise ConfigError(f"{entry.file} takes or returns {', '.join(roles) or 'nothing'}")

    def settings(self, graph_format: str) -> dict[str, Setting]:
        """The named thresholds that hold for one format."""
        own = self.graphs[graph_format].thresholds
        return self.thresholds if own is None else own

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `manifest_from_dict` reads them back."""
        return {"format": MANIFEST_FORMAT, "rule": RULE, **asdict(self), "model": self.model.to_dict()}


def manifest_from_dict(content: Any, source: str = "the manifest") -> Manifest:
    """Reads what `Manifest.to_dict` gives. Raises BundleError, naming `source` and what is wrong with it."""
    version = content.get("format") if isinstance(content, Mapping) else None
    if version != MANIFEST_FORMAT:
        newer = isinstance(version, int) and version > MANIFEST_FORMAT
        raise BundleError(
            f"{source} has format {version!r}; this version of the package reads format {MANIFEST_FORMAT}. "
            + ("Update the package" if newer else "Export the checkpoint again")
        )
    try:
        return _typed(Manifest, content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{source} is damaged: {what}. Export the checkpoint again") from error


_JSON_TYPES = {
    dict: (dict, "an object with keys"),
    list: (list, "a list"),
    tuple: (list, "a list"),
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
}
"""By Python type: what JSON has for it, and what messages call that."""


def _typed(hint: Any, value: Any, *path: str) -> Any:
    """`value`, read from JSON, as what the type hint says. Raises ValueError, naming the `path` of keys to it."""
    if hint is Any:
        return value
    if isinstance(hint, types.UnionType):  # X | None
        return None if value is None else _typed(get_args(hint)[0], value, *path)
    kind = dict if is_dataclass(hint) else get_origin(hint) or hint
    found_as, described = _JSON_TYPES[kind]
    if not isinstance(value, found_as) or isinstance(value, bool):
        raise ValueError(f"{'.'.join(path)} is {value!r:.100}; it must be {described}")
    if hint is ModelConfig:
        return ModelConfig.from_dict(value)
    if is_dataclass(hint):
        return hint(**{key: _typed(each, value[key], *path, key) for key, each in get_type_hints(hint).items()})
    if kind is dict:
        return {key: _typed(get_args(hint)[1], each, *path, key) for key, each in value.items()}
    if kind in (list, tuple):
        return kind(_typed(get_args(hint)[0], each, *path, str(index)) for index, each in enumerate(value))
    return kind(value)


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of a bundle. Raises BundleError if the folder holds none, or one that cannot be read."""
    path = Path(folder) / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_FILE}; make one with export.py --output"
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}. Copy the bundle again, or export it again") from error
    return manifest_from_dict(content, str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, whole or not at all. Raises ConfigError if it cannot be written."""
    path = folder / MANIFEST_FILE
    with explained(path, ConfigError), replacing(path) as written:
        written.write_text(json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def exit_values(
    config: ModelConfig, exit_index: int | None, precision: str = "float32", batch: int | None = None
) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs and outputs of one exit's file, or for None of the file with all exits.

    Images and probabilities are float32, what else is handed on `precision`. A `batch` of None leaves the number of
    images open.
    """
    image = (batch, config.in_channels, config.image_size, config.image_size)
    inputs = [Value("images", "images", image, "float32")]
    if exit_index is None:
        shape = (batch, config.num_exits, config.num_classes)
        return tuple(inputs), (Value("probabilities", "probabilities", shape, "float32"),)
    for role, shape in handed_on_shapes(config, exit_index - 1).items():
        if role == "probabilities":
            inputs.append(Value(role, "earlier_probabilities", (batch, *shape), "float32"))
        else:
            inputs.append(Value(role, role, (batch, *shape), precision))
    outputs = [Value("probabilities", "probabilities", (batch, config.num_classes), "float32")]
    for role, shape in handed_on_shapes(config, exit_index).items():
        if role != "probabilities":
            outputs.append(Value(role, f"next_{role}", (batch, *shape), precision))
    return tuple(inputs), tuple(outputs)


def describe_file(path: Path, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> GraphFile:
    """The entry of a file that lies at `path`."""
    return GraphFile(path.name, path.stat().st_size, _sha256_of(path), inputs, outputs)


def check_files(folder: Path, graphs: GraphSet) -> None:
    """Raises BundleError if a file of `graphs` is missing, or is not the one that the manifest describes."""
    for entry in graphs.files:
        path = folder / entry.file
        if not path.is_file():
            raise BundleError(f"{folder} is incomplete: {entry.file} is missing; copy the bundle again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{path} has {size:,} bytes, its manifest says {entry.bytes:,}; it was altered or cut short: copy the "
                "bundle again"
            )
        if _sha256_of(path) != entry.sha256:
            raise BundleError(f"{path} was altered: its SHA-256 is not that of its manifest; copy the bundle again")


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def named_settings(thresholds: Any, num_exits: int) -> dict[str, Setting]:
    """One vector, or a dict of named ones, as settings; a single one is called "default", None gives none.

    Raises ConfigError for thresholds that are NaN or of another number than `num_exits`.
    """
    if thresholds is None:
        return {}
    if not isinstance(thresholds, Mapping):
        thresholds = {"default": thresholds}
    settings = {}
    for name, given in thresholds.items():
        if not isinstance(given, Setting):
            _check_setting(name, given, num_exits)
            given = Setting(given)
        settings[str(name)] = given
    return settings


def _check_setting(name: str, thresholds: Any, num_exits: int) -> None:
    try:
        check_thresholds(thresholds, num_exits)
    except ConfigError as error:
        raise ConfigError(f"thresholds {name!r}: {error}") from error
