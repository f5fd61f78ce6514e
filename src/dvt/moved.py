"""Names that users of 0.1.0 know, and where they are now: importing or reading an old one warns, and works."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import CodeType, ModuleType

MODULES = {
    "adaptive": "early_exit.loop",
    "budgets": "early_exit.budgets",
    "calibration": "early_exit.temperature",
    "ckpt_format": "checkpoint.format",
    "cli_support": "cli.support",
    "cluster.launch": "cli.launch",
    "config_io": "config.files",
    "data.cifar": "data.sources.cifar",
    "data.draws": "data.augment.draws",
    "data.fashion_mnist": "data.sources.fashion_mnist",
    "data.fetch": "data.sources.fetch",
    "data.image_folder": "data.sources.image_folder",
    "data.mixing": "data.augment.mixing",
    "data.policies": "data.augment.policies",
    "data.recipe": "data.augment.recipe",
    "data.record_writer": "data.sources.record_writer",
    "data.records": "data.sources.records",
    "data.scale": "data.sources.scale",
    "deploy.cascade": "deploy.runner",
    "deploy.lite_backend": "deploy.lite.backend",
    "deploy.lite_files": "deploy.lite.files",
    "deploy.lite_session": "deploy.lite.session",
    "deploy.onnx_exits": "deploy.onnx.exits",
    "deploy.onnx_files": "deploy.onnx.files",
    "deploy.onnx_graph": "deploy.onnx.graph",
    "entry": "cli.start",
    "exit_rules": "early_exit.scores",
    "gathering": "early_exit.gathering",
    "grids": "models.grids",
    "inference": "early_exit.classifier",
    "kernels": "models.kernels",
    "outcomes": "early_exit.outcomes",
    "predict": "evaluation.predict",
    "published": "evaluation.published",
    "pytorch_files": "checkpoint.pytorch",
    "report_figures": "report.figures",
    "report_html": "report.tables",
    "report_page": "report.page",
    "report_pictures": "report.page",
    "report_tables": "report.tables",
    "report_words": "report.words",
    "threshold_search": "early_exit.search",
    "training.board": "training.metrics",
    "training.curves": "training.metrics",
    "training.records": "training.metrics",
    "training.transfer": "checkpoint.transfer",
    "variants": "models.variants",
}
"""Old module below `dvt` -> new one. `config`, `checkpoint`, `early_exit`, `report`, `cli` are now packages."""


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
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


def install() -> None:
    """Makes the old names importable."""
    sys.meta_path.append(_MovedModules())
