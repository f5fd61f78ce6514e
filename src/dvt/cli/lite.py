"""`python -m dvt.cli.lite BUNDLE TARGET`: registers what scripts/run_lite_convert.sh has converted."""

import sys
from collections.abc import Sequence

from dvt.cli.support import PlainParser, run_command
from dvt.deploy.lite.files import TARGETS, register


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> None:
    parser = PlainParser(prog="lite_files", description="Register files converted for MindSpore Lite.")
    parser.add_argument("bundle", help="folder that export.py wrote")
    parser.add_argument("target", choices=TARGETS)
    options = parser.parse_args(arguments)
    converted = register(options.bundle, options.target)
    print(f"registered {', '.join(entry.file for entry in converted.exits)} in {options.bundle}")


if __name__ == "__main__":
    sys.exit(main())
