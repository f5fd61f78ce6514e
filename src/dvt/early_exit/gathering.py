"""Throughput mode: images that an exit does not settle wait until the next exit has a full batch of them.

So every exit runs on full batches, whatever share of the images reaches it; decisions are those of `loop.run_cascade`.
Plain NumPy. Axis letters: B images of a batch, K exits, n images in general.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dvt.early_exit.decisions import leaving
from dvt.early_exit.loop import HandedOn, Predictions, RunExit
from dvt.early_exit.scores import CONFIDENCE, ExitRule

# Answers are given in the order of the images. One image that waits for a late exit holds up all after it, so after
# so many batches of unanswered images the exits run on what they have.
MOST_PENDING_BATCHES = 32


@dataclass
class Gathering:
    """A cascade that batches are pushed into. At most a batch of images waits in front of each exit, and answers of at
    most `MOST_PENDING_BATCHES` batches wait for their turn."""

    run_exit: RunExit
    thresholds: np.ndarray
    num_classes: int
    batch_sizes: Sequence[int]
    rule: ExitRule = CONFIDENCE

    def __post_init__(self) -> None:
        # In front of each exit, in pieces: rows of "tickets", "images" and what is handed on.
        self._waiting: list[list[HandedOn]] = [[] for _ in self.batch_sizes]
        self._arrived = 0
        self._pending: deque[range] = deque()  # tickets of each batch that was not yielded yet
        self._answers: dict[int, tuple[np.ndarray, int]] = {}  # ticket -> probabilities, exit index

    def push(self, images: np.ndarray) -> None:
        """Takes checked images (B, I, S, S); runs the exits that have a full batch, and all of them if the oldest batch
        without answers has waited for too many others."""
        tickets = range(self._arrived, self._arrived + len(images))
        self._arrived += len(images)
        self._pending.append(tickets)
        self._enter(0, {"tickets": np.array(tickets, np.int64), "images": np.array(images)})
        if self._arrived - self._pending[0].start > MOST_PENDING_BATCHES * max(self.batch_sizes):
            self.flush()

    def flush(self) -> None:
        """Runs every exit on all that wait for it, so that all images have answers."""
        for index in range(len(self._waiting)):
            if self._count(index):
                rows, self._waiting[index] = _joined(self._waiting[index]), []
                self._run(index, rows)

    def settled(self) -> Iterator[Predictions]:
        """Predictions of the oldest batches, as long as all images of a batch have answers; each batch once."""
        while self._pending and all(ticket in self._answers for ticket in self._pending[0]):
            found = [self._answers.pop(ticket) for ticket in self._pending.popleft()]
            probabilities = np.array([values for values, _ in found], np.float32).reshape(-1, self.num_classes)
            yield Predictions.of(probabilities, np.array([index for _, index in found], np.int64))

    def _count(self, index: int) -> int:
        return sum(len(piece["tickets"]) for piece in self._waiting[index])

    def _enter(self, index: int, rows: HandedOn) -> None:
        """These images reach exit `index`, which runs whenever it has a full batch."""
        self._waiting[index].append(rows)
        size, count = self.batch_sizes[index], self._count(index)
        if count >= size:
            rows, full = _joined(self._waiting[index]), count - count % size
            self._waiting[index] = [{name: part[full:].copy() for name, part in rows.items()}]
            for start in range(0, full, size):
                self._run(index, {name: part[start : start + size] for name, part in rows.items()})

    def _run(self, index: int, rows: HandedOn) -> None:
        arrived = {name: rows.pop(name) for name in ("tickets", "images")}
        probabilities, handed_on = self.run_exit(index, arrived["images"], rows)
        leaves = leaving(index, probabilities, self.thresholds, self.rule)
        for row in np.flatnonzero(leaves):
            self._answers[int(arrived["tickets"][row])] = (probabilities[row], index)
        if not leaves.all():
            self._enter(index + 1, {name: part[~leaves] for name, part in (arrived | handed_on).items()})


def _joined(pieces: list[HandedOn]) -> HandedOn:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def run_gathered(
    run_exit: RunExit,
    batches: Iterable[np.ndarray],
    thresholds: np.ndarray,
    num_classes: int,
    batch_size: int | Sequence[int],
    rule: ExitRule = CONFIDENCE,
) -> Iterator[Predictions]:
    """Runs the exits over many batches (B, I, S, S); yields the predictions of each once all its images are settled.

    Every exit waits for `batch_size` images, one number or one per exit. Other arguments and errors: `run_cascade`.
    """
    batch_sizes = [batch_size] * len(thresholds) if isinstance(batch_size, int) else batch_size
    gathering = Gathering(run_exit, thresholds, num_classes, batch_sizes, rule)
    for images in batches:
        gathering.push(images)
        yield from gathering.settled()
    gathering.flush()
    yield from gathering.settled()
