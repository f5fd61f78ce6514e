"""The exits of a bundle on MindSpore Lite: in this process, or in a worker under Lite's own Python."""

import importlib.util
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvt.deploy.lite import session as lite_session
from dvt.deploy.manifest import GraphSet
from dvt.errors import BundleError, DeviceError

PYTHON_VARIABLE = "DVT_LITE_PYTHON"  # names the interpreter that has mindspore_lite, if it is not this one


class LiteBackend:
    """A `dvt.deploy.backends.Backend` for converted files (`.ms` on the CPU, `.mindir` on Ascend).

    They take the listed batch sizes only.
    """

    pads = True

    def __init__(self, folder: Path, graphs: GraphSet, threads: int | None, device_id: int) -> None:
        python = os.environ.get(PYTHON_VARIABLE)
        if python is None and importlib.util.find_spec("mindspore_lite") is None:
            raise DeviceError(
                f"the lite backend needs the package mindspore_lite, which {sys.executable} does not have; install it, "
                f"or name a Python that has it with {PYTHON_VARIABLE}=/path/to/python"
            )
        files = [str(folder / entry.file) for entry in graphs.exits]
        arguments = (files, graphs.details.get("target", "cpu"), device_id, threads)
        try:
            self._sessions = Worker(python, arguments) if python else lite_session.Sessions(*arguments)
        except DeviceError:
            raise
        except RuntimeError as error:
            raise BundleError(f"MindSpore Lite cannot run the files of {folder}: {error}") from error
        self._names = [[value.name for value in entry.inputs] for entry in graphs.exits]
        self._lock = threading.Lock()

    def run(self, index: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One exit on inputs in the manifest's order; its outputs in that order."""
        with self._lock:  # one question at a time, or a thread reads another's answer
            return self._sessions.run(index, self._names[index], list(inputs))

    def close(self) -> None:
        """Ends the worker, if there is one."""
        self._sessions.close()


class Worker:
    """`lite_session.Sessions`, made of `arguments`, in another process.

    Raises DeviceError if the process does not start or ends, RuntimeError if Lite fails.
    """

    def __init__(self, python: str, arguments: Sequence[Any]) -> None:
        self._python = python
        command = [python, lite_session.__file__, "serve"]
        # Lite must not meet the packages of this interpreter.
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
        except OSError as error:
            raise DeviceError(f"{PYTHON_VARIABLE}={python} cannot be run: {error.strerror}") from error
        try:
            self._ask(*arguments)
        except BaseException:
            self.close()
            raise

    def run(self, index: int, names: list[str], arrays: list[np.ndarray]) -> list[np.ndarray]:
        """As `lite_session.Sessions.run`."""
        return self._ask(index, names, arrays)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, *arguments: Any) -> Any:
        try:
            lite_session.send(self._process.stdin, arguments)
            error, outputs = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            raise DeviceError(
                f"the MindSpore Lite worker of {PYTHON_VARIABLE}={self._python} ended unexpectedly; check that "
                f"`{self._python} -c 'import mindspore_lite'` works"
            ) from None
        if error:
            raise RuntimeError(error)
        return outputs
