"""Convert a released PyTorch checkpoint to MindSpore, or back: `scripts/convert_checkpoint.py IN OUT`; see --help."""

import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"


def run() -> int:
    if SRC.is_dir():  # a checkout works without being installed
        sys.path.insert(0, str(SRC))
    from dvt.cli.start import start

    return start("dvt.cli.main", ["convert", *sys.argv[1:]], "convert_checkpoint.py")


if __name__ == "__main__":
    sys.exit(run())
