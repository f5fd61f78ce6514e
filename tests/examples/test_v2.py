"""The Open Inference Protocol over HTTP: with Triton's client as it comes, and with plain HTTP."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from service import Answer, Service, photographs, preprocessed, wait_until

for name in ("fastapi", "uvicorn", "prometheus_client", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install -r requirements-serve.txt")
from dvt.deploy import Cascade  # noqa: E402

pytestmark = pytest.mark.slow
MODEL = "dvt_deit_small"
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def service(service_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = "--limits.max_bytes=200000", "--limits.max_pending=32"
    with Service(service_bundle, tmp_path_factory.mktemp("log") / "log", *options) as started:
        yield started


def small_files(count: int) -> list[bytes]:
    """So small that many are within the limit of bytes."""
    files = []
    for file in photographs(count):
        with Image.open(io.BytesIO(file)) as image:
            made = io.BytesIO()
            image.resize((48, 40)).save(made, "PNG")
        files.append(made.getvalue())
    return files


def post(service: Service, content: object) -> Answer:
    return service.request("POST", INFER, json.dumps(content).encode())


def test_the_client_of_triton_gets_the_answers_of_the_cascade(service: Service, service_bundle: Path, spread):
    reason = "tritonclient is not installed: pip install -r requirements-client.txt"
    triton = pytest.importorskip("tritonclient.http", reason=reason)
    files = small_files(24)
    with Cascade(service_bundle) as cascade:
        inputs, names = preprocessed(cascade, files), cascade.class_names
        expected = cascade.predict(inputs, spread)
        by_default = cascade.predict(inputs)
    assert set(expected.exit_index) == {0, 1, 2}
    client = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert not client.is_model_ready("nonsense")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata(MODEL)
    declared = described["inputs"][0]
    as_files = triton.InferInput(declared["name"], [len(files)], declared["datatype"])
    as_files.set_data_from_numpy(np.array(files, dtype=object))
    as_tensors = triton.InferInput(declared["name"], [len(files[:12]), *inputs.shape[1:]], "FP32")
    as_tensors.set_data_from_numpy(inputs[:12])

    chosen = {"thresholds": ",".join(map(str, spread))}
    result = client.infer(MODEL, [as_files], request_id="42", parameters=chosen)
    assert result.get_response()["id"] == "42" and result.get_response()["parameters"] == {"setting": "explicit"}
    found = {each["name"]: result.as_numpy(each["name"]) for each in described["outputs"]}
    assert [label.decode() for label in found["label"]] == [names[label] for label in expected.labels]
    assert found["exit_index"].tolist() == expected.exit_index.tolist()
    np.testing.assert_allclose(found["confidence"], expected.confidence, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)

    outputs = [triton.InferRequestedOutput("exit_index"), triton.InferRequestedOutput("label", binary_data=False)]
    result = client.infer(MODEL, [as_tensors], outputs=outputs)
    assert result.as_numpy("exit_index").tolist() == by_default.exit_index[:12].tolist()
    assert result.as_numpy("label").tolist() == [names[label] for label in by_default.labels[:12]]
    assert result.as_numpy("confidence") is None

    for options, words in (
        ({"parameters": {"setting": "nonsense"}}, r"\[400\] there is no setting"),
        ({"parameters": {"treshold": "0,0,0"}}, r"\[400\] parameters.treshold: there is no such key"),
        ({"priority": 1}, r"\[400\] parameters.priority: there is no such key"),
        ({"request_compression_algorithm": "gzip"}, r"\[415\] send the body as it is"),
        ({"query_params": {"setting": "recommended"}}, r"\[400\] .* in the body"),
        ({"headers": {"Host": "evil.example"}}, r"\[400\] this service does not answer for"),
    ):
        with pytest.raises(triton.InferenceServerException, match=words):
            client.infer(MODEL, [as_files], **options)
    with pytest.raises(triton.InferenceServerException, match=r"\[404\] there is no model 'nonsense'"):
        client.infer("nonsense", [as_files])
    client.close()


def test_plain_json_and_metrics(service: Service, service_bundle: Path):
    with Cascade(service_bundle) as cascade:
        model = cascade.manifest.model
    zeros = np.zeros((2, model.in_channels, model.image_size, model.image_size), int)
    content = {"inputs": [{"name": "images", "datatype": "FP32", "shape": zeros.shape, "data": zeros.tolist()}]}
    names = "requests_total", "images_total", "pending"

    def metrics() -> list[float]:
        labels = '{status="200"}', '{exit="1",setting="explicit"}', ""
        return [service.metric(f"dvt_{name}{label}") for name, label in zip(names, labels, strict=True)]

    before = metrics()
    answer = post(service, content | {"parameters": {"thresholds": "0,0,0"}})
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert "decode;dur=" in answer.headers["server-timing"]
    outputs = {each["name"]: each["data"] for each in answer.content["outputs"]}
    assert outputs["exit_index"] == [0, 0] and outputs["label"][0] == outputs["label"][1]
    assert len(outputs["probabilities"]) == 20 and max(outputs["probabilities"]) == max(outputs["confidence"])
    assert (np.array(metrics()) - before).tolist() == [1, 2, 0]  # one request with two images


def test_wrong_requests_are_refused_whole(service: Service):
    good, bad = small_files(1)[0], b"not an image"
    binary = b"".join(len(each).to_bytes(4, "little") + each for each in (good, bad))
    tensor = {"name": "images", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(binary)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    many = {"name": "images", "datatype": "BYTES", "shape": [33], "data": [""] * 33}
    refusals = {
        "bad file": (service.request("POST", INFER, header + binary, length), 400),
        "no JSON": (service.request("POST", INFER, good), 400),
        "nothing": (service.request("POST", INFER, b""), 400),
        "too many images": (post(service, {"inputs": [many]}), 413),
        "too many bytes": (service.request("POST", INFER, bytes(200_001)), 413),
        "no length": (service.request("POST", INFER, iter([b"0\r\n\r\n"]), {"Transfer-Encoding": "chunked"}), 411),
        "other method": (service.request("GET", INFER), 405),
        "no such page": (service.request("GET", "/v2/nonsense"), 404),
        "other host": (service.request("GET", "/v2", headers={"Host": "evil.example"}), 400),
    }
    assert {name: answer.status for name, (answer, _) in refusals.items()} == {
        name: status for name, (_, status) in refusals.items()
    }
    assert all(list(answer.content) == ["error"] for answer, _ in refusals.values())
    assert refusals["bad file"][0].content["error"].startswith("image 1 of the batch, counted from 0: ")
    assert service.metric("dvt_pending") == 0
    assert service.ask(small_files(1)[0]).status == 200


def test_what_is_not_offered_says_what_to_ask(service: Service):
    for method, path, status, words in (
        ("GET", f"/v2/models/{MODEL}/versions/1", 404, f"no versions here; ask for /v2/models/{MODEL},"),
        ("GET", f"/v2/models/{MODEL}/versions/1/ready", 404, "no versions here"),
        ("POST", f"/v2/models/{MODEL}/versions/1/infer", 404, "no versions here"),
        ("GET", f"/v2/models/{MODEL}/stats", 404, "GET /metrics has them"),
        ("GET", "/v2/models/nonsense/versions/1", 404, "there is no model 'nonsense'"),
        ("GET", f"/v2/models/{MODEL}?version=1", 400, f"GET /v2/models/{MODEL} takes no parameters; leave out version"),
        ("GET", "/v2/health/ready?x", 400, "takes no parameters; leave out x"),
    ):
        answer = service.request(method, path)
        assert (answer.status, list(answer.content)) == (status, ["error"]) and words in answer.content["error"], path


def test_a_body_without_end_is_not_read(service: Service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n".encode())
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()


def test_audits_and_a_full_queue(service_bundle: Path, tmp_path: Path):
    """Each image of a request takes a place and may be audited; where there are too few places none is run."""
    file = small_files(1)[0]
    binary = 3 * (len(file).to_bytes(4, "little") + file)
    tensor = {"name": "images", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(binary)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    manifest = json.loads((service_bundle / "manifest.json").read_text())
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for each in service_bundle.iterdir():
        (bundle / each.name).symlink_to(each)
    (bundle / "manifest.json").unlink()
    manifest["thresholds"] = {"first": {"values": [0.0, 0.0, 0.0]}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    options = "--audit=1", "--limits.max_pending=3", "--limits.upload_seconds=30"
    with Service(bundle, tmp_path / "log", *options) as service:
        assert service.request("POST", INFER, header + binary, headers).status == 200
        wait_until(lambda: service.metric('dvt_audited_total{setting="first"}') == 3)
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
            wait_until(lambda: service.metric("dvt_pending") == 1)
            refused = service.request("POST", INFER, header + binary, headers)
            assert refused.status == 503 and "too many requests are pending" in refused.content["error"]
            assert service.metric("dvt_pending") == 1
        wait_until(lambda: service.metric("dvt_pending") == 0)
        assert service.request("POST", INFER, header + binary, headers).status == 200
