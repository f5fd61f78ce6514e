"""Convert a released PyTorch checkpoint to MindSpore, or back: `scripts/convert_checkpoint.py IN OUT`; see --help."""

import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"


def run() -> int:
    if SRC.is_dir():  # a checkout works without being installed
        sys.path.insert(0, str(SRC))
    try:
        from dvt.convert import main
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed for {sys.executable}. Run `bash scripts/setup_env.sh` and use "
            ".venv/bin/python, or `pip install -r requirements.txt`",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:  # before there is anything that handles it
        return 130
    return main(sys.argv[1:], prog="convert_checkpoint.py")


if __name__ == "__main__":
    sys.exit(run())
