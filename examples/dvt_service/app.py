"""The HTTP side: an application that classifies images with a cascade.

POST /predict   an image file as body -> label, confidence, exit, milliseconds
GET  /model     classes, exits and named thresholds of the bundle, and what it runs on
GET  /healthz   200, or 503 while shutting down
GET  /metrics   for Prometheus
GET  /          a page to drop images on
/v2/...         the Open Inference Protocol: see v2.py
"""

import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from dvt.data.decode import Exif
from dvt.deploy import Cascade
from dvt.errors import BundleError
from dvt_service.audits import Audits
from dvt_service.decoding import Decoders
from dvt_service.guard import LOOPBACK, Guard, error_content
from dvt_service.metrics import Metrics
from dvt_service.scheduler import ExitScheduler
from dvt_service.settings import ServiceSettings
from dvt_service.v2 import v2_routes
from dvt_service.visits import Service, choose_thresholds, refuse_parameters_of_get, refuse_unknown

PAGE = Path(__file__).resolve().parent / "page"
IMAGE_BODY = {
    "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}


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
    service = Service(cascade, settings, scheduler, decoders, metrics, audits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        decoders.close()
        scheduler.close()
        cascade.close()

    # The interactive documentation would fetch its scripts from elsewhere; /openapi.json remains.
    strict = [Depends(refuse_parameters_of_get)]
    app = FastAPI(title="DVT cascade", lifespan=lifespan, docs_url=None, redoc_url=None, dependencies=strict)
    app.state.scheduler = scheduler
    app.add_middleware(Guard, allowed=allowed_hosts)
    app.include_router(v2_routes(service))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_content(request.url.path, error.detail), error.status_code, error.headers)

    @app.post("/predict", openapi_extra=IMAGE_BODY)
    async def predict(
        request: Request,
        response: Response,
        later: BackgroundTasks,
        setting: str | None = None,
        thresholds: str | None = None,
    ) -> Prediction:
        """Classifies an image file, with a named setting of the bundle or with thresholds such as 0.5,0.6,0."""
        async with service.visit(request, later) as visit:
            refuse_unknown(request)
            name, values = choose_thresholds(cascade, setting, thresholds)
            [outcome] = await visit.classify([await visit.body()], name, values)
        response.headers["Server-Timing"] = visit.server_timing
        names = cascade.class_names
        return Prediction(
            label=names[outcome.class_index] if names else str(outcome.class_index),
            class_index=outcome.class_index,
            confidence=outcome.confidence,
            exit=outcome.exit_index + 1,
            exits=num_exits,
            gmacs=cascade.manifest.cumulative_gmacs[outcome.exit_index],
            setting=name,
            milliseconds=round(1000 * visit.seconds, 2),
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
                {"name": name, **asdict(each), "promise": each.promise_for(exif)}
                for name, each in cascade.settings.items()
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


def warm_up(cascade: Cascade) -> None:
    """Runs every exit once, so that the first request does not pay for what the runtime allocates."""
    model = cascade.manifest.model
    cascade.all_exits(np.zeros((1, model.in_channels, model.image_size, model.image_size), np.float32))
