"""MindSpore's profiler over a few steps."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from mindspore.profiler import profile, tensorboard_trace_handler

SKIPPED, RECORDED = 3, 5  # steps: the first ones compile and warm up

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def profiled(results: Iterable[Result], folder: Path) -> Iterator[Result]:
    """The results as they come; what makes the fourth to the eighth of them is recorded into `folder`."""
    recorder, number = None, 0
    for number, result in enumerate(results, start=1):
        yield result
        if number == SKIPPED:  # resumed here when the next result is asked for
            handler = tensorboard_trace_handler(str(folder))
            recorder = profile(start_profile=False, on_trace_ready=handler)
            recorder.start()
        elif number == SKIPPED + RECORDED:
            _finish(recorder, folder)
            recorder = None
    if recorder is not None:
        _finish(recorder, folder)
    elif number < SKIPPED + RECORDED:
        log.warning("nothing was profiled: the first epoch has fewer than %d batches", SKIPPED + 1)


def _finish(recorder: profile, folder: Path) -> None:
    recorder.stop()
    log.info("profile of up to %d batches: %s", RECORDED, folder)
