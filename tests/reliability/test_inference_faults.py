"""Inference on odd input, in threads, and on many images: the rows "Inference" of docs/reliability.md."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import nn

from dvt import AdaptiveClassifier
from dvt.early_exit import assign_exits, check_thresholds
from dvt.early_exit.loop import run_cascade
from dvt.errors import ConfigError, DataError
from dvt.models.cascade import build_model

SIZES = {"image_size": 12, "embed_dim": 8, "depth": 1, "num_heads": 1, "mlp_hidden": 8, "num_classes": 5}
MANY = 100_000
MOST_MEGABYTES = 250
"""All probabilities of these images, 3 exits and 1000 classes would be 1200 MB."""


@pytest.fixture(scope="module")
def model() -> nn.Cell:
    ms.set_seed(0)
    return build_model("dvt_deit_small", grid_sizes=(2, 3, 4), init_std=0.3, **SIZES)


@pytest.fixture(scope="module")
def classifier(model: nn.Cell) -> AdaptiveClassifier:
    return AdaptiveClassifier(model, (0.3, 0.35, 0.0), batch_sizes=(1, 4, 16))


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12), dtype=np.float32)


def test_all_exits_of_no_images(classifier: AdaptiveClassifier):
    assert classifier.all_exits(images_of(0)).shape == (3, 0, 5)
    parts = list(classifier.predict_batches([images_of(0), images_of(2), images_of(0)]))
    assert [len(part.labels) for part in parts] == [0, 2, 0]
    assert list(classifier.predict_batches([])) == []


def test_bad_pixels_among_many_batches_name_batch_and_image(classifier: AdaptiveClassifier):
    batches = [images_of(3, seed) for seed in range(4)]
    batches[2][1, 0, 5, 5] = np.nan
    with pytest.raises(DataError, match=r"batch 2: image 1 of the batch has NaN or infinite pixels \(1 such images"):
        list(classifier.predict_batches(batches))
    assert len(classifier.predict(batches[0]).labels) == 3  # the classifier goes on


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    thresholds=st.lists(st.floats(allow_nan=False), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_thresholds_of_any_value_decide_as_specified(thresholds: list[float], seed: int):
    """Also infinite ones, and such as float32 cannot hold."""
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(4), (3, 9)).astype(np.float32)

    def run_exit(index: int, images: np.ndarray, handed_on: dict) -> tuple[np.ndarray, dict]:
        return probabilities[index][images[:, 0, 0, 0].astype(int)], {}

    images = np.arange(9, dtype=np.float32).reshape(9, 1, 1, 1)
    result = run_cascade(run_exit, images, check_thresholds(thresholds, 3), 4)
    np.testing.assert_array_equal(result.exit_index, assign_exits(probabilities.max(axis=2), thresholds))


def test_a_threshold_of_nan_is_refused(classifier: AdaptiveClassifier):
    with pytest.raises(ConfigError, match="NaN cannot be compared"):
        classifier.predict(images_of(1), (0.5, float("nan"), 0.5))


def test_threads_share_a_classifier(model: nn.Cell, classifier: AdaptiveClassifier):
    """Compiling and running from four threads at once; without turns MindSpore crashes the process."""
    shared = AdaptiveClassifier(model, classifier.thresholds, classifier.batch_sizes)  # nothing compiled yet
    images, failures, answers = images_of(64), [], {}

    def work(number: int) -> None:
        try:
            rng = np.random.default_rng(number)
            for _ in range(8):
                chosen = rng.choice(64, rng.integers(1, 40), replace=False)
                answers[number, len(answers)] = chosen, shared.predict(images[chosen])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(answers) == 32
    for chosen, found in answers.values():
        alone = classifier.predict(images[chosen])
        np.testing.assert_array_equal(found.exit_index, alone.exit_index)
        np.testing.assert_allclose(found.probabilities, alone.probabilities, atol=1e-6)


def peak_growth(task: str) -> float:
    """Megabytes by which the resident set of a process grows over the task's 100,000 images."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root / 'tests' / 'reliability'}"}
    done = subprocess.run(
        [sys.executable, "-m", "many_images", task, str(MANY)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["predict", "evaluate"])
def test_many_images_take_bounded_memory(task: str):
    assert peak_growth(task) < MOST_MEGABYTES
