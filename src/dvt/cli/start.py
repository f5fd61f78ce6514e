"""Where the commands begin, before the imports that take seconds: imports the standard library alone."""

import importlib
import sys
from collections.abc import Sequence

from dvt.signals import interrupt_on_signals


def start(module: str, *arguments: object) -> int:
    """Imports `module` and returns the exit code of its `main(*arguments)`. Ctrl-C ends it from here on with 130."""
    interrupt_on_signals()
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed for {sys.executable}. Run `bash scripts/setup_env.sh` and use "
            ".venv/bin/python, or `pip install -r requirements.txt`",
            file=sys.stderr,
        )
        return 2
    return main(*arguments)


def dvt(arguments: Sequence[str] | None = None) -> int:
    """The command `dvt`; None takes the arguments of the process."""
    return start("dvt.cli.main", arguments)


if __name__ == "__main__":
    sys.exit(dvt())
