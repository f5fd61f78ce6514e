"""`manifest.json`, the description of a bundle: what its files take and return, and how to decide with them. Needs
neither MindSpore nor ONNX. docs/deployment.md lists the keys."""

import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dvt.data.decode import Exif
from dvt.data.preprocess import Preprocessing
from dvt.early_exit.certify import Certificate
from dvt.early_exit.decisions import ALWAYS, NEVER, check_thresholds
from dvt.early_exit.loop import check_batch_sizes
from dvt.errors import BundleError, ConfigError
from dvt.models.cost import handed_on_shapes
from dvt.models.variants import ModelConfig
from dvt.safe_files import content_of, explained, replacing
from dvt.value_checks import bounds, from_plain

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 2
BFLOAT16 = "ONNX_BF16"  # the ONNX files, with thresholds for computing in bfloat16
MEASURED = ("ONNX_INT8", BFLOAT16)  # made of ONNX, with thresholds measured for them
FORMATS = ("MINDIR", "ONNX", *MEASURED)  # what can be exported
CONVERTED = "LITE"  # what MindSpore Lite's converter makes of them
PRECISIONS = ("float32", "float16")
RULE = (
    "An image leaves at the first exit whose largest probability is at least that exit's threshold; the last exit "
    "takes all that are left. The next exit gets the images that go on, and their rows of what this exit returned."
)
LONGEST_TEXT = 1000  # characters of a name
LARGEST_BATCH = 4096
LARGEST_RESIZE = 16  # times the side of the model input: a larger image would fill the memory


@dataclass(frozen=True)
class Value:
    """An input or output of a graph; an output feeds the next exit's input of its role."""

    role: str  # "images", "features", "relations" or "probabilities"
    name: str  # in the file
    shape: tuple[int | None, ...]  # with the batch first; None where any number of images may come
    dtype: str  # "float32" or "float16"


@dataclass(frozen=True)
class GraphFile:
    """One file with its size, hash, inputs and outputs in the order of the call."""

    file: str
    bytes: int = field(metadata=bounds(0, 2**40))
    sha256: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def __post_init__(self) -> None:
        name = self.file
        if Path(name).name != name or name.startswith(".") or "\0" in name or len(name.encode(errors="replace")) > 255:
            raise ConfigError(f"file {name!r:.100} is not the name of a file in the bundle")


@dataclass(frozen=True)
class Setting:
    """Thresholds (K,), and where known the GMACs per image and the accuracy in percent that they were measured with.

    Infinite thresholds become 1e8, because JSON has no infinity. Raises ConfigError for negative ones other than -1e8,
    with which all images leave, and for a certificate of other thresholds.
    """

    values: tuple[float, ...] = field(metadata=bounds(ALWAYS, NEVER))
    expected_gmacs: float | None = field(default=None, metadata=bounds(0))
    accuracy: float | None = field(default=None, metadata=bounds(0, 100))
    certificate: Certificate | None = None  # of the outputs of the files that the setting is for
    not_certified: str | None = None  # why there is none

    def __post_init__(self) -> None:
        values = np.clip(np.asarray(self.values, float), ALWAYS, NEVER).tolist()
        if any(ALWAYS < value < 0 for value in values):
            raise ConfigError(f"values {values} are thresholds, and none may be negative (but -1e8, for all images)")
        object.__setattr__(self, "values", tuple(values))
        if self.certificate and not self.certificate.is_of(values):
            raise ConfigError(f"certificate is of the thresholds {list(self.certificate.thresholds)}, not of {values}")

    @property
    def promise(self) -> str:
        """What is guaranteed of the thresholds, in a sentence."""
        if self.certificate:
            return self.certificate.promise()
        return f"not certified: {self.not_certified}" if self.not_certified else "not certified"

    def promise_for(self, exif: Exif) -> str:
        """The same where image files are taken as `exif` says, which may not be how the certificate's were."""
        if self.certificate is None or self.certificate.exif in (None, exif == "honour"):
            return self.promise
        measured, here = ("honoured", "ignored") if self.certificate.exif else ("ignored", "honoured")
        note = f"measured with EXIF orientation {measured}, here it is {here}: images that it turns are not covered"
        return f"{self.promise} ({note})"

    def uncertified(self, reason: str | None) -> "Setting":
        """The same without its certificate, if it has one and there is a reason."""
        return replace(self, certificate=None, not_certified=reason) if self.certificate and reason else self


@dataclass(frozen=True)
class GraphSet:
    """The files of one format, how they were made, and what was measured with them (`details`)."""

    precision: Literal["float32", "float16", "bfloat16", "int8"]
    exits: tuple[GraphFile, ...]  # one per exit
    thresholds: dict[str, Setting] | None = None  # to be used instead of the bundle's; None where these hold
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A bundle. `thresholds` are named settings, the first the default; the other attributes are named as in the file.
    `batch_sizes` are the numbers of images that backends with fixed shapes are prepared for. `fingerprint` is the
    SHA-256 of model and weights, None in bundles of version 0.1.0. Raises ConfigError, naming the key, for parts that
    do not fit the model or each other.
    """

    model: ModelConfig
    class_names: list[str] | None
    preprocessing: dict[str, Any] | None
    cumulative_gmacs: list[float] = field(metadata=bounds(0))
    batch_sizes: list[int] = field(metadata=bounds(1, LARGEST_BATCH))
    thresholds: dict[str, Setting]
    graphs: dict[str, GraphSet]
    versions: dict[str, str]
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        model, costs = self.model, self.cumulative_gmacs
        _check_plain(asdict(self), "")
        if self.class_names is not None and len(self.class_names) != model.num_classes:
            given = f"there are {len(self.class_names)} class_names for {model.num_classes} classes"
            raise ConfigError(f"{given} (model.num_classes)")
        if len(costs) != model.num_exits:
            raise ConfigError(f"cumulative_gmacs {costs} are not the costs of {model.num_exits} exits")
        if max(check_batch_sizes(self.batch_sizes)) > LARGEST_BATCH:
            raise ConfigError(f"batch_sizes is {self.batch_sizes}; the largest is {LARGEST_BATCH}")
        if self.preprocessing is not None:
            _check_preprocessing(self.preprocessing, model)
        named_settings(self.thresholds, model.num_exits)
        for name, graphs in self.graphs.items():
            named_settings(graphs.thresholds, model.num_exits)
            _check_graphs(f"graphs.{name}.exits", graphs, model)

    def settings(self, graph_format: str) -> dict[str, Setting]:
        """The named thresholds that hold for one format, certified where they are of files that compute the same."""
        graphs = self.graphs[graph_format]
        if graphs.thresholds is not None:
            return graphs.thresholds
        same = graphs.precision == "float32" and "converted_from" not in graphs.details
        reason = None if same else f"the certificate is of the float32 files, whose outputs {graph_format} changes"
        return {name: each.uncertified(reason) for name, each in self.thresholds.items()}


def _check_plain(value: Any, key: str) -> None:
    """Raises ConfigError for numbers that JSON does not have, and for texts that are long or cannot be encoded."""
    if isinstance(value, dict):
        for name, each in value.items():
            _check_plain(name, f"a name in {key}")
            _check_plain(each, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            _check_plain(each, f"{key}.{index}")
    elif isinstance(value, str):
        commands = any(unicodedata.category(each) == "Cc" for each in value)  # which a terminal would obey
        if len(value) > LONGEST_TEXT or commands or value != value.encode(errors="replace").decode():
            needed = f"Unicode text of at most {LONGEST_TEXT} characters, none of them control characters"
            raise ConfigError(f"{key} is {value!a:.100}; names are {needed}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}; numbers must be finite")


def _check_preprocessing(stored: dict[str, Any], model: ModelConfig) -> None:
    """Raises ConfigError unless an image becomes an input of the model."""
    made = from_plain(Preprocessing, stored, "preprocessing")
    for key in ("image_size", "in_channels"):
        if getattr(made, key) != getattr(model, key):
            raise ConfigError(f"preprocessing.{key} is {getattr(made, key)}, and the model takes {getattr(model, key)}")
    if made.resize_size > LARGEST_RESIZE * made.image_size:
        raise ConfigError(f"preprocessing.resize_size is {made.resize_size} for images of side {made.image_size}")


def _check_graphs(key: str, graphs: GraphSet, model: ModelConfig) -> None:
    """Raises ConfigError unless there is one file per exit, with the inputs and outputs that the model has."""
    if len(graphs.exits) != model.num_exits:
        raise ConfigError(f"{key} are {len(graphs.exits)} files for {model.num_exits} exits")
    inputs = graphs.exits[0].inputs
    batch = inputs[0].shape[0] if inputs and inputs[0].shape else None
    if batch is not None and not 1 <= batch <= LARGEST_BATCH:
        raise ConfigError(f"{key}.0.inputs are for {batch} images at once; it must be 1 to {LARGEST_BATCH}, or null")
    precision = graphs.precision if graphs.precision in PRECISIONS else "float32"
    for index, entry in enumerate(graphs.exits):
        for part, expected in zip(("inputs", "outputs"), exit_values(model, index, precision, batch), strict=True):
            if getattr(entry, part) != expected:
                described = "; ".join(f"{each.name} {list(each.shape)} {each.dtype}" for each in expected)
                raise ConfigError(f"{key}.{index}.{part} are not those of the model, which are {described}")


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of a bundle. Raises BundleError, naming it, if the folder holds none, or one that cannot be used."""
    path = Path(folder) / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"{folder} is not a bundle: it has no {MANIFEST_FILE}; make one with export.py --output"
        raise BundleError(message) from error
    except NotADirectoryError as error:
        what = content_of(Path(folder))[1] or "a file"
        remedy = "give the folder; of a checkpoint `dvt export CHECKPOINT --output FOLDER` makes one"
        raise BundleError(f"{folder} is not a bundle, which is a folder, but {what}; {remedy}") from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}. Copy the bundle again, or export it again") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != MANIFEST_FORMAT:
        newer = isinstance(version, int) and version > MANIFEST_FORMAT
        remedy = "Update the package" if newer else "Export the checkpoint again"
        known = f"this version of the package reads format {MANIFEST_FORMAT}"
        raise BundleError(f"{path} has format {version!r:.100}; {known}. {remedy}")
    try:
        manifest = from_plain(Manifest, content, "")
        ModelConfig.from_dict(content["model"])  # refuses keys that this version does not know
        return manifest
    except ConfigError as error:
        raise BundleError(f"{path} is damaged: {error}. Export the checkpoint again") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, whole or not at all. Raises ConfigError if it cannot be written."""
    path = folder / MANIFEST_FILE
    content = {"format": MANIFEST_FORMAT, "rule": RULE, **asdict(manifest), "model": manifest.model.to_dict()}
    with explained(path, ConfigError), replacing(path) as written:
        written.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def exit_values(
    config: ModelConfig, exit_index: int, precision: str = "float32", batch: int | None = None
) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Inputs and outputs of one exit's file; a `batch` of None leaves the number of images open. Images and
    probabilities are float32, what else is handed on `precision`."""

    def value(role: str, shape: Sequence[int], prefix: str = "") -> Value:
        dtype = "float32" if role in ("images", "probabilities") else precision
        return Value(role, prefix + role, (batch, *shape), dtype)

    taken, given = (handed_on_shapes(config, index) for index in (exit_index - 1, exit_index))
    inputs = [value("images", (config.in_channels, config.image_size, config.image_size))]
    inputs += [value(role, shape, "earlier_" * (role == "probabilities")) for role, shape in taken.items()]
    outputs = [value("probabilities", (config.num_classes,))]
    outputs += [value(role, shape, "next_") for role, shape in given.items() if role != "probabilities"]
    return tuple(inputs), tuple(outputs)


def describe_file(path: Path, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> GraphFile:
    """The entry of a file that lies at `path`."""
    return GraphFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), inputs, outputs)


def check_files(folder: Path, graphs: GraphSet) -> None:
    """Raises BundleError if a file of `graphs` is missing, or is not the one that the manifest describes."""
    for entry in graphs.exits:
        path = folder / entry.file
        if not path.is_file():
            raise BundleError(f"{folder} is incomplete: {entry.file} is missing; copy the bundle again")
        if path.stat().st_size != entry.bytes or hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
            reason = "its bytes and sha256 are not those of its manifest; copy the bundle again"
            raise BundleError(f"{path} was altered or cut short: {reason}")


def named_settings(thresholds: Any, num_exits: int) -> dict[str, Setting]:
    """One vector, or a dict of named ones, as settings; a single one is called "default", None gives none. Raises
    ConfigError for thresholds that are NaN, negative or of another number than `num_exits`."""
    if thresholds is None:
        return {}
    settings = {}
    for name, given in (thresholds if isinstance(thresholds, Mapping) else {"default": thresholds}).items():
        try:
            check_thresholds(given.values if isinstance(given, Setting) else given, num_exits)
            settings[str(name)] = given if isinstance(given, Setting) else Setting(given)
        except ConfigError as error:
            raise ConfigError(f"thresholds {name!r}: {error}") from error
    return settings
