"""`dvt train` and train.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvt.cli.support import Parser, given_keys, print_if_asked, set_up_logging
from dvt.config.files import config_from_dict
from dvt.config.sections import RunConfig


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    given, config = _parse(argv, prog)
    print_if_asked(given, config)
    set_up_logging(given.get("log_level", "info"))
    from dvt.training.run import train

    train(config)


def parse(argv: Sequence[str], prog: str = "dvt train") -> RunConfig:
    """The configuration that the arguments ask for."""
    return _parse(argv, prog)[1]


def _parse(argv: Sequence[str], prog: str) -> tuple[dict[str, Any], RunConfig]:
    parser = Parser(prog, "Train a DVT and save its checkpoints.", usage=f"{prog} [--config YAML] [--KEY VALUE ...]")
    parser.add_config(shown=vars(RunConfig()))
    given = parser.parse(argv, defaults=False)
    if given.get("resume") and "output" in given and "config" not in given:
        saved = Path(given["output"]) / "config.yaml"
        if saved.exists():
            given["config"] = [saved]
    return given, config_from_dict(given_keys(given))
