"""Requests and answers of the Open Inference Protocol (v2) over HTTP, with its extension for binary tensors.

Specification: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol. Knows nothing of the
service. Axis letters: B images, C channels, S side of the model input.
"""

import base64
import json
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dvt.early_exit.loop import check_images
from dvt.errors import DataError
from dvt_service.decoding import RefusedError

OUTPUTS = {"label": "BYTES", "probabilities": "FP32", "confidence": "FP32", "exit_index": "INT32"}
MOST_NESTED = 100_000  # lists and objects in the JSON: each takes fifty times the memory of its text
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON, where binary tensors follow


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputParameters(_Strict):
    binary_data_size: int | None = Field(None, ge=0)
    content_type: Literal["base64"] | None = None


class InputTensor(_Strict):
    name: Literal["images"]
    shape: list[int]
    datatype: Literal["BYTES", "FP32"]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(_Strict):
    binary_data: bool | None = None


class RequestedOutput(_Strict):
    name: Literal["label", "probabilities", "confidence", "exit_index"]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Strict):
    setting: str | None = None
    thresholds: str | None = None
    binary_data_output: bool = False


class InferRequest(_Strict):
    """What a client asks: images, the outputs that it wants (all by default), and a setting or thresholds."""

    id: str | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] = [RequestedOutput(name=name) for name in OUTPUTS]
    parameters: RequestParameters = RequestParameters()


Images = Sequence[bytes] | np.ndarray
"""Image files, or model inputs, float32 (B, C, S, S)."""


def read_request(
    body: bytes, header_length: str | None, shape: tuple[int, int, int], most: int
) -> tuple[InferRequest, Images]:
    """The request in a body, and its images: at most `most`; model inputs must have the `shape` (C, S, S).

    Raises RefusedError with 400, or 413 for too many images, lists or objects.
    """
    if header_length is None:
        header_length = str(len(body))
    if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > len(body):
        raise RefusedError(400, f"{HEADER_LENGTH} is {header_length:.20}, but the body has {len(body)} bytes")
    header, binary = body[: int(header_length)], body[int(header_length) :]
    if header.count(b"[") + header.count(b"{") > MOST_NESTED:
        raise RefusedError(413, f"the JSON has more than {MOST_NESTED:,} lists and objects; send binary tensors")
    try:
        content = json.loads(header, object_pairs_hook=_no_key_twice)
        request = InferRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the request"
        fault = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
        raise RefusedError(400, f"{place:.200}: {fault:.200}") from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not the JSON of an inference request: {error!s:.200}") from None
    names = [output.name for output in request.outputs]
    if len(set(names)) < len(names):
        raise RefusedError(400, "outputs: one is asked for twice")
    tensor = request.inputs[0]
    count = tensor.shape[0] if tensor.shape else 0
    if count < 1 or min(tensor.shape) < 0:
        raise RefusedError(400, f"inputs.0.shape is {tensor.shape!s:.100}; its first number counts the images, from 1")
    if count > most:
        raise RefusedError(413, f"the request has {count} images; at most {most} are allowed")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise RefusedError(400, "inputs.0: give either data, or binary_data_size among its parameters")
    if (size or 0) != len(binary):
        stated = f"inputs.0 states {size or 0} bytes of binary data"
        raise RefusedError(400, f"{stated}, but {len(binary)} follow the JSON; {HEADER_LENGTH} says how long that is")
    images = (_files if tensor.datatype == "BYTES" else _model_inputs)(tensor, binary, shape)
    tensor.data = None  # of numbers as JSON, which take much memory
    return request, images


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return made


def _files(tensor: InputTensor, binary: bytes, _: tuple[int, int, int]) -> list[bytes]:
    if tensor.data is None:
        files = list(_elements(binary))
    else:
        try:
            files = [base64.b64decode(each, validate=True) for each in tensor.data]
        except (ValueError, TypeError):
            raise RefusedError(400, "inputs.0.data: image files are binary data, or texts in base64") from None
    if math.prod(tensor.shape) != len(files) or len(files) != tensor.shape[0]:
        raise RefusedError(400, f"inputs.0.shape is {tensor.shape!s:.100}, but there are {len(files)} image files")
    return files


def _elements(binary: bytes) -> Iterator[bytes]:
    """The elements of a BYTES tensor: the length of each, in four bytes, comes before it."""
    start = 0
    while start < len(binary):
        stop = start + 4 + int.from_bytes(binary[start : start + 4], "little")
        if start + 4 > len(binary) or stop > len(binary):
            raise RefusedError(400, "inputs.0: the binary data end within an image file")
        yield binary[start + 4 : stop]
        start = stop


def _model_inputs(tensor: InputTensor, binary: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    if tuple(tensor.shape[1:]) != shape:
        needed = f"(B, {', '.join(map(str, shape))})"
        raise RefusedError(400, f"inputs.0.shape is {tensor.shape!s:.100}; model inputs have {needed}")
    try:
        values = np.frombuffer(binary, "<f4") if tensor.data is None else np.array(tensor.data)
        if values.dtype.kind not in "fi":
            raise ValueError("data must be numbers")
        if values.ndim != 1 and values.shape != tuple(tensor.shape):
            raise ValueError(f"data must be flat, or lists of the shape {tensor.shape}")
        if values.size != math.prod(tensor.shape):
            raise ValueError(f"the shape {tensor.shape} needs {math.prod(tensor.shape)} numbers, not {values.size}")
        with np.errstate(over="ignore"):  # numbers too large become infinite, and are refused
            return check_images(values.astype(np.float32, copy=False).reshape(tensor.shape), shape)
    except (ValueError, DataError) as error:
        raise RefusedError(400, f"inputs.0: {error!s:.200}") from None


def write_answer(
    model: str, request: InferRequest, setting: str, values: dict[str, np.ndarray | list[str]]
) -> tuple[bytes, int | None]:
    """The body of the answer, and how many bytes of it are JSON, where binary tensors follow.

    `values` are those of `OUTPUTS`, B of each.
    """
    outputs, binary = [], []
    for asked in request.outputs:
        value = values[asked.name]
        described = {"name": asked.name, "datatype": OUTPUTS[asked.name], "shape": list(np.shape(value))}
        as_bytes = asked.parameters.binary_data
        if request.parameters.binary_data_output if as_bytes is None else as_bytes:
            binary.append(_as_bytes(value))
            described["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            described["data"] = value if isinstance(value, list) else value.ravel().tolist()
        outputs.append(described)
    named = {"id": request.id} if request.id is not None else {}
    answer = {"model_name": model, **named, "parameters": {"setting": setting}, "outputs": outputs}
    header = json.dumps(answer).encode()
    return b"".join([header, *binary]), len(header) if binary else None


def _as_bytes(value: np.ndarray | list[str]) -> bytes:
    if isinstance(value, list):
        return b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, value))
    return value.astype(value.dtype.newbyteorder("<")).tobytes()


def model_metadata(name: str, platform: str, num_classes: int) -> dict[str, Any]:
    """What GET /v2/models/NAME says."""
    shapes = {output: [-1, num_classes] if output == "probabilities" else [-1] for output in OUTPUTS}
    return {
        "name": name,
        "platform": platform,
        "inputs": [{"name": "images", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": each, "datatype": OUTPUTS[each], "shape": shapes[each]} for each in OUTPUTS],
    }
