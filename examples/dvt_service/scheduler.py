"""One thread that runs the exits of a cascade for many requests at once.

Every exit has a queue. A request joins the queue of the first exit; one that an exit settles is answered at once, the
others join the queue of the next exit, whose batch may hold requests that came at different times ("continuous
batching", per exit). Plain NumPy; knows nothing of HTTP. Axis letters: n requests of a batch, K exits.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from dvt.early_exit.loop import HandedOn, RunExit, leaving

log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many requests as allowed are pending already."""


class DrainingError(Exception):
    """The service is shutting down and takes no more requests."""


@dataclass(frozen=True)
class Outcome:
    """The answer to one image."""

    class_index: int
    confidence: float
    exit_index: int
    probabilities: np.ndarray  # (classes,), of that exit
    rest: HandedOn | None = None  # what the next exit needs, where it was asked for and the image left early


@dataclass(eq=False)
class _Job:
    rows: HandedOn  # "images" and what the exit before handed on, without the batch axis
    thresholds: np.ndarray  # (K,)
    answer: "Future[Outcome]"
    since: float  # when it joined the queue that it is in, seconds of `time.monotonic`
    keep_rest: bool = False


class ExitScheduler:
    """Runs requests through a cascade.

    An exit may run when it has a full batch, when its first request has waited `max_wait`, or when no other request is
    on its way to it, so that a lone request never waits. Of the exits that may run, the one whose first request has
    waited longest is next: nobody starves, and while the first exit works off its queue the later ones gather batches.
    Audits are run one exit at a time, and only while no request is pending.

    Args:
        run_exit: Runs one exit on n images, `Cascade.run_exit`.
        num_exits: Number of exits K.
        max_batch: Most requests of one call of `run_exit`.
        max_wait: Seconds that an exit may wait for more requests.
        max_pending: Most requests between `admit` and their answer. Bounds the memory: each holds at most one image and
            its rows of what one exit handed on.
        on_batch: Told of every call of `run_exit`: exit index and number of requests.
    """

    def __init__(
        self,
        run_exit: RunExit,
        num_exits: int,
        max_batch: int,
        max_wait: float,
        max_pending: int,
        on_batch: Callable[[int, int], object] = lambda exit_index, size: None,
    ) -> None:
        self._run_exit, self._on_batch = run_exit, on_batch
        self._max_batch, self._max_wait, self._max_pending = max_batch, max_wait, max_pending
        self.draining = False  # a plain attribute, because a signal handler sets it and must not wait for a lock
        self._changed = threading.Condition()
        self._queues: list[deque[_Job]] = [deque() for _ in range(num_exits)]
        self._audits: deque[tuple[int, HandedOn, Future[int]]] = deque()
        self._arriving = 0  # admitted, but not in a queue yet
        self._pending = 0  # admitted and not answered
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="cascade", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Requests that were admitted and have no answer yet."""
        return self._pending

    @property
    def alive(self) -> bool:
        """Whether the thread runs that answers requests."""
        return self._thread.is_alive()

    def admit(self) -> "Place":
        """A place for one request, to be taken before its image is read; use it in a `with` statement.

        Raises:
            QueueFullError: There is none.
            DrainingError: `draining` is set.
        """
        with self._changed:
            if self.draining or self._closed:
                raise DrainingError
            if self._pending >= self._max_pending:
                raise QueueFullError
            self._pending += 1
            self._arriving += 1
        return Place(self)

    def close(self) -> None:
        """Answers what has been submitted, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def audit(self, outcome: Outcome) -> "Future[int]":
        """The class that the last exit gives an image whose outcome has the rest.

        Cancelled at once if `max_batch` audits wait already or the service ends, and when it ends.
        """
        answer: Future[int] = Future()
        with self._changed:
            if self.draining or self._closed or len(self._audits) >= self._max_batch:
                answer.cancel()
            else:
                self._audits.append((outcome.exit_index + 1, outcome.rest, answer))
                self._changed.notify()
        return answer

    def _submit(self, image: np.ndarray, thresholds: np.ndarray, keep_rest: bool) -> "Future[Outcome]":
        answer: Future[Outcome] = Future()
        answer.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only answered
        with self._changed:
            self._arriving -= 1
            self._queues[0].append(_Job({"images": image}, thresholds, answer, time.monotonic(), keep_rest))
            self._changed.notify()
        return answer

    def _give_back(self) -> None:
        with self._changed:
            self._arriving -= 1
            self._pending -= 1
            self._changed.notify()  # an exit may have waited for the one that does not come

    def _work(self) -> None:
        while True:
            with self._changed:
                while (index := self._next_exit()) is None:
                    if self._closed and not any(self._queues):
                        for _, _, answer in self._audits:
                            answer.cancel()
                        return
                    if self._audits and self._pending == 0:
                        break
                    self._changed.wait(self._seconds_to_wait())
                if index is None:
                    audit = self._audits.popleft()
                else:
                    queue = self._queues[index]
                    jobs = [queue.popleft() for _ in range(min(len(queue), self._max_batch))]
            if index is None:
                self._run_audit(*audit)
            else:
                self._run(index, jobs)

    def _run_audit(self, index: int, rows: HandedOn, answer: "Future[int]") -> None:
        """One exit; the next one has to wait again until nothing else is to be done."""
        try:
            given = {name: part[None] for name, part in rows.items()}
            probabilities, handed_on = self._run_exit(index, given.pop("images"), given)
        except Exception as error:
            log.warning("exit %d failed in an audit: %r", index + 1, error)
            answer.set_exception(error)
            return
        if index + 1 == len(self._queues):
            answer.set_result(int(probabilities[0].argmax()))
            return
        with self._changed:
            self._audits.appendleft((index + 1, _rows(rows["images"], 0, handed_on), answer))

    def _next_exit(self) -> int | None:
        """See the class; None if all should wait."""
        now, coming, ready = time.monotonic(), self._arriving, []
        for index, queue in enumerate(self._queues):
            if queue:
                first = queue[0].since
                if len(queue) >= self._max_batch or coming == 0 or now - first >= self._max_wait:
                    ready.append((first, index))
            coming += len(queue)  # these may come to the next exit
        return min(ready)[1] if ready else None

    def _seconds_to_wait(self) -> float | None:
        waiting_since = [queue[0].since for queue in self._queues if queue]
        return max(0.0, min(waiting_since) + self._max_wait - time.monotonic()) if waiting_since else None

    def _run(self, index: int, jobs: list[_Job]) -> None:
        try:
            rows = {name: np.stack([job.rows[name] for job in jobs]) for name in jobs[0].rows}
            images = rows.pop("images")
            probabilities, handed_on = self._run_exit(index, images, rows)
            # Requests bring thresholds of their own, so that of one exit is a row of n numbers.
            leaves = leaving(index, probabilities, np.stack([job.thresholds for job in jobs], axis=1))
            going_on = [_going_on(jobs[row], row, handed_on) for row in np.flatnonzero(~leaves)]
            early = np.flatnonzero(leaves) if index + 1 < len(self._queues) else []
            kept = [row for row in early if jobs[row].keep_rest]
            rest = {row: _rows(jobs[row].rows["images"], row, handed_on) for row in kept}
        except Exception as error:
            if len(jobs) > 1:  # one image may have spoilt the batch: only its own request shall fail
                for job in jobs:
                    self._run(index, [job])
                return
            log.warning("exit %d failed for one image: %r", index + 1, error)
            with self._changed:
                self._pending -= 1
            jobs[0].answer.set_exception(error)
            return
        self._on_batch(index, len(jobs))
        with self._changed:
            if going_on:  # never at the last exit
                self._queues[index + 1].extend(going_on)
            self._pending -= len(jobs) - len(going_on)
        for row in np.flatnonzero(leaves):
            label = int(probabilities[row].argmax())
            found = probabilities[row].copy()
            jobs[row].answer.set_result(Outcome(label, float(found[label]), index, found, rest.get(row)))


def _going_on(job: _Job, row: int, handed_on: HandedOn) -> _Job:
    return replace(job, rows=_rows(job.rows["images"], row, handed_on), since=time.monotonic())


def _rows(image: np.ndarray, row: int, handed_on: HandedOn) -> HandedOn:
    # Copies, because a view would keep the rows of the whole batch in memory.
    return {"images": image, **{name: part[row].copy() for name, part in handed_on.items()}}


class Place:
    """The right to submit one image; a place that was not used is given back at the end of the `with` statement."""

    def __init__(self, scheduler: ExitScheduler) -> None:
        self._scheduler, self._used = scheduler, False

    def submit(self, image: np.ndarray, thresholds: np.ndarray, keep_rest: bool = False) -> "Future[Outcome]":
        """Queues one model input, float32 (C, S, S), with its thresholds (K,). To be called once.

        With `keep_rest` the outcome holds what `ExitScheduler.audit` needs, if the image leaves early.
        """
        self._used = True
        return self._scheduler._submit(image, thresholds, keep_rest)

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._used:
            self._scheduler._give_back()
