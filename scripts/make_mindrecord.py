"""Make MindRecord files of an image folder: `scripts/make_mindrecord.py DATA_PATH OUTPUT`; see --help."""

import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"


def run() -> int:
    if SRC.is_dir():  # a checkout works without being installed
        sys.path.insert(0, str(SRC))
    from dvt.cli.start import start

    return start("dvt.cli.main", ["records", *sys.argv[1:]], "make_mindrecord.py")


if __name__ == "__main__":
    sys.exit(run())
