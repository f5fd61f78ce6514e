"""The Open Inference Protocol (v2), which clients of KServe, Triton and MLServer speak.

GET  /v2                     name, version and extensions of the server
GET  /v2/health/live         200 while it runs
GET  /v2/health/ready        200 while requests should be sent here
GET  /v2/models/NAME         inputs and outputs of the model
GET  /v2/models/NAME/ready   as /v2/health/ready
POST /v2/models/NAME/infer   classifies images
404 with what to ask instead: versions of a model, and statistics
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from fastapi import APIRouter, BackgroundTasks, HTTPException, Request, Response
from fastapi.responses import JSONResponse

import dvt
from dvt_service.protocol import HEADER_LENGTH, model_metadata, read_request, write_answer
from dvt_service.visits import Service, choose_thresholds, refuse_unknown


def v2_routes(service: Service) -> APIRouter:
    """The routes; errors are HTTPExceptions."""
    cascade, routes = service.cascade, APIRouter(prefix="/v2")
    model, names = cascade.manifest.model, cascade.class_names
    shape = (model.in_channels, model.image_size, model.image_size)
    reading = ThreadPoolExecutor(1, thread_name_prefix="json")  # one at a time: JSON takes many times its size

    def check_name(name: str) -> None:
        if name != model.name:
            raise HTTPException(404, f"there is no model {name!r:.100}; there is {model.name!r}")

    @routes.get("")
    async def server() -> dict:
        return {"name": "dvt", "version": dvt.__version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live")
    async def live() -> JSONResponse:
        alive = service.scheduler.alive
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @routes.get("/health/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @routes.get("/models/{name}")
    async def metadata(name: str) -> dict:
        check_name(name)
        return model_metadata(name, f"dvt_{cascade.graph_format.lower()}", model.num_classes)

    @routes.get("/models/{name}/ready")
    async def model_ready(name: str) -> JSONResponse:
        check_name(name)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    @routes.post("/models/{name}/infer")
    async def infer(name: str, request: Request, later: BackgroundTasks) -> Response:
        async with service.visit(request, later) as visit:
            check_name(name)
            refuse_unknown(request, known=())
            if request.headers.get("content-encoding", "identity") != "identity":
                raise HTTPException(415, "send the body as it is, without Content-Encoding")
            body, length = await visit.body(), request.headers.get(HEADER_LENGTH)
            wanted = body, length, shape, service.settings.max_pending
            asked, images = await asyncio.get_running_loop().run_in_executor(reading, read_request, *wanted)
            del body, wanted
            setting, thresholds = choose_thresholds(cascade, asked.parameters.setting, asked.parameters.thresholds)
            outcomes = await visit.classify(images, setting, thresholds)
        values = {
            "label": [names[each.class_index] if names else str(each.class_index) for each in outcomes],
            "probabilities": np.stack([each.probabilities for each in outcomes]),
            "confidence": np.array([each.confidence for each in outcomes], np.float32),
            "exit_index": np.array([each.exit_index for each in outcomes], np.int32),
        }
        content, json_bytes = write_answer(name, asked, setting, values)
        headers = {"Server-Timing": visit.server_timing}
        if json_bytes is None:
            return Response(content, media_type="application/json", headers=headers)
        headers[HEADER_LENGTH] = str(json_bytes)
        return Response(content, media_type="application/octet-stream", headers=headers)

    @routes.api_route("/models/{name}/versions/{rest:path}", methods=["GET", "POST"])
    async def versions(name: str) -> None:
        check_name(name)
        raise HTTPException(404, f"models have no versions here; ask for /v2/models/{name}, without /versions/...")

    @routes.get("/models/{name}/stats")
    async def statistics(name: str) -> None:
        check_name(name)
        raise HTTPException(404, "there are no statistics here; GET /metrics has them, for Prometheus")

    return routes
