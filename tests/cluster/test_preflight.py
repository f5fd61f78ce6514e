"""What is checked before the start: each mistake is named, several at once; fingerprints tell ranks apart."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from dvt.cluster import preflight
from dvt.cluster.placement import Placement
from dvt.config import DataSection, RunConfig, TrainSection
from dvt.errors import ConfigError

CPU = {"CPU": 1}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH in which msrun is found, without MindSpore being asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "msrun").touch(mode=0o755)
    return str(folder)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    data = tmp_path / "data"
    data.mkdir()
    return RunConfig(data=DataSection(path=str(data)), device_target="CPU", output=str(tmp_path / "run"))


@pytest.fixture
def placement() -> Placement:
    return Placement(2, master_port=preflight.free_port())


def refusal(placement: Placement, config: RunConfig, counts: dict[str, int], path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        preflight.check(placement, config, counts, path)
    return str(caught.value)


def rank_table(path: Path, ranks: list[int]) -> Path:
    devices = [{"device_id": str(r % 8), "device_ip": f"192.168.0.{r}", "rank_id": str(r)} for r in ranks]
    path.write_text(json.dumps({"server_list": [{"server_id": "10.0.0.1", "device": devices}], "status": "completed"}))
    return path


def test_all_is_well(placement: Placement, config: RunConfig, path: str, tmp_path: Path):
    preflight.check(placement, config, CPU, path)
    table = rank_table(tmp_path / "table.json", [0, 1])
    ascend = replace(config, device_target="Ascend")
    preflight.check(replace(placement, rank_table_file=table), ascend, {"Ascend": 8, "CPU": 1}, path)


def test_too_few_devices(placement: Placement, config: RunConfig, path: str):
    config.device_target = "Ascend"
    assert "only: CPU" in refusal(placement, config, CPU, path)
    assert "DEVICE_NUM is 2, but this machine has 1 Ascend" in refusal(placement, config, {"Ascend": 1, "CPU": 1}, path)


def test_a_port_in_use(config: RunConfig, path: str):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert f"MASTER_PORT {port} is in use" in refusal(Placement(2, master_port=port), config, CPU, path)
        # On another machine the port is the master's business; its address is not one of this machine (TEST-NET-1).
        preflight.check(Placement(2, 2, 1, "192.0.2.1", port), config, CPU, path)
        assert preflight.free_port(port) != port


def test_addresses_that_do_not_fit_the_rank_of_the_machine(config: RunConfig, path: str):
    port = preflight.free_port()
    assert "is no address of this machine" in refusal(Placement(2, 2, 0, "192.0.2.1", port), config, CPU, path)
    assert "but NODE_RANK is 1" in refusal(Placement(2, 2, 1, "127.0.0.1", port), config, CPU, path)
    assert "cannot be resolved" in refusal(Placement(2, 2, 1, "no.such.host.invalid", port), config, CPU, path)


def test_rank_tables_that_do_not_fit(placement: Placement, config: RunConfig, path: str, tmp_path: Path):
    def said(table: Path, target: str = "Ascend") -> str:
        counts = {"Ascend": 8, "CPU": 1}
        return refusal(replace(placement, rank_table_file=table), replace(config, device_target=target), counts, path)

    assert "cannot be read: No such file" in said(tmp_path / "none.json")
    assert "names 3 rank(s), 0, 1, 2; 1 machine(s) with 2" in said(rank_table(tmp_path / "three.json", [0, 1, 2]))
    (tmp_path / "bad.json").write_text("{}")
    assert "is no rank table" in said(tmp_path / "bad.json")
    assert "for Ascend only" in said(rank_table(tmp_path / "good.json", [0, 1]), "CPU")


def test_missing_data_and_msrun_are_named_at_once(placement: Placement, config: RunConfig, tmp_path: Path):
    config.data.path = str(tmp_path / "none")
    said = refusal(placement, config, CPU, str(tmp_path))
    assert "msrun is neither beside" in said
    assert f"data.path {tmp_path / 'none'} is not a folder" in said
    assert said.count("\n") == 1


def test_an_image_folder_needs_a_path(placement: Placement, config: RunConfig, path: str):
    config.data.path = None
    assert "data.path is needed" in refusal(placement, config, CPU, path)
    config.data.dataset = "fashion_mnist"
    preflight.check(placement, config, CPU, path)


def test_the_check_leaves_nothing_in_the_output_folder(placement: Placement, config: RunConfig, path: str):
    preflight.check(placement, config, CPU, path)
    assert not os.path.exists(config.output)


def test_fingerprint_is_exact_in_float32_and_the_same_every_time():
    import numpy as np

    value = preflight.fingerprint(RunConfig())
    assert 0 <= value < 2**24
    assert int(np.float32(value)) == value
    assert preflight.fingerprint(RunConfig()) == value


def test_fingerprint_sees_the_configuration_but_not_what_may_differ_between_machines():
    base = preflight.fingerprint(RunConfig())
    assert preflight.fingerprint(RunConfig(seed=1)) != base
    assert preflight.fingerprint(RunConfig(train=TrainSection(learning_rate=1e-3))) != base
    local = RunConfig(data=DataSection(path="/elsewhere", workers=3), output="/elsewhere")
    assert preflight.fingerprint(local) == base


def test_fingerprint_sees_sources_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    base = preflight.fingerprint(RunConfig())
    monkeypatch.setattr(preflight, "versions", lambda: {"mindspore": "2.9.0"})
    assert preflight.fingerprint(RunConfig()) != base
    monkeypatch.setattr(preflight, "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    before = preflight.fingerprint(RunConfig())
    (tmp_path / "notes.txt").write_text("not a source file\n")
    assert preflight.fingerprint(RunConfig()) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert preflight.fingerprint(RunConfig()) != before


@pytest.mark.slow
def test_devices_are_counted_in_another_process():
    counts = preflight.count_devices()
    assert counts["CPU"] == 1
