"""Throughput mode: images that an exit does not settle wait until the next exit has a full batch of them.

So every exit runs on full batches, whatever share of the images reaches it; decisions are those of `loop.run_cascade`.
Plain NumPy. Axis letters: B images of a batch, K exits, n images in general.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dvt.early_exit.decisions import leaving
from dvt.early_exit.loop import HandedOn, Predictions, RunExit
from dvt.early_exit.scores import CONFIDENCE, ExitRule

# Answers are given in the order of the images. One image that waits for a late exit holds up all after it, so after
# so many batches of unanswered images the exits run on what they have.
MOST_PENDING_BATCHES = 32


@dataclass
class Timing:
    """Where the time of a run went, in seconds."""

    exits: float = 0.0  # inside `run_exit`
    moving: float = 0.0  # deciding, gathering and scattering


class _Waiting:
    """`count` images in front of one exit, with room for one batch; each row is copied once."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.count = batch_size, 0
        self._rows: HandedOn = {}  # "tickets", "images" and what is handed on

    def fill(self, rows: HandedOn, chosen: np.ndarray) -> int:
        """Copies the `chosen` rows that fit in; returns their number."""
        chosen = chosen[: self.batch_size - self.count]
        place = slice(self.count, self.count + len(chosen))
        if not self._rows:  # shapes are known with the first rows
            self._rows = {name: np.empty((self.batch_size, *part.shape[1:]), part.dtype) for name, part in rows.items()}
        for name, part in rows.items():
            np.take(part, chosen, axis=0, out=self._rows[name][place], mode="clip")  # "clip" writes without a buffer
        self.count += len(chosen)
        return len(chosen)

    def take(self) -> HandedOn:
        """The rows of all that wait; views, for use before the next `fill`."""
        count, self.count = self.count, 0
        return {name: part[:count] for name, part in self._rows.items()}


@dataclass
class Gathering:
    """A cascade that batches are pushed into, as `run_gathered` does with all batches of an iterable.

    Memory: between exits at most a batch of images waits per exit, with what is handed on to them, and answers of at
    most `MOST_PENDING_BATCHES` batches wait for their turn.
    """

    run_exit: RunExit
    thresholds: np.ndarray
    num_classes: int
    batch_sizes: Sequence[int]
    rule: ExitRule = CONFIDENCE
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        self._waiting = [_Waiting(size) for size in self.batch_sizes]
        self._arrived = 0
        self._pending: deque[range] = deque()  # tickets of each batch that was not yielded yet
        self._answers: dict[int, tuple[np.ndarray, int]] = {}  # ticket -> probabilities, exit index

    def push(self, images: np.ndarray) -> None:
        """Takes checked images (B, I, S, S); runs the exits that have a full batch, and all of them if the oldest batch
        without answers has waited for too many others."""
        tickets = range(self._arrived, self._arrived + len(images))
        self._arrived += len(images)
        self._pending.append(tickets)
        with self._time_of_moving():
            self._enter(0, {"tickets": np.array(tickets, np.int64), "images": images}, np.arange(len(images)))
        if self._arrived - self._pending[0].start > MOST_PENDING_BATCHES * max(self.batch_sizes):
            self.flush()

    def flush(self) -> None:
        """Runs every exit on all that wait for it, so that all images have answers."""
        with self._time_of_moving():
            for index, waiting in enumerate(self._waiting):
                if waiting.count:
                    self._run(index)

    def settled(self) -> Iterator[Predictions]:
        """Predictions of the oldest batches, as long as all images of a batch have answers; each batch once."""
        while self._pending and all(ticket in self._answers for ticket in self._pending[0]):
            found = [self._answers.pop(ticket) for ticket in self._pending.popleft()]
            probabilities = np.array([values for values, _ in found], np.float32).reshape(-1, self.num_classes)
            yield Predictions.of(probabilities, np.array([index for _, index in found], np.int64))

    def _enter(self, index: int, rows: HandedOn, chosen: np.ndarray) -> None:
        """The `chosen` images reach exit `index`, which runs whenever it has a full batch."""
        waiting = self._waiting[index]
        while len(chosen):
            chosen = chosen[waiting.fill(rows, chosen) :]
            if waiting.count == waiting.batch_size:
                self._run(index)

    def _run(self, index: int) -> None:
        rows = self._waiting[index].take()
        arrived = {name: rows.pop(name) for name in ("tickets", "images")}
        started = time.perf_counter()
        probabilities, handed_on = self.run_exit(index, arrived["images"], rows)
        self.timing.exits += time.perf_counter() - started
        leaves = leaving(index, probabilities, self.thresholds, self.rule)
        for row in np.flatnonzero(leaves):
            self._answers[int(arrived["tickets"][row])] = (probabilities[row], index)
        if not leaves.all():
            self._enter(index + 1, arrived | handed_on, np.flatnonzero(~leaves))

    @contextlib.contextmanager
    def _time_of_moving(self) -> Iterator[None]:
        """Adds what is not spent inside the exits to `timing.moving`."""
        started, before = time.perf_counter(), self.timing.exits
        yield
        self.timing.moving += time.perf_counter() - started - (self.timing.exits - before)


def run_gathered(
    run_exit: RunExit,
    batches: Iterable[np.ndarray],
    thresholds: np.ndarray,
    num_classes: int,
    batch_size: int | Sequence[int],
    rule: ExitRule = CONFIDENCE,
    timing: Timing | None = None,
) -> Iterator[Predictions]:
    """Runs the exits over many batches (B, I, S, S); yields the predictions of each once all its images are settled.

    Every exit waits for `batch_size` images, one number or one per exit; `timing` is filled with where the time went.
    The other arguments, and what is raised, are those of `run_cascade`.
    """
    batch_sizes = [batch_size] * len(thresholds) if isinstance(batch_size, int) else batch_size
    gathering = Gathering(run_exit, thresholds, num_classes, batch_sizes, rule, timing or Timing())
    for images in batches:
        gathering.push(images)
        yield from gathering.settled()
    gathering.flush()
    yield from gathering.settled()
