"""Machines, ranks and the environment of the workers."""

import json
import os
from pathlib import Path

import pytest

from dvt.cli.launch import placement_from
from dvt.cluster.placement import Placement, bound_cores, whole_number, worker_environment
from dvt.errors import ConfigError


def test_ranks_of_the_machines_cover_the_world_once():
    machines = [Placement(4, nnodes=3, node_rank=rank) for rank in range(3)]
    assert [rank for machine in machines for rank in machine.ranks] == list(range(12))
    assert {machine.world_size for machine in machines} == {12}
    assert [machine.is_master for machine in machines] == [True, False, False]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"device_num": 0}, "DEVICE_NUM is 0"),
        ({"nnodes": 0}, "NNODES is 0"),
        ({"nnodes": 2, "node_rank": 2}, "NODE_RANK is 2; with NNODES=2 it must be 0 to 1"),
        ({"master_port": 80}, "MASTER_PORT is 80"),
        ({"cluster_timeout": 0}, "CLUSTER_TIMEOUT is 0"),
    ],
)
def test_mistakes_are_refused(wrong: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        Placement(**{"device_num": 1, **wrong})


def test_the_environment_describes_several_machines(tmp_path: Path):
    variables = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9000"}
    variables |= {"RANK_TABLE_FILE": str(tmp_path / "table.json"), "CLUSTER_TIMEOUT": "30", "BIND_CORE": "true"}
    assert placement_from(variables, 8) == Placement(8, 2, 1, "10.0.0.1", 9000, tmp_path / "table.json", 30, "true")


def test_one_machine_needs_no_variables_and_takes_a_free_port():
    placement = placement_from({"NNODES": ""}, 2)
    assert (placement.nnodes, placement.node_rank, placement.master_addr) == (1, 0, "127.0.0.1")
    assert placement_from({"MASTER_PORT": "9000"}, 2).master_port == 9000


@pytest.mark.parametrize("given", [{}, {"NODE_RANK": "1"}, {"MASTER_ADDR": "10.0.0.1"}])
def test_several_machines_need_rank_and_address(given: dict[str, str]):
    with pytest.raises(ConfigError, match="NODE_RANK .* and MASTER_ADDR .* are needed"):
        placement_from({"NNODES": "2", **given}, 1)


def test_whole_numbers():
    assert whole_number({"NNODES": "4"}, "NNODES", 1) == 4
    assert whole_number({"NNODES": ""}, "NNODES", 1) == whole_number({}, "NNODES", 1) == 1
    with pytest.raises(ConfigError, match="NNODES is 'two'; it must be a whole number"):
        whole_number({"NNODES": "two"}, "NNODES", 1)


def test_workers_get_the_interpreter_and_nothing_of_an_outer_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK_ID", "5")
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("DEVICE_ID", "1")
    monkeypatch.setenv("KEPT", "1")
    environment = worker_environment(Placement(2), "Ascend", Path("/opt/env/bin/python"))
    assert environment["PATH"].split(os.pathsep)[0] == "/opt/env/bin"
    assert environment["KEPT"] == "1"
    assert not {"RANK_ID", "MS_ROLE", "DEVICE_ID"} & environment.keys()


def test_cpu_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    threads = {n: worker_environment(Placement(n), "CPU", Path("/x/python"))["OMP_NUM_THREADS"] for n in (1, cores + 1)}
    assert threads == {1: str(cores), cores + 1: "1"}
    assert "OMP_NUM_THREADS" not in worker_environment(Placement(1), "GPU", Path("/x/python"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert worker_environment(Placement(1), "CPU", Path("/x/python"))["OMP_NUM_THREADS"] == "7"


def test_cpu_workers_get_different_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 4, 5, 7})
    assert json.loads(bound_cores(2)) == {"device0": ["0-0", "2-2"], "device1": ["4-4", "5-5"]}
    assert len(json.loads(bound_cores(5))) == 5
    assert bound_cores(1) is None and bound_cores(6) is None
