"""The errors for a user's mistake: what was given, what is needed and what to do.

`dvt.cli.support.run_command` prints the message alone. It ends with code 2, or with 1 for an error that has left
`work_begun`; anything else that escapes is called a bug and ends with 1. With --debug both show their traceback.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class DVTError(Exception):
    """Base of all errors meant for users."""


class ConfigError(DVTError, ValueError):
    """A configuration that cannot be built; the message names the key."""


class CheckpointError(DVTError, ValueError):
    """A weights file that is missing, incomplete, of another model, or not to be trusted."""


class DataError(DVTError, ValueError):
    """A data set that is missing, empty, inconsistent or holds a bad image; the message names the file or class."""


class DeviceError(DVTError, RuntimeError):
    """A device that was asked for and is not there."""


class BundleError(DVTError, ValueError):
    """An exported bundle that is incomplete, altered, of another version, or lacks what is asked of it."""


@contextmanager
def work_begun() -> Iterator[None]:
    """Around the work that follows all checks: an error that leaves it is a failure on the way, not a refusal."""
    try:
        yield
    except Exception as error:
        error.after_work_begun = True
        raise


def listing(names: Iterable[str], shown: int = 3) -> str:
    """'a, b, c and 12 more', for messages."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def did_you_mean(given: str, known: Iterable[str], mark: str = "") -> str:
    """ "; did you mean 'train.epochs'?" with `mark` before each name whose last part is near, else the empty string."""
    known = list(known)
    last = {name: name.rpartition(".")[2] for name in [given, *known]}
    near = [name for name in known if last[name] == last[given]] or difflib.get_close_matches(given, known, 1)
    if not near:
        ends = difflib.get_close_matches(last[given], [last[name] for name in known], 1)
        near = [name for name in known if last[name] in ends]
    return f"; did you mean {' or '.join(repr(mark + name) for name in near)}?" if near else ""


def reason_of(error: BaseException) -> str:
    """What an exception of another package says, in one line; the system's words if it came from the system."""
    return (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
