"""What a run ran with: `environment.json`, the versions, command, device and revision of every start."""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dvt.safe_files import explained, replacing

ENVIRONMENT_FILE = "environment.json"
GIT_SECONDS = 10  # a working tree on a slow network disk must not hold up the run

log = logging.getLogger(__name__)


def write_environment(folder: Path, device: str) -> None:
    """Adds this start, on the `device` in words, to `environment.json` in `folder`. Raises DVTError if it cannot be
    written. The revision is that of this package's checkout, null where it is none or git is missing."""
    path, starts = folder / ENVIRONMENT_FILE, []
    if path.exists():
        try:
            starts = list(json.loads(path.read_text(encoding="utf-8"))["starts"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s cannot be read; a new one replaces it", path)
    packages = {each.metadata["Name"]: each.version for each in metadata.distributions() if each.metadata["Name"]}
    start = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_state(Path(__file__).resolve().parents[3]),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
    with explained(path), replacing(path) as written:
        written.write_text(json.dumps({"starts": [*starts, start]}, indent=2) + "\n", encoding="utf-8")


def git_state(root: Path) -> dict[str, Any] | None:
    """`revision` and whether tracked files differ from it (`dirty`), if `root` is the top of a git checkout.

    An installed package may lie inside somebody else's checkout, whose revision says nothing about it.
    """
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    revision, _, dirty = done.stdout.strip().partition("-")
    return {"revision": revision, "dirty": bool(dirty)}
