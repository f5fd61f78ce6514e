"""The HTTP side: an application that classifies images with a cascade.

POST /predict   an image file as body -> label, confidence, exit, milliseconds
GET  /model     classes, exits and named thresholds of the bundle, and what it runs on
GET  /healthz   200, or 503 while shutting down
GET  /metrics   for Prometheus
GET  /          a page to drop images on
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from dvt.data.decode import Exif
from dvt.deploy import Cascade
from dvt.early_exit.decisions import read_thresholds
from dvt.errors import BundleError, DVTError
from dvt_service.audits import Audits
from dvt_service.decoding import Decoders, RefusedError
from dvt_service.guard import LOOPBACK, Guard
from dvt_service.metrics import Metrics
from dvt_service.scheduler import DrainingError, ExitScheduler, QueueFullError
from dvt_service.settings import ServiceSettings
from dvt_service.uploads import read_body

PAGE = Path(__file__).resolve().parent / "page"
OWN_THRESHOLDS = "explicit"  # what answers and metrics call thresholds that a request brought itself
IMAGE_BODY = {
    "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}

log = logging.getLogger(__name__)


class Prediction(BaseModel):
    """The answer to one image. `exit` counts from 1; `milliseconds` run from the request's headers to the answer."""

    label: str
    class_index: int
    confidence: float
    exit: int
    exits: int
    gmacs: float
    setting: str
    milliseconds: float


def create_app(
    cascade: Cascade,
    settings: ServiceSettings | None = None,
    allowed_hosts: Collection[str] = LOOPBACK,
    exif: Exif = "honour",
    audit: float = 0.0,
) -> FastAPI:
    """The application, for requests to `allowed_hosts`; "*" allows all. Images are turned as EXIF says unless `exif` is
    "ignore". `audit` is the share of the images that left early that are audited (`Audits`).

    `app.state.scheduler` is what runs the cascade; set its `draining` to refuse new requests.

    Raises BundleError if the bundle does not say how an image becomes a model input.
    """
    settings = settings or ServiceSettings()
    if cascade.preprocessing is None:
        raise BundleError(
            "the bundle has no preprocessing: export a checkpoint that has it (`dvt eval --mode 2 --eval.store` "
            "stores it), or give export_bundle preprocessing=..."
        )
    num_exits = cascade.manifest.model.num_exits
    metrics = Metrics(num_exits, settings.max_pending, lambda: scheduler.pending)
    audits = Audits(cascade.settings, audit, metrics.registry)
    warm_up(cascade)
    scheduler = ExitScheduler(
        cascade.run_exit,
        num_exits,
        settings.max_batch,
        settings.max_wait_ms / 1000,
        settings.max_pending,
        metrics.ran,
    )
    limits = settings.max_pixels, settings.decode_seconds
    decoders = Decoders(settings.decoders, cascade.preprocessing, *limits, exif)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        decoders.close()
        scheduler.close()
        cascade.close()

    # The interactive documentation would fetch its scripts from elsewhere; /openapi.json remains.
    app = FastAPI(title="DVT cascade", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.scheduler = scheduler
    app.add_middleware(Guard, allowed=allowed_hosts)

    @app.post("/predict", openapi_extra=IMAGE_BODY)
    async def predict(
        request: Request,
        response: Response,
        later: BackgroundTasks,
        setting: str | None = None,
        thresholds: str | None = None,
    ) -> Prediction:
        """Classifies an image file, with a named setting of the bundle or with thresholds such as 0.5,0.6,0."""
        started, body = time.perf_counter(), None
        try:
            refuse_unknown(request)
            name, values = choose_thresholds(cascade, setting, thresholds)
            with scheduler.admit() as place:
                body = await read_body(request, settings.max_bytes, settings.upload_seconds)
                read = time.perf_counter()
                image = await asyncio.get_running_loop().run_in_executor(decoders.threads, decoders.decode, body)
                decoded = time.perf_counter()
                outcome = await asyncio.wrap_future(place.submit(image, values, audits.chosen(name)))
        except HTTPException as error:
            metrics.refused(error.status_code)
            if body is None:  # whatever else the client sends is not read
                error.headers = {"Connection": "close"}
            raise
        except RefusedError as error:
            metrics.refused(error.status)
            raise HTTPException(error.status, error.detail) from None
        except (QueueFullError, DrainingError) as error:
            metrics.refused(503)
            draining = isinstance(error, DrainingError)
            detail = (
                "the service is shutting down" if draining else "too many requests are pending; try again in a moment"
            )
            raise HTTPException(503, detail, {"Retry-After": "1", "Connection": "close"}) from None
        except Exception as error:
            log.exception("a request failed")
            metrics.refused(500)
            raise HTTPException(500, "the image could not be classified; the service's log says why") from error
        ended = time.perf_counter()
        metrics.answered(outcome.exit_index, name, ended - started)
        audits.answered(name, outcome.exit_index < num_exits - 1)
        if outcome.rest:
            later.add_task(audits.begin, scheduler, name, outcome)  # once the answer is sent
        stages = {"read": read - started, "decode": decoded - read, "cascade": ended - decoded}
        response.headers["Server-Timing"] = ", ".join(f"{key};dur={1000 * value:.2f}" for key, value in stages.items())
        names = cascade.class_names
        return Prediction(
            label=names[outcome.class_index] if names else str(outcome.class_index),
            class_index=outcome.class_index,
            confidence=outcome.confidence,
            exit=outcome.exit_index + 1,
            exits=num_exits,
            gmacs=cascade.manifest.cumulative_gmacs[outcome.exit_index],
            setting=name,
            milliseconds=round(1000 * (ended - started), 2),
        )

    @app.get("/model")
    async def model() -> dict:
        """What the page needs to know of the bundle."""
        manifest = cascade.manifest
        return {
            "model": manifest.model.name,
            "runs_on": cascade.runs_on,
            "class_names": manifest.class_names,
            "image_size": manifest.model.image_size,
            "cumulative_gmacs": manifest.cumulative_gmacs,
            "settings": [
                {"name": name, **asdict(each), "promise": each.promise} for name, each in cascade.settings.items()
            ],
            "exif": exif,
            "limits": {"bytes": settings.max_bytes, "pixels": settings.max_pixels},
        }

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether requests should be sent here."""
        if not scheduler.alive:
            return JSONResponse({"status": "the cascade's thread has ended"}, 503)
        if scheduler.draining:
            return JSONResponse({"status": "shutting down"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counters in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def refuse_unknown(request: Request) -> None:
    """Raises HTTPException with 400 for a parameter that is not there, such as a misspelt one, or is given twice."""
    given = [name for name, _ in request.query_params.multi_items()]
    unknown = [name for name in given if name not in ("setting", "thresholds")]
    if unknown or len(set(given)) < len(given):
        what = f"there is no parameter {unknown[0]!r:.100}" if unknown else "a parameter is given twice"
        raise HTTPException(400, f"{what}; give setting or thresholds, once")


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


def warm_up(cascade: Cascade) -> None:
    """Runs every exit once, so that the first request does not pay for what the runtime allocates."""
    model = cascade.manifest.model
    cascade.all_exits(np.zeros((1, model.in_channels, model.image_size, model.image_size), np.float32))
