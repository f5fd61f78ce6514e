"""`dvt train` and train.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvt.cli.support import HIDDEN, Parser, given_keys, print_if_asked, set_up_logging
from dvt.config.files import config_from_dict
from dvt.config.sections import RunConfig
from dvt.errors import ConfigError
from dvt.value_checks import expanded


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    given, config = _parse(argv, prog)
    print_if_asked(given, config)
    set_up_logging(given["log_level"])
    from dvt.training.run import train

    train(config)


def parse(argv: Sequence[str], prog: str = "dvt train") -> RunConfig:
    """The configuration that the arguments ask for."""
    return _parse(argv, prog)[1]


def _parse(argv: Sequence[str], prog: str) -> tuple[dict[str, Any], RunConfig]:
    parser = Parser(prog, "Train a DVT and save its checkpoints.", usage=f"{prog} [--config YAML] [--KEY VALUE ...]")
    parser.add_config(shown=vars(RunConfig()))
    parser.add_argument("words", nargs="*", help=HIDDEN)
    given = parser.parse(argv)
    if given["words"]:
        raise ConfigError(
            f"{prog} does not know what {given['words'][0]} is for: --config takes configuration files, --data_path "
            "the images, --output the folder of the run; --resume takes no file and goes on with the run in --output"
        )
    if given.get("resume") and "output" in given and not given["config"]:
        saved = Path(expanded(given["output"], "output")) / "config.yaml"
        if saved.exists():
            given["config"] = [saved]
    return given, config_from_dict(given_keys(given))
