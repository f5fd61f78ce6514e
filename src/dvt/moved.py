"""Names of 0.1.0, and where they are now: an old one warns, and works."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import warnings
from collections.abc import Sequence
from types import CodeType, ModuleType

# (start of the old name, start of the new one), both below `dvt`: how the names go on.
KEPT_ENDINGS = {
    ("", "early_exit."): "budgets gathering outcomes",
    ("", "evaluation."): "predict published",
    ("", "models."): "grids kernels variants",
    ("cluster.", "cli."): "launch",
    ("data.", "data.augment."): "draws mixing policies",
    ("data.", "data.sources."): "cifar fashion_mnist image_folder record_writer records scale",
    ("deploy.onnx_", "deploy.onnx."): "exits graph",
    ("report_", "report."): "figures page tables words",
    ("training.", "checkpoint."): "transfer",
}
MODULES = {old + name: new + name for (old, new), names in KEPT_ENDINGS.items() for name in names.split()} | {
    "__main__": "cli.start",  # no old name, but `python -m dvt` finds it in the same way
    "adaptive": "early_exit.loop",
    "calibration": "early_exit.temperature",
    "ckpt_format": "checkpoint.format",
    "cli_support": "cli.support",
    "config_io": "config.files",
    "data.fetch": "data.sources.fashion_mnist",
    "data.recipe": "data.images",
    "deploy.cascade": "deploy.runner",
    "deploy.lite_backend": "deploy.lite",
    "deploy.lite_files": "deploy.lite",
    "deploy.mindir": "deploy.writers",
    "deploy.onnx_files": "deploy.onnx.exits",
    "entry": "cli.start",
    "exit_rules": "early_exit.scores",
    "inference": "early_exit.classifier",
    "pytorch_files": "checkpoint.pytorch",
    "report_html": "report.tables",
    "report_pictures": "report.page",
    "threshold_search": "early_exit.search",
    "training.board": "training.metrics",
    "training.curves": "training.metrics",
    "training.environment": "training.folder",
    "training.interrupt": "training.monitor",
    "training.profiling": "training.feed",
    "training.records": "training.metrics",
}
"""Old module below `dvt` -> new one. `config`, `checkpoint`, `early_exit`, `report`, `cli` are now packages."""


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the new module under the old name; it comes last, so that it is asked only for what is nowhere else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = MODULES.get(fullname.removeprefix("dvt.")) if fullname.startswith("dvt.") else None
        return importlib.machinery.ModuleSpec(fullname, self, origin=f"dvt.{new}") if new else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {spec.origin}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(spec.origin)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed; the import system has only written the old name into it."""
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str) -> CodeType:
        """For `python -m`."""
        spec = importlib.util.find_spec(f"dvt.{MODULES[fullname.removeprefix('dvt.')]}")
        return spec.loader.get_code(spec.name)
