"""`manifest.json`, the description of a bundle: what its files take, return and weigh, and how to decide with them.

Needs neither MindSpore nor ONNX. docs/deployment.md lists the keys for programs that read it without this package.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dvt.early_exit.decisions import ALWAYS, NEVER, check_thresholds
from dvt.early_exit.loop import check_batch_sizes
from dvt.errors import BundleError, ConfigError
from dvt.models.variants import ModelConfig

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 2
FORMATS = ("MINDIR", "ONNX", "ONNX_INT8")  # what can be exported
CONVERTED = "LITE"  # what MindSpore Lite's converter makes of them
PRECISIONS = ("float32", "float16")
RULE = (
    "An image leaves at the first exit whose largest probability is at least that exit's threshold; the last exit "
    "takes all that are left. The next exit gets the images that go on, and their rows of what this exit returned."
)

_CHUNK = 1 << 22

T = TypeVar("T")


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


@dataclass(frozen=True)
class Setting:
    """Thresholds (K,), and where known the GMACs per image and the accuracy in percent that they were measured with."""

    values: tuple[float, ...]
    expected_gmacs: float | None = None
    accuracy: float | None = None


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
    """

    model: ModelConfig
    class_names: list[str] | None
    preprocessing: dict[str, Any] | None
    cumulative_gmacs: list[float]
    batch_sizes: list[int]
    thresholds: dict[str, Setting]
    graphs: dict[str, GraphSet]
    versions: dict[str, str]

    def settings(self, graph_format: str) -> dict[str, Setting]:
        """The named thresholds that hold for one format."""
        own = self.graphs[graph_format].thresholds
        return self.thresholds if own is None else own

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `manifest_from_dict` reads them back."""
        content = {"format": MANIFEST_FORMAT, "rule": RULE, **asdict(self)}
        content["model"] = self.model.to_dict()
        return content


def manifest_from_dict(content: Mapping[str, Any], source: str = "the manifest") -> Manifest:
    """Reads what `Manifest.to_dict` gives. Raises BundleError, naming `source` and what is wrong with it."""
    version = content.get("format") if isinstance(content, Mapping) else None
    if version != MANIFEST_FORMAT:
        newer = isinstance(version, int) and version > MANIFEST_FORMAT
        raise BundleError(
            f"{source} has format {version!r}; this version of the package reads format {MANIFEST_FORMAT}. "
            + ("Update the package" if newer else "Export the checkpoint again")
        )
    try:
        manifest = Manifest(
            model=ModelConfig.from_dict(content["model"]),
            class_names=content["class_names"],
            preprocessing=content["preprocessing"],
            cumulative_gmacs=[float(cost) for cost in content["cumulative_gmacs"]],
            batch_sizes=[int(size) for size in content["batch_sizes"]],
            thresholds=_settings(content["thresholds"]),
            graphs={str(name): _graph_set(values) for name, values in content["graphs"].items()},
            versions=dict(content["versions"]),
        )
        _check_fit(manifest)
        return manifest
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{source} is damaged: {what}. Export the checkpoint again") from error


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
    """Writes `manifest.json`, whole or not at all. Raises OSError."""
    path, new = folder / MANIFEST_FILE, folder / f".{MANIFEST_FILE}.new"
    new.write_text(json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, path)


def exit_values(
    config: ModelConfig, exit_index: int, precision: str = "float32", batch: int | None = None
) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs and outputs of one exit's file; images and probabilities are float32, what is handed on `precision`."""

    def handed_on(index: int, prefix: str) -> list[Value]:
        tokens, heads = config.num_tokens(index), config.depth * config.num_heads
        shapes = []
        if config.feature_reuse:
            shapes.append(("features", (tokens, config.embed_dim)))
        if config.relation_reuse:
            shapes.append(("relations", (heads, tokens, tokens)))
        return [Value(role, prefix + role, (batch, *shape), precision) for role, shape in shapes]

    image = (batch, config.in_channels, config.image_size, config.image_size)
    inputs = [Value("images", "images", image, "float32")]
    outputs = [Value("probabilities", "probabilities", (batch, config.num_classes), "float32")]
    if exit_index > 0:
        inputs += handed_on(exit_index - 1, "")
        if config.average_exits:
            shape = (batch, config.num_classes)
            inputs.append(Value("probabilities", "earlier_probabilities", shape, "float32"))
    if exit_index < config.num_exits - 1:
        outputs += handed_on(exit_index, "next_")
    return tuple(inputs), tuple(outputs)


def whole_values(config: ModelConfig, batch: int | None = None) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs and outputs of the file with all exits."""
    inputs, _ = exit_values(config, 0, batch=batch)
    shape = (batch, config.num_exits, config.num_classes)
    return inputs, (Value("probabilities", "probabilities", shape, "float32"),)


def describe_file(path: Path, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> GraphFile:
    """The entry of a file that lies at `path`."""
    return GraphFile(path.name, path.stat().st_size, sha256_of(path), inputs, outputs)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
        if sha256_of(path) != entry.sha256:
            raise BundleError(f"{path} was altered: its SHA-256 is not that of its manifest; copy the bundle again")


def named_settings(thresholds: Any, num_exits: int) -> dict[str, Setting]:
    """One vector, or a dict of named ones, as settings; a single one is called "default", None gives none.

    Infinite thresholds become the 1e8 that means the same, because JSON has no infinity. Raises ConfigError.
    """
    if thresholds is None:
        return {}
    if not isinstance(thresholds, Mapping):
        thresholds = {"default": thresholds}
    settings = {}
    for name, vector in thresholds.items():
        if isinstance(vector, Setting):
            settings[str(name)] = vector
            continue
        try:
            check_thresholds(vector, num_exits)
        except ConfigError as error:
            raise ConfigError(f"thresholds {name!r}: {error}") from error
        settings[str(name)] = Setting(tuple(float(value) for value in np.clip(vector, ALWAYS, NEVER)))
    return settings


def _check_fit(manifest: Manifest) -> None:
    """Raises ValueError where parts of a manifest do not fit its model, which would be seen only when images come."""
    model = manifest.model
    if manifest.class_names is not None and not (
        isinstance(manifest.class_names, list)
        and len(manifest.class_names) == model.num_classes
        and all(isinstance(name, str) for name in manifest.class_names)
    ):
        raise ValueError(f"class_names are not the names of {model.num_classes} classes")
    if manifest.preprocessing is not None and not isinstance(manifest.preprocessing, Mapping):
        raise ValueError("preprocessing is neither null nor keys with values")
    costs = manifest.cumulative_gmacs
    if len(costs) != model.num_exits or not all(0 <= cost < float("inf") for cost in costs):
        raise ValueError(f"cumulative_gmacs {costs} are not the costs of {model.num_exits} exits")
    check_batch_sizes(manifest.batch_sizes)
    own = [graphs.thresholds for graphs in manifest.graphs.values() if graphs.thresholds is not None]
    for name, setting in (pair for settings in (manifest.thresholds, *own) for pair in settings.items()):
        try:
            check_thresholds(setting.values, model.num_exits)
        except ConfigError as error:
            raise ValueError(f"thresholds {name!r}: {error}") from error
    for name, graphs in manifest.graphs.items():
        if len(graphs.exits) != model.num_exits:
            raise ValueError(f"{name} has {len(graphs.exits)} files for {model.num_exits} exits")
        for index, entry in enumerate(graphs.exits):
            for found, expected in zip((entry.inputs, entry.outputs), exit_values(model, index), strict=True):
                roles = sorted(value.role for value in found)
                if roles != sorted(value.role for value in expected):
                    raise ValueError(f"{entry.file} takes or returns {', '.join(roles) or 'nothing'}")


def _settings(values: Mapping[str, Any]) -> dict[str, Setting]:
    return {
        str(name): Setting(tuple(float(v) for v in each["values"]), each["expected_gmacs"], each["accuracy"])
        for name, each in values.items()
    }


def _graph_set(values: Mapping[str, Any]) -> GraphSet:
    return GraphSet(
        precision=values["precision"],
        exits=tuple(_graph_file(entry) for entry in values["exits"]),
        whole=_optional(_graph_file, values["whole"]),
        thresholds=_optional(_settings, values["thresholds"]),
        details=dict(values["details"]),
    )


def _graph_file(values: Mapping[str, Any]) -> GraphFile:
    name = values["file"]
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of a file in the bundle")
    inputs, outputs = (
        tuple(Value(v["role"], v["name"], tuple(v["shape"]), v["dtype"]) for v in values[key])
        for key in ("inputs", "outputs")
    )
    return GraphFile(name, int(values["bytes"]), values["sha256"], inputs, outputs)


def _optional(read: Callable[[Any], T], values: Any) -> T | None:
    return None if values is None else read(values)
