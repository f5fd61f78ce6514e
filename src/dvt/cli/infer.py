"""`dvt infer`: classifies the images of a folder with an exported bundle; also `python -m dvt.cli.infer`.

The runners need neither MindSpore nor the training modules.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dvt.cli.support import PlainParser, run_command
from dvt.deploy.backends import BACKENDS
from dvt.deploy.infer import InferRequest, infer
from dvt.errors import ConfigError
from dvt.safe_files import explained


def main(arguments: Sequence[str], prog: str = "dvt infer") -> None:
    """Runs the command. Raises DVTError for `dvt.cli.support.run_command`."""
    parser = PlainParser(prog=prog, description="Classify images with an exported bundle.")
    parser.add_argument("bundle", type=Path, help="folder that export.py wrote")
    parser.add_argument("data_path", type=Path, help="an image, a folder of images, or a folder of class folders")
    parser.add_argument("--backend", choices=BACKENDS, default="onnxruntime")
    parser.add_argument("--format", help="files to run, such as ONNX_INT8; by default those that the backend takes")
    parser.add_argument("--thresholds", help="name of a setting of the bundle, or numbers with commas in between")
    parser.add_argument("--batch_size", type=int, default=8, help="images per call (default 8)")
    parser.add_argument("--device_id", type=int, default=0, help="card of MindSpore Lite on Ascend (default 0)")
    parser.add_argument("--output", type=Path, help="write the predictions to this CSV file, not to standard output")
    options = vars(parser.parse_args(arguments))
    del options["debug"]
    output = options.pop("output")
    found = infer(InferRequest(**options))
    if output is None:
        found.write_csv(sys.stdout)
    else:
        with explained(output, ConfigError), output.open("w", encoding="utf-8", newline="") as stream:
            found.write_csv(stream)
    print(found.summary(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(lambda words: main(words, "infer"), sys.argv[1:]))
