"""`dvt infer`: classifies the images of a folder with an exported bundle; also `python -m dvt.cli.infer`.

The runners need neither MindSpore nor the training modules.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dvt.cli.support import Parser, run_command
from dvt.deploy.infer import InferRequest, infer
from dvt.errors import ConfigError
from dvt.safe_files import explained


def run(argv: Sequence[str], prog: str = "infer") -> None:
    """The command."""
    usage = f"{prog} bundle data_path [--KEY VALUE ...]"
    parser = Parser(prog, "Classify images with an exported bundle.", usage=usage)
    parser.add_path("bundle", "folder that export.py wrote")
    parser.add_path("data_path", "an image, a folder of images, or a folder of class folders")
    parser.add_path("--output", "write the predictions to this CSV file, not to standard output")
    parser.add_keys(InferRequest, skip=["bundle", "data_path"])
    given = parser.parse(argv)
    paths = {name: Path(given[name]) for name in ("bundle", "data_path")}
    found = infer(parser.options(InferRequest, given | paths))
    if given["output"] is None:
        found.write_csv(sys.stdout)
    else:
        output = Path(given["output"])
        with explained(output, ConfigError), output.open("w", encoding="utf-8", newline="") as stream:
            found.write_csv(stream)
    print(found.summary(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
