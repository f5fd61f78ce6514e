"""What the ways to ask for a classification share: one request from its first byte to its answer."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from fastapi import BackgroundTasks, HTTPException, Request

from dvt.deploy import Cascade
from dvt.early_exit.decisions import read_thresholds
from dvt.errors import DVTError
from dvt_service.audits import Audits
from dvt_service.decoding import Decoders, RefusedError
from dvt_service.metrics import Metrics
from dvt_service.scheduler import DrainingError, ExitScheduler, Outcome, QueueFullError
from dvt_service.settings import ServiceSettings
from dvt_service.uploads import read_body

OWN_THRESHOLDS = "explicit"  # what answers and metrics call thresholds that a request brought itself

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """The parts of the running service."""

    cascade: Cascade
    settings: ServiceSettings
    scheduler: ExitScheduler
    decoders: Decoders
    metrics: Metrics
    audits: Audits

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.scheduler.alive and not self.scheduler.draining

    @contextlib.asynccontextmanager
    async def visit(self, request: Request, later: BackgroundTasks) -> AsyncIterator["Visit"]:
        """One request to classify. What goes wrong within becomes an HTTPException, and is counted."""
        visit = Visit(self, request, later)
        try:
            with visit:
                yield visit
        except HTTPException as error:
            self.metrics.refused(error.status_code)
            if not visit.was_read:  # whatever else the client sends is not read
                error.headers = {"Connection": "close"}
            raise
        except RefusedError as error:
            self.metrics.refused(error.status)
            raise HTTPException(error.status, error.detail) from None
        except (QueueFullError, DrainingError) as error:
            self.metrics.refused(503)
            draining = isinstance(error, DrainingError)
            detail = (
                "the service is shutting down" if draining else "too many requests are pending; try again in a moment"
            )
            raise HTTPException(503, detail, {"Retry-After": "1", "Connection": "close"}) from None
        except Exception as error:
            log.exception("a request failed")
            self.metrics.refused(500)
            raise HTTPException(500, "the image could not be classified; the service's log says why") from error


class Visit:
    """One request. Places for images that were taken are given back at the end, where they were not used."""

    def __init__(self, service: Service, request: Request, later: BackgroundTasks) -> None:
        self._service, self._request, self._later = service, request, later
        self._places = contextlib.ExitStack()
        self._admitted = []
        self._times = [time.perf_counter()]  # of the start, and when each stage was over
        self.was_read = False

    def __enter__(self) -> "Visit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.close()

    async def body(self) -> bytes:
        """The body, for which there must be a place. Raises HTTPException as `read_body` does."""
        settings = self._service.settings
        self._admit(1)
        body = await read_body(self._request, settings.max_bytes, settings.upload_seconds)
        self.was_read = True
        self._times.append(time.perf_counter())
        return body

    async def classify(self, images: Sequence[bytes] | np.ndarray, setting: str, values: np.ndarray) -> list[Outcome]:
        """Runs image files or model inputs with thresholds `values` (K,), called `setting`, each in a place of its own.

        Raises RefusedError for the first file that cannot be used, with its number; then no image is run.
        """
        audits, loop = self._service.audits, asyncio.get_running_loop()
        self._admit(len(images) - len(self._admitted))
        if not isinstance(images, np.ndarray):
            decoders = self._service.decoders
            decoding = [loop.run_in_executor(decoders.threads, decoders.decode, image) for image in images]
            images = await asyncio.gather(*decoding, return_exceptions=True)
            for index, image in enumerate(images):
                if isinstance(image, RefusedError) and len(images) > 1:
                    raise RefusedError(image.status, f"image {index} of the batch, counted from 0: {image.detail}")
                if isinstance(image, BaseException):
                    raise image
        self._times.append(time.perf_counter())
        submitted = [
            place.submit(image, values, audits.chosen(setting))
            for place, image in zip(self._admitted, images, strict=True)
        ]
        outcomes = await asyncio.gather(*map(asyncio.wrap_future, submitted))
        self._times.append(time.perf_counter())
        self._service.metrics.answered([each.exit_index for each in outcomes], setting, self.seconds)
        for outcome in outcomes:
            audits.answered(setting, outcome.exit_index < self._service.cascade.manifest.model.num_exits - 1)
            if outcome.rest:
                self._later.add_task(audits.begin, self._service.scheduler, setting, outcome)  # after the answer
        return outcomes

    @property
    def seconds(self) -> float:
        """From the headers of the request to the last outcome."""
        return self._times[-1] - self._times[0]

    @property
    def server_timing(self) -> str:
        """The header of this name, once all is done."""
        stages = zip(("read", "decode", "cascade"), np.diff(self._times), strict=True)
        return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in stages)

    def _admit(self, count: int) -> None:
        for _ in range(count):
            self._admitted.append(self._places.enter_context(self._service.scheduler.admit()))


def refuse_unknown(request: Request, known: tuple[str, ...] = ("setting", "thresholds")) -> None:
    """Raises HTTPException with 400 for a parameter that is not there, such as a misspelt one, or is given twice."""
    given = [name for name, _ in request.query_params.multi_items()]
    unknown = [name for name in given if name not in known]
    if unknown or len(set(given)) < len(given):
        what = f"there is no parameter {unknown[0]!r:.100}" if unknown else "a parameter is given twice"
        where = "" if known else " in the body, among its parameters"
        raise HTTPException(400, f"{what}; give setting or thresholds, once{where}")


async def refuse_parameters_of_get(request: Request) -> None:
    """Raises HTTPException with 400 for a GET with parameters, since it takes none."""
    if request.method == "GET" and request.query_params:
        given = ", ".join(request.query_params)
        raise HTTPException(400, f"GET {request.url.path:.100} takes no parameters; leave out {given:.100}")


def choose_thresholds(cascade: Cascade, setting: str | None, thresholds: str | None) -> tuple[str, np.ndarray]:
    """Name and values (K,) of what a request asks for; by default the first setting of the bundle.

    Raises HTTPException with 400 for both at once, an unknown setting, or thresholds that do not fit.
    """
    named = cascade.thresholds
    if setting is not None and thresholds is not None:
        raise HTTPException(400, "give either setting or thresholds, not both")
    if thresholds is not None:
        try:
            return OWN_THRESHOLDS, read_thresholds(thresholds, cascade.manifest.model.num_exits)
        except DVTError as error:
            raise HTTPException(400, str(error)) from None
    name = next(iter(named), None) if setting is None else setting
    if name is None:
        raise HTTPException(400, "this bundle has no named settings; give thresholds=..., one number per exit")
    if name not in named:
        raise HTTPException(400, f"there is no setting {name!r}; there are: {', '.join(named) or 'none'}")
    return name, cascade.chosen(name)
