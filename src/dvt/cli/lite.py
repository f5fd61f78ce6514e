"""`python -m dvt.cli.lite BUNDLE TARGET`: registers what scripts/run_lite_convert.sh has converted."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dvt.cli.support import Parser, run_command
from dvt.deploy.lite.files import register
from dvt.value_checks import PATH


@dataclass
class LiteOptions:
    """Register files converted for MindSpore Lite.

    Args:
        bundle: Folder that export.py wrote.
        target: What they were converted for.
    """

    bundle: str = field(metadata=PATH)
    target: Literal["cpu", "ascend"]


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""

    def run(words: list[str]) -> None:
        options, _ = Parser("lite_files", LiteOptions).parse(words)
        converted = register(options.bundle, options.target)
        print(f"registered {', '.join(entry.file for entry in converted.exits)} in {options.bundle}")

    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
