"""`python -m dvt.cli.lite BUNDLE TARGET`: registers what scripts/run_lite_convert.sh has converted."""

import sys
from collections.abc import Sequence

from dvt.cli.support import Parser, run_command
from dvt.deploy.lite.files import TARGETS, register


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> None:
    parser = Parser("lite_files", "Register files converted for MindSpore Lite.")
    parser.add_path("bundle", "folder that export.py wrote")
    parser.add_argument("target", choices=TARGETS)
    given = parser.parse(argv)
    converted = register(given["bundle"], given["target"])
    print(f"registered {', '.join(entry.file for entry in converted.exits)} in {given['bundle']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
