"""Which error came first, and what it means: pure functions on the logs of the workers. Imports no framework.

Known errors stand in `known_errors.yaml`. A failed worker makes the others fail too, and a user needs the error that
caused the others. So each belongs to one of four classes, and the earliest of the first class that has any is the
answer:

0. a worker that the scheduler no longer heard of, although it had neither ended nor logged what would end it: the
   others fail in many ways then, not all of them known;
1. what ended a worker by itself: a traceback, an `error:` line, a known code, a signal;
2. a line that MindSpore or this package logged as an error, and after which the worker may have gone on;
3. what follows from the failure of another worker, and everything else that the scheduler and msrun report.
"""

import re
import signal
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from importlib import resources

import yaml

SILENT, ENDED_A_WORKER, LOGGED, FOLLOWS = range(4)

SHOWN_LINES = 16


@dataclass(frozen=True)
class KnownError:
    """One row of the table, which explains the fields."""

    name: str
    pattern: str
    cause: str
    follows: bool = False


_TABLE = yaml.safe_load((resources.files(__package__) / "known_errors.yaml").read_text(encoding="utf-8"))
KNOWN_ERRORS = tuple(KnownError(**row) for row in _TABLE["errors"])

# "[ERROR] DEVICE(123,7f,python):2026-11-25-17:12:08.287.000 [file:line] text"; this package: "17:12:08 ERROR   text".
_STAMP = r"(\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d\.\d{3})"
_LEVELS = "(?:DEBUG|INFO|WARNING|(?P<error>ERROR|CRITICAL))"
_MINDSPORE_LINE = re.compile(rf"\[{_LEVELS}\] [\w.]+\([^)]*\):{_STAMP}")
_OWN_LINE = re.compile(rf"(\d\d:\d\d:\d\d) {_LEVELS}\b")
_NO_LONGER_HEARD = re.compile(r"The node: (\d+) is timed out")
_CODE_LINE = re.compile(r"E[A-Z]\d{4}: ")
_TRACEBACK = "Traceback (most recent call last):"
_FATAL_LINE = re.compile(r"Traceback \(most |error: |Fatal Python error: |terminate called after |Segmentation fault")
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


@dataclass(frozen=True)
class WorkerLog:
    """The log of one process, and how the process ended; times are local."""

    rank: int | None  # None for the scheduler and msrun
    path: str  # as the user should see it
    text: str
    modified: datetime  # when the file was last written to
    exit_code: int | None = None  # negative for a signal; None if others ended it or it is not known
    ended: datetime | None = None  # when that was noticed


@dataclass(frozen=True)
class WorkerError:
    """One error of one process."""

    rank: int | None  # None for the scheduler and msrun
    path: str  # of the log
    line: int | None  # its first in the log, from 1; None for an end without a message
    time: datetime  # its own time stamp, else the next one in its log, else the last change of the log
    text: str  # tracebacks are not shortened
    error_class: int  # SILENT, ENDED_A_WORKER, LOGGED or FOLLOWS
    cause: str = ""  # what usually causes it
    known: KnownError | None = None  # the row of the table that it matches


def recognise(text: str) -> KnownError | None:
    """The first row of the table that `text` shows, or None; rows that are causes go before rows that are effects."""
    found = [known for known in KNOWN_ERRORS if re.search(known.pattern, text, re.MULTILINE)]
    return min(found, key=lambda known: known.follows, default=None)


def errors_in(log: WorkerLog) -> list[WorkerError]:
    """All errors of one log in its order, then the end of the worker, unless an error of the log explains it."""
    lines = log.text.splitlines()
    errors = [_error(log, block, lines[first:], first + 1) for first, block in _blocks(lines)]
    code = log.exit_code or 0
    # An error in the log explains any end but a kill: MindSpore may crash while it shuts down after a lost peer.
    explained = code != -signal.SIGKILL and any(error.error_class != LOGGED for error in errors)
    if log.rank is not None and code and not explained:
        errors.append(_end(log, code))
    return errors


def earliest_error(logs: Iterable[WorkerLog]) -> WorkerError | None:
    """The error that most likely caused all others; of several at the same time that of the lowest rank."""
    logs = list(logs)
    errors = [error for log in logs for error in errors_in(log)]
    errors += _silent(logs, errors)
    return min(
        errors, key=lambda each: (each.error_class, each.time, -1 if each.rank is None else each.rank), default=None
    )


def _silent(logs: Sequence[WorkerLog], errors: Iterable[WorkerError]) -> Iterator[WorkerError]:
    """The workers that the scheduler lost while they had neither ended by themselves nor logged why they would."""
    explained = {error.rank for error in errors if error.error_class == ENDED_A_WORKER}
    here = {log.rank for log in logs}
    for log in (log for log in logs if log.rank is None):
        for number, line in enumerate(log.text.splitlines(), start=1):
            lost = _NO_LONGER_HEARD.search(line)
            if lost and int(lost[1]) not in explained:
                when = _time(line, log.modified) or log.modified
                cause = _TABLE["silent"] if int(lost[1]) in here else ""  # elsewhere it may have ended
                yield WorkerError(int(lost[1]), log.path, number, when, line, SILENT, cause)


def report(logs: Sequence[WorkerLog], log_dir: str, machines: int = 1) -> str:
    """The message after a failure, from the logs of this machine: the earliest error, its usual cause, errors of other
    ranks, and where the logs are. With several `machines` the cause may lie elsewhere."""
    first = earliest_error(logs)
    if first is None:
        return f"The run failed, but no worker of this machine logged an error. All logs are in {log_dir}"
    paragraphs = [f"The run failed. Earliest error: {_where(first)}", _shortened(first.text)]
    if first.cause:
        paragraphs.append(f"Usual cause: {first.cause}")
    here = {log.rank for log in logs}
    if machines > 1 and (first.error_class == FOLLOWS or (first.error_class == SILENT and first.rank not in here)):
        text = "Nothing on this machine explains it: the cause is most likely on another machine. See what the launcher"
        paragraphs.append(f"{text} there says.")
    of_others = (earliest_error([log]) for log in logs if log.rank not in (None, first.rank))
    others = [f"  {_where(error)}: {_headline(error.text)}" for error in of_others if error is not None]
    return "\n".join([*paragraphs, *["Errors of other ranks:"][: len(others)], *others, f"All logs are in {log_dir}"])


def _blocks(lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Index of the first line, and the lines, of every error. Lines without a time stamp belong to the error before
    them; logged errors belong to the traceback that follows."""
    blocks: list[tuple[int, list[str]]] = []
    inside = in_fatal = False
    for index, line in enumerate(lines):
        stamped = _MINDSPORE_LINE.match(line) or _OWN_LINE.match(line)
        chained = in_fatal and lines[index - 2] in _CHAINED
        fatal = bool(_FATAL_LINE.match(line)) and not chained
        starts = fatal or bool(stamped and stamped["error"]) or bool(not inside and _CODE_LINE.match(line))
        if starts and (in_fatal or not inside):
            blocks.append((index, []))
            in_fatal = False
        inside = starts or (inside and not stamped)
        in_fatal = inside and (in_fatal or fatal)
        if inside:
            blocks[-1][1].append(line)
    return blocks


def _error(log: WorkerLog, block: Sequence[str], rest: Sequence[str], line: int) -> WorkerError:
    text = "\n".join(block).rstrip()
    known = recognise(text)
    if log.rank is None or (known is not None and known.follows):
        error_class = FOLLOWS
    elif known is None and not any(map(_FATAL_LINE.match, block)):
        error_class = LOGGED
    else:
        error_class = ENDED_A_WORKER
    when = next(filter(None, (_time(each, log.modified) for each in rest)), log.modified)
    return WorkerError(log.rank, log.path, line, when, text, error_class, known.cause if known else "", known)


def _end(log: WorkerLog, code: int) -> WorkerError:
    """The end of a worker by a signal, or with an exit code, that its log does not explain."""
    text, cause = f"ended with exit code {code}", _TABLE["signals"].get(-code, "")
    if -code in set(signal.Signals):
        text = f"ended by signal {-code} ({signal.Signals(-code).name})"
    # MindSpore sends a worker SIGTERM when another one is lost; this package exits with 130 then.
    asked_to_stop = code in (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
    error_class = FOLLOWS if asked_to_stop else ENDED_A_WORKER
    return WorkerError(log.rank, log.path, None, log.ended or log.modified, text, error_class, cause)


def _time(line: str, modified: datetime) -> datetime | None:
    """The time stamp in `line`; one without a date is of the last day on which the log was written to."""
    if stamp := re.search(_STAMP, line):
        return datetime.strptime(stamp[1], "%Y-%m-%d-%H:%M:%S.%f")
    if own := _OWN_LINE.match(line):
        found = datetime.combine(modified.date(), time.fromisoformat(own[1]))
        return found if found <= modified else found - timedelta(days=1)
    return None


def _where(error: WorkerError) -> str:
    name = "scheduler or msrun" if error.rank is None else f"rank {error.rank}"
    place = error.path if error.line is None else f"{error.path}, line {error.line}"
    return f"{name} at {error.time:%H:%M:%S}, {place}"


def _headline(text: str) -> str:
    """The line that says most about an error: of a traceback the exception, else the first line."""
    after = text.rpartition(_TRACEBACK)[2].splitlines()
    return next((line for line in after if line and not line.startswith(" ")), text.splitlines()[0])


def _shortened(text: str) -> str:
    """The text, indented; of a long one the beginning and the end."""
    lines = text.splitlines()
    half = SHOWN_LINES // 2
    if len(lines) > 2 * half:
        lines[half:-half] = [f"... {len(lines) - 2 * half} lines more in the log ..."]
    return textwrap.indent("\n".join(lines), "    ", lambda line: True)
