"""`dvt infer`: classifies the images of a folder with an exported bundle; also `python -m dvt.cli.infer`.

The runners need neither MindSpore nor the training modules.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dvt.cli.support import Parser, run_command
from dvt.deploy.infer import InferRequest, infer


def run(argv: Sequence[str], prog: str = "infer") -> int:
    """The command; 1 if images could not be classified."""
    parser = Parser(
        prog,
        "Classify images with an exported bundle.",
        usage=f"{prog} bundle data_path [--KEY VALUE ...]",
        epilog="Exit code 0: all done; 1: some files could not be classified; 2: nothing was done.",
    )
    parser.add_path("bundle", "folder that export.py wrote")
    parser.add_path("data_path", "an image, a folder of images, or a folder of class folders")
    parser.add_path("--output", "write the predictions to this CSV file, not to standard output")
    parser.add_keys(InferRequest, skip=["bundle", "data_path", "output"])
    given = parser.parse(argv)
    paths = {name: given[name] and Path(given[name]) for name in ("bundle", "data_path", "output")}
    return 1 if infer(parser.options(InferRequest, given | paths)).failed else 0


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
