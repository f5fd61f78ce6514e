"""Train a DVT: `python train.py --config config/quickstart.yaml --output runs/mine`; --help lists all options."""

import sys
from pathlib import Path

SRC = Path(__file__).resolve().parent / "src"


def run() -> int:
    if SRC.is_dir():  # a checkout works without being installed
        sys.path.insert(0, str(SRC))
    from dvt.cli.start import start

    return start("dvt.cli.main", ["train", *sys.argv[1:]], "train.py")


if __name__ == "__main__":
    sys.exit(run())
