"""Dynamic Vision Transformer (DVT) for MindSpore.

`import dvt` loads nothing heavy: every name below is imported when it is first used, and MindSpore only by those that
need it (`build_model`, `AdaptiveClassifier` and filling a model in `dvt.convert`).
"""

import pkgutil
import sys
from typing import TYPE_CHECKING, Any

from dvt import moved

if TYPE_CHECKING:
    from dvt import checkpoint, convert, cost, early_exit
    from dvt.checkpoint.native import from_pretrained, save_pretrained
    from dvt.early_exit.classifier import AdaptiveClassifier
    from dvt.models.cascade import build_model
    from dvt.models.variants import list_models

__version__ = "0.1.0"

__all__ = [
    "AdaptiveClassifier",
    "__version__",
    "build_model",
    "checkpoint",
    "convert",
    "cost",
    "early_exit",
    "from_pretrained",
    "list_models",
    "save_pretrained",
]

_DEFINED_IN = {  # what is no module of its own
    "AdaptiveClassifier": "dvt.early_exit.classifier:AdaptiveClassifier",
    "build_model": "dvt.models.cascade:build_model",
    "from_pretrained": "dvt.checkpoint.native:from_pretrained",
    "list_models": "dvt.models.variants:list_models",
    "save_pretrained": "dvt.checkpoint.native:save_pretrained",
}

sys.meta_path.append(moved.MovedModules())  # last: asked only for what is nowhere else


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = pkgutil.resolve_name(_DEFINED_IN.get(name, f"dvt.{name}"))
    except ModuleNotFoundError as error:
        if error.name != "mindspore":
            raise
        message = f"dvt.{name} needs MindSpore, which is not installed: pip install 'dvt-mindspore[train]'"
        raise ModuleNotFoundError(message, name="mindspore") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
