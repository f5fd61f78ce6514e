"""Requests and answers of the Open Inference Protocol as bytes, without a server."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -r requirements-serve.txt")
from dvt_service.decoding import RefusedError
from dvt_service.protocol import OUTPUTS, read_request, write_answer

SHAPE, MOST = (1, 2, 2), 4
FILES = [b"first", b"", b"third"]
AS_BYTES = b"".join(struct.pack("<I", len(each)) + each for each in FILES)
INPUTS = np.arange(8, dtype=np.float32).reshape(2, *SHAPE)


def tensor(**values: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "FP32", "shape": [2, 1, 2, 2], **values}


def body_of(*tensors: dict[str, Any], binary: bytes = b"", **more: Any) -> tuple[bytes, str]:
    header = json.dumps({"inputs": tensors, **more}).encode()
    return header + binary, str(len(header))


def test_images_arrive_as_they_were_sent():
    sized = tensor(datatype="BYTES", shape=[3], parameters={"binary_data_size": len(AS_BYTES)})
    _, images = read_request(*body_of(sized, binary=AS_BYTES), SHAPE, MOST)
    assert images == FILES
    texts = [base64.b64encode(each).decode() for each in FILES]
    for shape in ([3], [3, 1]):
        _, images = read_request(*body_of(tensor(datatype="BYTES", shape=shape, data=texts)), SHAPE, MOST)
        assert images == FILES
    raw = INPUTS.tobytes()
    sized = tensor(parameters={"binary_data_size": len(raw)})
    for body, length in (
        body_of(sized, binary=raw),
        body_of(tensor(data=INPUTS.tolist())),
        (body_of(tensor(data=INPUTS.ravel().astype(int).tolist()))[0], None),
    ):
        _, images = read_request(body, length, SHAPE, MOST)
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, INPUTS)


def test_what_is_asked_for_is_read():
    parameters = {"setting": "fast", "binary_data_output": True}
    body = body_of(tensor(data=INPUTS.tolist()), id="7", outputs=[{"name": "label"}], parameters=parameters)
    asked, _ = read_request(*body, SHAPE, MOST)
    assert (asked.id, asked.parameters.setting, [each.name for each in asked.outputs]) == ("7", "fast", ["label"])
    asked, _ = read_request(*body_of(tensor(data=INPUTS.tolist())), SHAPE, MOST)
    assert [each.name for each in asked.outputs] == list(OUTPUTS) and asked.parameters.setting is None


@pytest.mark.parametrize(
    ("tensors", "more", "binary", "words"),
    [
        ([], {}, b"", "inputs: List should have at least 1 item"),
        ([tensor(data=[0] * 8)] * 2, {}, b"", "inputs: List should have at most 1 item"),
        ([tensor(data=[0] * 8)], {"surprise": 1}, b"", "surprise: there is no such key"),
        ([tensor(data=[0] * 8)], {"parameters": {"treshold": 1}}, b"", "parameters.treshold: there is no such key"),
        ([tensor(data=[0] * 8)], {"outputs": [{"name": "logits"}]}, b"", "outputs.0.name"),
        ([tensor(data=[0] * 8)], {"outputs": [{"name": "label"}] * 2}, b"", "asked for twice"),
        ([tensor(data=[0] * 8, name="pixels")], {}, b"", "inputs.0.name"),
        ([tensor(data=[0] * 8, datatype="INT8")], {}, b"", "inputs.0.datatype"),
        ([tensor(data=[0] * 8, shape=[2, 2, 2, 1])], {}, b"", "model inputs have (B, 1, 2, 2)"),
        ([tensor(data=[0] * 8, shape=[])], {}, b"", "its first number counts the images"),
        ([tensor(data=[0] * 8, shape=[-2, 1, -2, 2])], {}, b"", "its first number counts the images"),
        ([tensor(data=[], shape=[0, 1, 2, 2])], {}, b"", "its first number counts the images"),
        ([tensor(data=[0] * 8, shape=[9**20, 1, 2, 2])], {}, b"", "at most 4 are allowed"),
        ([tensor(data=[0] * 7)], {}, b"", "needs 8 numbers, not 7"),
        ([tensor(data=[[0] * 4, [0] * 4])], {}, b"", "lists of the shape"),
        ([tensor(data=[[0] * 4, [0] * 3])], {}, b"", "inputs.0"),
        ([tensor(data=["0"] * 8)], {}, b"", "must be numbers"),
        ([tensor(data=[True] * 8)], {}, b"", "must be numbers"),
        ([tensor(data=[10**400] * 8)], {}, b"", "must be numbers"),
        ([tensor(data=[1e300] * 8)], {}, b"", "NaN or infinite"),
        ([tensor(data=[float("nan")] * 8)], {}, b"", "NaN or infinite"),
        ([tensor()], {}, b"", "give either data, or binary_data_size"),
        ([tensor(data=[0] * 8, parameters={"binary_data_size": 4})], {}, b"1234", "give either data"),
        ([tensor(data=[0] * 8)], {}, b"1234", "4 follow the JSON"),
        ([tensor(parameters={"binary_data_size": 32})], {}, bytes(31), "31 follow the JSON"),
        ([tensor(parameters={"binary_data_size": 31})], {}, bytes(31), "inputs.0"),
        ([tensor(parameters={"binary_data_size": 28})], {}, bytes(28), "needs 8 numbers, not 7"),
        ([tensor(datatype="BYTES", shape=[1], data=["%"])], {}, b"", "base64"),
        ([tensor(datatype="BYTES", shape=[1], data=[7])], {}, b"", "base64"),
        ([tensor(datatype="BYTES", shape=[2], data=["", "", ""])], {}, b"", "there are 3 image files"),
        ([tensor(datatype="BYTES", shape=[1, 2], data=["", ""])], {}, b"", "there are 2 image files"),
        (
            [tensor(datatype="BYTES", shape=[1], parameters={"binary_data_size": 6})],
            {},
            b"\3\0\0\0ab",
            "end within an image file",
        ),
        (
            [tensor(datatype="BYTES", shape=[1], parameters={"binary_data_size": 2})],
            {},
            b"\0\0",
            "end within an image file",
        ),
    ],
)
def test_wrong_requests_are_refused(tensors: list[Any], more: dict[str, Any], binary: bytes, words: str):
    with pytest.raises(RefusedError) as refused:
        read_request(*body_of(*tensors, binary=binary, **more), SHAPE, MOST)
    assert words in str(refused.value) and refused.value.status in (400, 413)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"1", b'{"inputs": [], "inputs": []}', b"[" * 100_000, b"9" * 100_000, b'"a"'],
)
def test_what_is_no_request_is_refused(body: bytes):
    with pytest.raises(RefusedError):
        read_request(body, None, SHAPE, MOST)


def test_json_that_would_fill_the_memory_is_not_parsed():
    with pytest.raises(RefusedError, match="more than 100,000 lists and objects") as refused:
        read_request(body_of(tensor(data=[[]] * 100_000))[0], None, SHAPE, MOST)
    assert refused.value.status == 413


@pytest.mark.parametrize("length", ["", "-1", "9", "1e1", "9" * 5000, "x"])
def test_a_wrong_length_of_the_json_is_refused(length: str):
    with pytest.raises(RefusedError, match="Inference-Header-Content-Length"):
        read_request(b"{}", length, SHAPE, MOST)


def test_answers_are_json_or_binary_as_asked():
    values = {"label": ["é", ""], "probabilities": np.float32([[0.25, 0.75], [1, 0]])}
    values |= {"confidence": np.float32([0.75, 1]), "exit_index": np.int32([2, 0])}
    data = tensor(data=INPUTS.tolist())
    asked, _ = read_request(*body_of(data, id="a"), SHAPE, MOST)
    body, length = write_answer("m", asked, "fast", values)
    answer = json.loads(body)
    assert length is None and answer["id"] == "a" and answer["parameters"] == {"setting": "fast"}
    found = {each["name"]: (each["datatype"], each["shape"], each["data"]) for each in answer["outputs"]}
    assert found == {
        "label": ("BYTES", [2], ["é", ""]),
        "probabilities": ("FP32", [2, 2], [0.25, 0.75, 1, 0]),
        "confidence": ("FP32", [2], [0.75, 1]),
        "exit_index": ("INT32", [2], [2, 0]),
    }
    outputs = [{"name": "label"}, {"name": "confidence", "parameters": {"binary_data": False}}, {"name": "exit_index"}]
    asked, _ = read_request(*body_of(data, outputs=outputs, parameters={"binary_data_output": True}), SHAPE, MOST)
    body, length = write_answer("m", asked, "fast", values)
    described = json.loads(body[:length])["outputs"]
    assert [each.get("parameters") for each in described] == [{"binary_data_size": 10}, None, {"binary_data_size": 8}]
    assert body[length:] == b"\2\0\0\0\xc3\xa9\0\0\0\0" + np.array([2, 0], "<i4").tobytes()
