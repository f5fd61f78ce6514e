"""Deployment: a model as a bundle of files, and runners for it that need no training code.

`export_bundle` writes a bundle and needs MindSpore; `Cascade` runs one, with ONNX Runtime, MindSpore or MindSpore Lite,
and imports only the one it is asked for. A reader of the code starts at `manifest` (what a bundle is), then `runner`
(running one) or `bundle` (making one).
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from dvt.deploy.recalibration import remeasure
from dvt.deploy.runner import Cascade
from dvt.early_exit.loop import Predictions

if TYPE_CHECKING:
    from dvt.deploy.bundle import BundleOptions, export_bundle

__all__ = ["BundleOptions", "Cascade", "Predictions", "export_bundle", "remeasure"]

# ONNX Runtime and OpenVINO report to their makers when they are imported, but for this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dvt.deploy import bundle  # needs MindSpore

    return getattr(bundle, name)
