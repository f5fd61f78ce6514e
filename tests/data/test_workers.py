"""Workers: the same batches from processes and threads, errors and deaths that come through, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import active_children

import numpy as np
import pytest
from data_files import write_image

from dvt.config import AugmentSection, DataSection
from dvt.data import load_splits, workers
from dvt.data.workers import Task, Workers, local_ranks, taken_ahead
from dvt.errors import DataError

EVERYTHING = AugmentSection(policy="rand-m9-mstd0.5-inc1", interpolation="random", erasing=0.5, mixup=0.8, cutmix=1.0)


def number(numbers, fail=None, bad=()):
    """Images that hold their number; module level, so that processes can import it."""
    values = np.array([value / (value != fail) for value in numbers], np.float32)
    return values, [(i, f"{value} is bad") for i, value in enumerate(numbers) if value in bad]


def as_images(values):
    return np.broadcast_to(values[:, None, None, None], (len(values), 1, 4, 4))


def tasks(batches, size, **keys):
    columns = [(list(range(i * size, (i + 1) * size)),) for i in range(batches)]
    return [Task(partial(number, **keys), each, as_images, (1, 4, 4), chunk=1) for each in columns]


def numbers(made):
    return [images[:, 0, 0, 0].tolist() for images, _ in made]


@pytest.mark.parametrize("count", [1, 3])
def test_batches_arrive_in_order_and_belong_to_the_receiver(count):
    made = list(Workers(count, "thread").batches(tasks(6, 10), images=60))  # all held at once
    assert numbers(made) == [[float(10 * i + j) for j in range(10)] for i in range(6)]


def test_bad_images_are_reported_by_their_place_in_the_batch():
    made = list(Workers(3, "thread").batches(tasks(3, 10, bad=(11, 17, 25)), images=30))
    assert [bad for _, bad in made] == [[], [(1, "11 is bad"), (7, "17 is bad")], [(5, "25 is bad")]]


def test_workers_go_on_after_an_error():
    threads = Workers(3, "thread")
    made = threads.batches(tasks(5, 10, fail=23), images=50)
    assert numbers([next(made), next(made)])[1][0] == 10
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert len(list(threads.batches(tasks(2, 10), images=20))) == 2


def test_a_pass_can_be_abandoned():
    threads = Workers(2, "thread")
    made = taken_ahead(threads.batches(tasks(50, 10), images=500))
    next(made)
    made.close()
    assert len(list(threads.batches(tasks(2, 10), images=20))) == 2


def test_items_are_taken_ahead_in_order_and_no_further():
    taken = []

    def items():
        for i in range(6):
            taken.append(i)
            yield i
        raise DataError("the end")

    got = taken_ahead(items(), 2)
    assert next(got) == 0
    deadline = time.monotonic() + 10
    while len(taken) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert taken == [0, 1, 2]  # one is in use, two wait
    assert [next(got) for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="the end"):
        next(got)


def test_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 24)
    for name in ("MSRUN_CPU_LIST", "LOCAL_RANK_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    shared = Workers(None, "auto")
    assert [shared.count(ranks) for ranks in (1, 2, 4, 8, 64)] == [8, 8, 6, 3, 3]
    assert Workers(5, "auto").count(8) == 5
    monkeypatch.setenv("LOCAL_RANK_SIZE", "4")
    assert local_ranks(32) == 4 and shared.count(32) == 6
    monkeypatch.setenv("MSRUN_CPU_LIST", "0-23")  # the process is bound to cores of its own
    assert shared.count(32) == 8
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    monkeypatch.delenv("MSRUN_CPU_LIST")
    assert shared.count(8) == 1


def test_short_passes_and_drawn_images_start_no_processes(image_folder, fashion_folder):
    before = active_children()
    list(load_splits(DataSection(path=str(image_folder)), 16, 0).training(6).epoch(0))
    scale = DataSection(dataset="fashion_mnist_scale", path=str(fashion_folder), worker_type="process")
    list(load_splits(scale, 28, 0).training(50).epoch(0))
    assert active_children() == before


@pytest.fixture
def photos(tmp_path):
    """60 training and 8 validation images of two classes."""
    for part, count in (("train", 30), ("val", 4)):
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(tmp_path / part / name / f"{i}.jpg", (50 + i, 40), seed=i)
    return tmp_path


def load(folder, kind, count, **keys):
    data = DataSection(path=str(folder), worker_type=kind, workers=count, **keys)
    return load_splits(data, 32, 0, EVERYTHING, label_smoothing=0.1)


def epoch(splits, number):
    batches = [*splits.training(8).epoch(number), *splits.batches("val", 3)]
    return [array.copy() for batch in batches for array in batch]


@pytest.mark.slow
def test_processes_make_the_same_batches_as_threads(photos):
    expected = epoch(load(photos, "thread", 1), 3)
    assert expected[0].shape == (8, 3, 32, 32) and expected[1].shape == (8, 2)
    for kind, count in (("thread", 3), ("process", 1), ("process", 2), ("process", 3)):
        splits = load(photos, kind, count)
        for _ in range(2):
            got = epoch(splits, 3)
            assert len(got) == len(expected)
            for array, same in zip(got, expected, strict=True):
                np.testing.assert_array_equal(array, same, err_msg=f"{count} {kind}")


@pytest.mark.slow
def test_arrays_from_processes_are_those_of_threads(fashion_folder):
    augment = AugmentSection(policy="autoaugment", erasing=0.5)

    def shown(kind):
        data = DataSection(dataset="fashion_mnist", path=str(fashion_folder), worker_type=kind, workers=2)
        batches = load_splits(data, 32, 0, augment).training(50).epoch(0)
        return np.concatenate([images for images, _ in batches])

    np.testing.assert_array_equal(shown("process"), shown("thread"))


@pytest.mark.slow
def test_long_passes_start_processes_by_themselves(photos, monkeypatch):
    monkeypatch.setattr(workers, "PROCESS_IMAGES", 50)
    splits = load(photos, "auto", 1)
    before = set(active_children())
    list(splits.batches("val", 4))
    assert not set(active_children()) - before
    list(splits.training(8).epoch(0))  # 56 images
    assert len(set(active_children()) - before) == 1


@pytest.mark.slow
def test_a_killed_worker_and_a_bad_file_are_named(photos):
    others = set(active_children())  # of pools that earlier tests of this process have left to the garbage collector
    splits = load(photos, "process", 2)
    for _ in splits.training(8).epoch(0):
        break  # abandoned
    victim = next(child for child in set(active_children()) - others if "Spawn" in child.name)
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"worker process ended unexpectedly.*data\.workers"):
        for _ in range(3):  # what was made already is still handed out
            list(splits.batches("val", 2))
    assert len(list(splits.batches("val", 4))) == 2

    (photos / "train" / "dog" / "7.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"dog/7\.jpg cannot be read"):
        list(splits.training(8).epoch(0))


ENDLESS = """
import sys
from itertools import count
from multiprocessing import active_children
from dvt.config import DataSection
from dvt.data import load_splits
from dvt.training.monitor import StopBetweenSteps

splits = load_splits(DataSection(path=sys.argv[1], worker_type="process", workers=2), 32, 0)
try:
    with StopBetweenSteps() as stop:
        for epoch in count():
            for number, _ in enumerate(splits.training(8).epoch(epoch)):
                if number == 2:
                    print("going", *(child.pid for child in active_children()), flush=True)
                if stop.requested:
                    raise KeyboardInterrupt
except KeyboardInterrupt:
    sys.exit(130)
"""


def as_from_a_terminal():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_when_a_run_ends(photos, ending):
    pytest.importorskip("mindspore")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(photos)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=as_from_a_terminal,
    )
    try:
        children = [int(pid) for pid in run.stdout.readline().split()[1:]]
        assert len(children) == 2 and all(map(alive, children))
        if ending == signal.SIGKILL:
            run.kill()
        else:
            os.killpg(run.pid, ending)  # to all of them, as Ctrl-C and schedulers do
        _, errors = run.communicate(timeout=30)
    finally:
        run.kill()
    if ending != signal.SIGKILL:
        assert run.returncode == 130
        assert "Traceback" not in errors and "leaked" not in errors
    deadline = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))
