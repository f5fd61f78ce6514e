"""`dvt info`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dvt.cli.support import Parser, given_keys, print_if_asked
from dvt.config.files import config_from_dict
from dvt.errors import ConfigError
from dvt.models.variants import ModelConfig, list_models


@dataclass
class InfoOptions:
    """List the models, or describe one: its parameters and its cost, exit by exit.

    Args:
        variant: Which model to describe, or which checkpoint or bundle, a file or folder, with its thresholds; null
            lists all models.
    """

    variant: str | None = None


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    parser = Parser(prog, InfoOptions, words=["variant"])
    parser.add_config(["model"])
    options, given = parser.parse(argv)
    keys = {key: value for key, value in given_keys(given).items() if key.startswith("model.")}
    path = Path(options.variant or "").expanduser()
    if options.variant not in (None, *list_models()) and (path.suffix in (".ckpt", ".safetensors") or path.exists()):
        if keys or given["config"]:
            raise ConfigError(f"{options.variant} says itself of which model it is; leave out the other keys")
        _describe_file(path)
        return
    if options.variant is not None:
        keys["model.name"] = options.variant
    from dvt.models.cost import describe_all, describe_model

    if not keys and not given["config"]:
        print(describe_all())
        return
    config = config_from_dict(keys)
    print_if_asked(given, config)
    classes, channels = config.model.num_classes or ModelConfig.num_classes, config.model.in_channels or 3
    print(describe_model(config.model.resolve(classes, channels)))


def _describe_file(path: Path) -> None:
    from dvt.checkpoint.native import read_checkpoint
    from dvt.deploy.manifest import MANIFEST_FILE, read_manifest
    from dvt.early_exit.budgets import Choice
    from dvt.early_exit.decisions import thresholds_text
    from dvt.models.cost import describe_model

    if not (path / MANIFEST_FILE).is_file():
        loaded = read_checkpoint(path)
        choice = Choice.from_metadata(loaded.metadata)
        print(describe_model(loaded.model), *(choice.describe() if choice else ["no thresholds are stored"]), sep="\n")
        return
    manifest = read_manifest(path)
    print(describe_model(manifest.model))
    for graph_format in manifest.graphs:
        print(f"settings of {graph_format}:")
        for name, setting in manifest.settings(graph_format).items():
            cost = "" if setting.expected_gmacs is None else f"; {setting.expected_gmacs:.4g} GMACs/image"
            print(f"  {name}: {thresholds_text(setting.values)}{cost}\n    {setting.promise}")
            if setting.certificate:
                print(f"    from {setting.certificate.evidence()}")
