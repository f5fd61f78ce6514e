"""Deployment: a model as a bundle of files, and runners for it that need no training code.

`export_bundle` writes a bundle and needs MindSpore; `Cascade` runs one, with ONNX Runtime, MindSpore or MindSpore Lite,
and imports only the one it is asked for. A reader of the code starts at `manifest` (what a bundle is), then `runner`
(running one) or `bundle` (making one).
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvt.deploy.bundle import export_bundle
    from dvt.deploy.options import BundleOptions
    from dvt.deploy.recalibration import remeasure
    from dvt.deploy.runner import Cascade
    from dvt.early_exit.loop import Predictions

__all__ = ["BundleOptions", "Cascade", "Predictions", "export_bundle", "remeasure"]

_DEFINED_IN = {
    "BundleOptions": "dvt.deploy.options",
    "Cascade": "dvt.deploy.runner",
    "Predictions": "dvt.early_exit.loop",
    "export_bundle": "dvt.deploy.bundle",
    "remeasure": "dvt.deploy.recalibration",
}


os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it once, when it is imported


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DEFINED_IN[name]), name)
