"""The processes of a job that a test has started."""

import contextlib
from pathlib import Path

import psutil


def processes_of(folder: Path) -> list[psutil.Process]:
    """Everything that runs in `folder`, where launchers and workers of one test are alone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
