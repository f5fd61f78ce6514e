"""The service over HTTP: answers, budgets, refusals, a full queue, and shutdown under load."""

import contextlib
import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from service import SERVE, Answer, Service, photographs, png, preprocessed, wait_until

for name in ("fastapi", "uvicorn", "prometheus_client", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install -r requirements-serve.txt")
from dvt.deploy import Cascade  # noqa: E402
from dvt.early_exit.certify import Certificate  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(service_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(service_bundle, tmp_path_factory.mktemp("log") / "log", "--limits.max_bytes=200000") as started:
        yield started


def as_query(thresholds: np.ndarray) -> str:
    return "?thresholds=" + ",".join(map(str, thresholds))


def test_answers_under_concurrent_load_are_those_of_the_cascade(service: Service, service_bundle: Path, spread):
    files = photographs(120)
    with Cascade(service_bundle) as cascade:
        expected = cascade.predict(preprocessed(cascade, files), spread)
        names = cascade.class_names
    assert set(expected.exit_index) == {0, 1, 2}
    before = [service.metric(f'dvt_images_total{{exit="{k}",setting="explicit"}}') for k in (1, 2, 3)]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda file: service.ask(file, as_query(spread)), files))
    assert [answer.status for answer in answers] == [200] * len(files)
    contents = [answer.content for answer in answers]
    assert [content["exit"] for content in contents] == (expected.exit_index + 1).tolist()
    assert [content["label"] for content in contents] == [names[label] for label in expected.labels]
    np.testing.assert_allclose([content["confidence"] for content in contents], expected.confidence, atol=1e-5)
    assert all(content["milliseconds"] > 0 for content in contents)

    after = [service.metric(f'dvt_images_total{{exit="{k}",setting="explicit"}}') for k in (1, 2, 3)]
    assert (np.array(after) - before).tolist() == np.bincount(expected.exit_index, minlength=3).tolist()
    assert sum(service.metric(f'dvt_exit_share{{exit="{k}"}}') for k in (1, 2, 3)) == pytest.approx(1)
    runs = service.metric('dvt_batch_size_count{exit="1"}')
    assert service.metric('dvt_batch_size_sum{exit="1"}') > runs  # some ran together
    assert service.metric("dvt_pending") == 0


def test_the_budget_is_chosen_per_request(service: Service, service_bundle: Path):
    file = photographs(1)[0]
    with Cascade(service_bundle) as cascade:
        settings = list(cascade.thresholds)
    assert service.ask(file).content["setting"] == settings[0]
    assert service.ask(file, f"?setting={settings[-1]}").content["setting"] == settings[-1]
    exits = [service.ask(file, f"?thresholds={values}").content["exit"] for values in ("0,0,0", "2,0,0", "2,2,0")]
    assert exits == [1, 2, 3]
    model = service.request("GET", "/model").content
    assert [setting["name"] for setting in model["settings"]] == settings
    assert re.match(r"ONNX Runtime \S+, CPUExecutionProvider", model["runs_on"])


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?setting=nonsense", "there are: recommended"),
        ("?thresholds=0.5", "3 exits need"),
        ("?thresholds=a,b,c", "give 3 numbers"),
        ("?thresholds=inf,0,0", "each of at least 0"),
        ("?thresholds=-0.5,0,0", "each of at least 0"),
        ("?thresholds=true,0,0", "give 3 numbers"),
        ("?thresholds=nan,0,0", "each of at least 0"),
        ("?thresholds=0,0,0&setting=recommended", "not both"),
        ("?treshold=0,0,0", "no parameter 'treshold'"),
        ("?thresholds=0,0,0&thresholds=2,2,0", "given twice"),
    ],
)
def test_wrong_budgets_are_refused(service: Service, query: str, words: str):
    answer = service.ask(photographs(1)[0], query)
    assert answer.status == 400 and words in answer.content["detail"]


def test_wrong_uploads_are_refused_and_the_service_goes_on(service: Service):
    enormous = png(np.zeros((7000, 7000), np.uint8))
    assert len(enormous) < 200_000  # it passes the limit of bytes
    refusals = {
        "nothing": (service.ask(), 400),
        "text": (service.ask(b"not an image"), 400),
        "cut short": (service.ask(photographs(1)[0][:500]), 400),
        "too many bytes": (service.ask(bytes(200_001)), 413),
        "too many pixels": (service.ask(enormous), 413),
        "form": (service.ask(b"--x--", **{"Content-Type": "multipart/form-data; boundary=x"}), 415),
        "no length": (
            service.request("POST", "/predict", iter([b"5\r\nhello\r\n0\r\n\r\n"]), {"Transfer-Encoding": "chunked"}),
            411,
        ),
    }
    assert {name: answer.status for name, (answer, _) in refusals.items()} == {
        name: status for name, (_, status) in refusals.items()
    }
    assert all(answer.content["detail"] for answer, _ in refusals.values())
    assert service.metric('dvt_requests_total{status="413"}') == 2
    assert service.ask(photographs(1)[0]).status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Host: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Host: localhost\r\nTransfer-Encoding: chunked", 411),
        ("Host: evil.example\r\nContent-Length: 5", 400),
        ("Host: localhost:1@evil.example\r\nContent-Length: 5", 400),
    ],
)
def test_bodies_without_a_bound_and_other_hosts_are_refused_unread(service: Service, head: str, status: int):
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n\r\n".encode())
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.sendall(chunk)
                sent += 1
        assert sent < 50  # MiB; some fit into the buffers of both sides
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(12) == f"HTTP/1.1 {status}".encode()
    assert memory_of(service.process.pid) < 600e6 and service.ask(photographs(1)[0]).status == 200


def memory_of(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found[1])


def test_head_and_headers(service: Service):
    for path in ("/healthz", "/model", "/metrics", "/", "/page/page.js"):
        asked, got = service.request("HEAD", path), service.request("GET", path)
        assert (asked.status, got.status) == (200, 200) and not asked.content
        for answer in (asked, got):
            assert answer.headers["x-content-type-options"] == "nosniff" and "referrer-policy" in answer.headers
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert service.request("HEAD", "/predict").status == 405
    for host, status in {"localhost": 200, "127.0.0.1:9": 200, "[::1]": 200, "LOCALHOST.": 200, "a.b": 400}.items():
        assert service.request("GET", "/healthz", headers={"Host": host}).status == status


def test_get_takes_no_parameters(service: Service):
    for path in ("/healthz", "/model", "/metrics", "/"):
        answers = [service.request(method, f"{path}?setting=recommended") for method in ("GET", "HEAD")]
        assert [answer.status for answer in answers] == [400, 400]
        assert answers[0].content["detail"] == f"GET {path} takes no parameters; leave out setting"


def test_out_of_file_descriptors_it_waits(service_bundle: Path, tmp_path: Path):
    """Connections beyond the limit are turned away; the processor rests and the log stays short."""
    with Service(service_bundle, tmp_path / "log", open_files=64) as service:
        clients = []
        with contextlib.suppress(OSError):
            for _ in range(200):
                clients.append(socket.create_connection(("127.0.0.1", service.port), timeout=2))
        process = psutil.Process(service.process.pid)
        before = process.cpu_times()
        time.sleep(2)
        assert process.cpu_times().user - before.user < 1
        for client in clients:
            client.close()
        wait_until(lambda: service.ask(photographs(1)[0]).status == 200)
    assert len(clients) > 40 and len(service.log.read_text()) < 5000


def test_a_client_that_leaves_in_the_middle_gives_its_place_back(service: Service):
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        wait_until(lambda: service.metric("dvt_pending") == 1)
    wait_until(lambda: service.metric("dvt_pending") == 0)
    assert service.ask(photographs(1)[0]).status == 200


def test_a_full_queue_answers_503_and_slow_clients_lose_their_places(service_bundle: Path, tmp_path: Path):
    file = photographs(1)[0]
    with Service(service_bundle, tmp_path / "log", "--limits.max_pending=2", "--limits.upload_seconds=2") as service:
        slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(2)]
        for client in slow:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        wait_until(lambda: service.metric("dvt_pending") == 2)
        refused = service.ask(file)
        assert refused.status == 503 and refused.headers["retry-after"] == "1"
        assert service.request("GET", "/healthz").status == 200  # full, but well
        assert slow[0].recv(100).startswith(b"HTTP/1.1 408")
        wait_until(lambda: service.metric("dvt_pending") == 0)
        assert service.ask(file).status == 200
        for client in slow:
            client.close()


def test_an_exit_that_fails_answers_500_and_the_service_goes_on(service_bundle: Path, tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    bundle = shutil.copytree(service_bundle, tmp_path / "bundle")
    second = bundle / "exit_1.onnx"
    graph = onnx.load(second)
    for weights in graph.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT:
            nothing = np.full(tuple(weights.dims), np.nan, np.float32)
            weights.CopyFrom(onnx.numpy_helper.from_array(nothing, weights.name))
    onnx.save(graph, second)
    content = second.read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["ONNX"]["exits"][1].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    file = photographs(1)[0]
    with Service(bundle, tmp_path / "log") as service:
        failed = service.ask(file, "?thresholds=2,0,0")
        assert failed.status == 500 and "log says why" in failed.content["detail"]
        assert service.ask(file, "?thresholds=0,0,0").status == 200
        assert service.request("GET", "/healthz").status == 200
        assert service.metric("dvt_pending") == 0
        assert service.metric('dvt_requests_total{status="500"}') == 1
    assert "exit 2 returned probabilities that are not finite" in service.log.read_text()


def test_a_mistake_at_the_start_is_named(service: Service, service_bundle: Path, tmp_path: Path):
    bare = shutil.copytree(service_bundle, tmp_path / "bare")
    manifest = json.loads((bare / "manifest.json").read_text())
    (bare / "manifest.json").write_text(json.dumps({**manifest, "preprocessing": None}))
    mistakes = {
        "is not a bundle": [str(tmp_path)],
        "limits.max_batch is 0; it must be a whole number of at least 1": [str(service_bundle), "--limits.max_batch=0"],
        "the bundle has no preprocessing": [str(bare)],
        "port is 99999; it must be a whole number of at least 1 and": [
            str(service_bundle),
            "--port=99999",
        ],
        f"cannot listen on 127.0.0.1, port {service.port}": [str(service_bundle), f"--port={service.port}"],
    }
    for words, arguments in mistakes.items():
        command = [sys.executable, str(SERVE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_audits_show_that_a_certificate_does_not_hold(service_bundle: Path, tmp_path: Path):
    """All images leave at the first exit, and many of their classes are not those of the last exit."""
    bundle, certified, files = shutil.copytree(service_bundle, tmp_path / "bundle"), [0.0, 0.0, 0.0], photographs(60)
    certificate = Certificate(tuple(certified), "changes", 1.0, 0.95, 1000, 650, "", 0.1, 0.5, 1.0, 0.01, 0.01, 0)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("good", "bad"):
        manifest["thresholds"][name] = {"values": certified, "certificate": certificate.to_json()}
    manifest["thresholds"]["good"]["certificate"]["change_bound"] = 100.0
    manifest["thresholds"]["plain"] = {"values": certified}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with Cascade(bundle) as cascade:
        found = cascade.all_exits(preprocessed(cascade, files)).argmax(axis=2)
    changed = int((found[0] != found[2]).sum())
    assert 5 < changed < 60
    with Service(bundle, tmp_path / "log", "--audit", "1") as service:

        def metric(name: str, setting: str, more: str = "") -> float:
            return service.metric(f'dvt_{name}{{{more}setting="{setting}"}}')

        assert metric("certificate_holds", "bad") == metric("certificate_holds", "good") == 1
        for name in ("good", "bad", "plain"):
            for number, file in enumerate(files, start=1):
                assert service.ask(file, f"?setting={name}").content["exit"] == 1
                wait_until(lambda name=name, number=number: metric("audited_total", name) == number)
            assert metric("audit_changed_total", name) == changed and metric("audit_dropped_total", name) == 0
            low, high = (metric("change_share", name, f'end="{end}",') for end in ("low", "high"))
            assert 0.01 < low < changed / 60 < high < 1
        assert metric("certified_change_share", "bad") == 0.01
        assert metric("certificate_holds", "bad") == 0 and metric("certificate_holds", "good") == 1
        assert 'dvt_certificate_holds{setting="plain"}' not in service.request("GET", "/metrics").content
        service.ask(files[0], "?thresholds=0,0,0")  # a request's own thresholds are not audited
        service.ask(files[0], "?thresholds=2,2,0")
        listed = {each["name"]: each for each in service.request("GET", "/model").content["settings"]}
        assert listed["bad"]["promise"] == certificate.promise() and listed["plain"]["promise"] == "not certified"
        with ThreadPoolExecutor(16) as clients:  # audits of a busy service are dropped, not queued without end
            list(clients.map(lambda file: service.ask(file, "?setting=plain"), files * 3))
        wait_until(lambda: metric("audited_total", "plain") + metric("audit_dropped_total", "plain") == 240)
    log = service.log.read_text()
    assert log.count("the certificate of the setting 'bad' does not hold for these images") == 1
    assert "'good'" not in log and "Traceback" not in log


def test_ctrl_c_ends_it_quietly(service_bundle: Path, tmp_path: Path):
    with Service(service_bundle, tmp_path / "log", "--limits.drain_seconds=0") as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(timeout=20) == 130
    assert "Traceback" not in service.log.read_text()


def test_shutdown_under_load_loses_no_accepted_request(service_bundle: Path, tmp_path: Path, spread):
    """Clients that reconnect for every request send until the socket is closed: each gets 200 before, 503 after."""
    files = photographs(20)
    answers: list[Answer] = []
    broken: list[tuple[float, Exception]] = []

    def send(first: int) -> None:
        for number in range(400):
            try:
                answers.append(service.ask(files[(first + number) % len(files)], as_query(spread)))
            except ConnectionRefusedError:
                return  # the socket is closed: nothing was accepted
            except OSError as error:
                broken.append((time.monotonic(), error))
                return

    with Service(service_bundle, tmp_path / "log", "--limits.drain_seconds=1") as service:
        clients = [threading.Thread(target=send, args=(index,)) for index in range(8)]
        for client in clients:
            client.start()
        wait_until(lambda: len(answers) > 50)
        held = socket.create_connection(("127.0.0.1", service.port))  # accepted before the end, sends its image after
        held.sendall(
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(files[0])}\r\n\r\n".encode()
            + files[0][:100]
        )
        time.sleep(0.3)
        stopped = time.monotonic()
        service.stop()
        wait_until(lambda: any(answer.status == 503 for answer in answers))
        assert service.request("GET", "/healthz").status == 503
        time.sleep(1.5)  # the socket is closed by now
        held.sendall(files[0][100:])
        assert held.recv(100).startswith(b"HTTP/1.1 200")
        held.close()
        for client in clients:
            client.join(timeout=30)
        assert service.process.wait(timeout=20) == -signal.SIGTERM  # which uvicorn raises again
    assert {answer.status for answer in answers} == {200, 503}
    assert all("shutting down" in answer.content["detail"] for answer in answers if answer.status == 503)
    # Only connections that came as the socket closed, long after the last request was accepted, may have been reset.
    assert all(when > stopped + 0.9 and isinstance(error, ConnectionResetError) for when, error in broken)
    assert "Traceback" not in service.log.read_text()
