"""`Cascade`: a bundle that is loaded and run, exit by exit."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dvt.data.preprocess import Preprocessing
from dvt.deploy.backends import BACKENDS, RuntimeOptions, has_bfloat16
from dvt.deploy.manifest import BFLOAT16, CONVERTED, MEASURED, Manifest, Setting, check_files, read_manifest
from dvt.early_exit.decisions import check_thresholds, read_thresholds
from dvt.early_exit.loop import HandedOn, Predictions, check_images, run_all, run_cascade, run_in_batches
from dvt.errors import BundleError, ConfigError
from dvt.models.cost import handed_on_shapes
from dvt.value_checks import expanded

log = logging.getLogger(__name__)


class Cascade(AbstractContextManager):
    """Classifies images with the files of a bundle, stopping early as `dvt.AdaptiveClassifier` does.

    Its `manifest` is what the bundle says of itself; `class_names` are the names of the classes, or None;
    `preprocessing` makes a model input of an image (`dvt.data.Preprocessing`), or is None.

    Args:
        folder: The bundle, made by `dvt.deploy.export_bundle` or export.py.
        backend: "onnxruntime", "openvino", "mindspore" or "lite" (MindSpore Lite, on converted files).
        graph_format: Which files to run, such as "ONNX_INT8"; by default ONNX, MINDIR or LITE, as the backend takes.
        values: Those of `RuntimeOptions`, in its order: threads, device_id, verify, precision, providers.
        options: Those of `RuntimeOptions`, by name.

    Raises:
        BundleError: The folder is no bundle, files are missing or altered, or the format is not among them.
        ConfigError: Unknown backend, or an option that it does not have.
        DeviceError: The backend's runtime, or an execution provider, is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        backend: str = "onnxruntime",
        graph_format: str | None = None,
        *values: Any,
        **options: Any,
    ) -> None:
        if backend not in BACKENDS:
            raise ConfigError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
        make, formats = BACKENDS[backend]
        options, graph_format = _resolved(RuntimeOptions(*values, **options), backend, graph_format)
        folder = Path(expanded(folder, "the bundle"))
        self.graph_format = graph_format or formats[0]
        self.manifest: Manifest = read_manifest(folder)
        if self.graph_format not in self.manifest.graphs:
            formats = f"ONNX,{self.graph_format}" if self.graph_format in MEASURED else self.graph_format
            command = "scripts/run_lite_convert.sh" if formats == CONVERTED else f"export.py --format {formats}"
            there = ", ".join(self.manifest.graphs) or "no graphs"
            raise BundleError(f"{folder} holds {there}, but not {self.graph_format}; make it with {command}")
        graphs = self.manifest.graphs[self.graph_format]
        if options.verify:
            check_files(folder, graphs)
        model = self.manifest.model
        self._exits, self._image_shape = graphs.exits, (model.in_channels, model.image_size, model.image_size)
        self._backend = make(folder, graphs, options)
        self._moved = options.precision == "bfloat16" and self.graph_format != BFLOAT16
        fixed = graphs.exits[0].inputs[0].shape[0]
        self._batch_sizes = self.manifest.batch_sizes if fixed is None else [fixed]
        self._pads = self._backend.pads or fixed is not None
        self.class_names = self.manifest.class_names
        stored = self.manifest.preprocessing
        self.preprocessing = None if stored is None else Preprocessing.from_dict(stored)

    @property
    def runs_on(self) -> str:
        """The runtime, and the device, providers or precision that it uses."""
        return self._backend.description

    @property
    def thresholds(self) -> dict[str, tuple[float, ...]]:
        """The bundle's named thresholds for the files that are run; the first is the default."""
        return {name: setting.values for name, setting in self.settings.items()}

    @property
    def settings(self) -> dict[str, Setting]:
        """The same with what is known of them, and whether they are certified for what is run."""
        moved = "the certificate is not of outputs in bfloat16" if self._moved else None
        settings = self.manifest.settings(self.graph_format)
        return {name: setting.uncertified(moved) for name, setting in settings.items()}

    def predict(self, images: np.ndarray, thresholds: str | Sequence[float] | None = None) -> Predictions:
        """Classifies images, normalised float32 (B, I, S, S), each at the exit where it is confident enough.

        What is handed on of all B images is held at once, some 3 MB each for a DVT-DeiT-S: give large sets in parts.
        `thresholds` is the name of a setting of the bundle, or one number per exit, also as a text, "0.5,0.6,0"; None
        takes the bundle's default. Raises ConfigError for thresholds that do not fit, DataError for images of another
        shape, or with NaN or infinite pixels.
        """
        images, thresholds = check_images(images, self._image_shape), self.chosen(thresholds)
        return run_cascade(self.run_exit, images, thresholds, self.manifest.model.num_classes)

    def all_exits(self, images: np.ndarray) -> np.ndarray:
        """Every exit on every image: (B, I, S, S) -> probabilities (K, B, classes), to find thresholds from."""
        images = check_images(images, self._image_shape)
        return run_all(self.run_exit, images, len(self._exits), self.manifest.model.num_classes)

    def run_exit(
        self, index: int, images: np.ndarray, handed_on: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, HandedOn]:
        """One exit on n images: (n, I, S, S) and what the exit before handed on -> probabilities, what is handed on."""
        entry = self._exits[index]
        values = {"images": images, **handed_on}
        inputs = [values[value.role] for value in entry.inputs]
        outputs = run_in_batches(lambda part: self._backend.run(index, part), inputs, self._batch_sizes, self._pads)
        for value, output in zip(entry.outputs, outputs, strict=True):
            if output.shape[1:] != value.shape[1:]:
                given = f"{value.name} of shape {output.shape}, where its manifest says {value.shape}"
                raise BundleError(f"{entry.file} returns {given}; export it again")
        named = {value.role: output for value, output in zip(entry.outputs, outputs, strict=True)}
        return named["probabilities"], {name: named[name] for name in handed_on_shapes(self.manifest.model, index)}

    def close(self) -> None:
        """Frees what the backend holds outside of this process."""
        self._backend.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def chosen(self, thresholds: str | Sequence[float] | None) -> np.ndarray:
        """The thresholds (K,) that `predict` takes for its argument of this name. Raises ConfigError as it does."""
        settings = self.thresholds
        if thresholds is None:
            if not settings:
                remedy = "export a checkpoint in which `eval.py --mode 2 --eval.store` has stored them"
                raise ConfigError(f"the bundle has no thresholds: give {len(self._exits)} numbers, or {remedy}")
            thresholds = next(iter(settings))
        if isinstance(thresholds, str):
            if thresholds not in settings and ("," in thresholds or len(self._exits) == 1):
                return read_thresholds(thresholds, len(self._exits))
            if thresholds not in settings:
                there = ", ".join(settings) or "none"
                raise ConfigError(f"the bundle has no thresholds {thresholds!r}; it has: {there}")
            thresholds = settings[thresholds]
        return check_thresholds(thresholds, len(self._exits))


def _resolved(options: RuntimeOptions, backend: str, graph_format: str | None) -> tuple[RuntimeOptions, str | None]:
    """The options, and the format, that go with the precision: thresholds for bfloat16 are those of `ONNX_BF16`. Raises
    ConfigError for what the backend does not have."""
    if options.providers and backend != "onnxruntime":
        raise ConfigError(f"the {backend} backend has no execution providers; they are those of onnxruntime")
    if graph_format == BFLOAT16:
        options = replace(options, precision="bfloat16")
    if options.precision == "float32":
        return options, graph_format
    if options.precision != "bfloat16" or backend != "openvino":
        asked = f"precision is {options.precision!r} for the {backend} backend"
        raise ConfigError(f"{asked}; it must be float32, or bfloat16 with openvino")
    if not has_bfloat16():
        log.warning("this processor does not compute in bfloat16: running in float32")
        return replace(options, precision="float32"), "ONNX" if graph_format == BFLOAT16 else graph_format
    return options, graph_format or BFLOAT16
