"""What to write for a model: the options of an export, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from dvt.deploy.manifest import FORMATS, PRECISIONS, Setting
from dvt.early_exit.loop import DEFAULT_BATCH_SIZES, check_batch_sizes
from dvt.errors import ConfigError

Calibration = tuple[np.ndarray, np.ndarray | None]
"""Images (n, I, S, S) and their classes (n,), or None."""


@dataclass(frozen=True)
class BundleOptions:
    """What `dvt.deploy.export_bundle` writes.

    Args:
        formats: Of "MINDIR", "ONNX" and "ONNX_INT8"; the last also needs ONNX and `calibration`.
        thresholds: One threshold per exit, or a dict of such vectors by name, the first the default; None for none.
        class_names: Names of the classes, in the order of the outputs.
        preprocessing: What makes model inputs of images, `Splits.preprocessing` of `dvt.data`.
        batch_sizes: Numbers of images that backends with fixed shapes (MindSpore Lite) are prepared for.
        precision: "float32" or "float16". Images and probabilities stay float32, what exits hand on does not.
        batch_size: Fixes the number of images per call of the MindIR files; None leaves it open.
        calibration: Images and classes with which the thresholds of ONNX_INT8 are measured.
        replace: Write over a bundle of other weights; without it formats are added to a bundle of the same weights.

    Raises:
        ConfigError: Options that do not fit each other, or packages that are missing.
    """

    formats: Sequence[str] = ("ONNX",)
    thresholds: Sequence[float] | Mapping[str, Sequence[float] | Setting] | None = None
    class_names: Sequence[str] | None = None
    preprocessing: Mapping[str, Any] | None = None
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES
    precision: str = "float32"
    batch_size: int | None = None
    calibration: Calibration | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats or isinstance(self.formats, str):
            given = self.formats if isinstance(self.formats, str) else ", ".join(unknown) or "none"
            raise ConfigError(f"unknown format {given}; give a list of {', '.join(FORMATS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}; choose from {', '.join(PRECISIONS)}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1, or None to leave it open")
        check_batch_sizes(self.batch_sizes)
        if "ONNX_INT8" in self.formats:
            if "ONNX" not in self.formats or self.precision != "float32":
                raise ConfigError(
                    "ONNX_INT8 is made of float32 ONNX files: ask for both formats, with precision float32"
                )
            if self.calibration is None:
                raise ConfigError("ONNX_INT8 moves confidences: give calibration images to measure its thresholds with")
        for package in ("onnx", "onnxruntime") if "ONNX" in self.formats else ():
            if find_spec(package) is None:
                raise ConfigError(f"ONNX export needs the package {package}: pip install 'dvt-mindspore[export]'")
