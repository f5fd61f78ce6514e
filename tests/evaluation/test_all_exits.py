"""Running all exits can be interrupted: what was done is kept, and nothing else is taken for it."""

from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from dvt.early_exit.outcomes import Outcomes
from dvt.early_exit.scores import RULES
from dvt.errors import ConfigError
from dvt.evaluation.all_exits import PARTIAL_FOLDER, AllExits, Keep, Partial, run_all_exits
from dvt.models.cascade import build_model

SIZES = {"image_size": 12, "grid_sizes": (2, 3), "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_hidden": 8}


class Pictures:
    """Stands in for `dvt.data.Splits`: 30 images of noise, in batches."""

    sizes = {"val": 30}

    def __init__(self, stop_after: int | None = None) -> None:
        self.images = np.random.default_rng(0).standard_normal((30, 3, 12, 12), dtype=np.float32)
        self.labels = np.arange(30, dtype=np.int32) % 4
        self.stop_after = stop_after
        self.drawn: list[int] = []

    def batches(self, split: str, batch_size: int, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(skip * batch_size, 30, batch_size):
            if self.stop_after is not None and len(self.drawn) == self.stop_after:
                raise KeyboardInterrupt
            self.drawn.append(start)
            yield self.images[start : start + batch_size], self.labels[start : start + batch_size]


@pytest.fixture(scope="module")
def cell() -> AllExits:
    ms.set_seed(1)
    return AllExits(build_model("dvt_deit_small", num_classes=4, **SIZES))


def assert_same(left: Outcomes, right: Outcomes) -> None:
    arrays = left.to_arrays()
    assert arrays.keys() == right.to_arrays().keys()
    for name, value in right.to_arrays().items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


@pytest.mark.parametrize("temperatures", [None, (0.7, 1.5)])
def test_what_is_kept_is_what_all_probabilities_say(cell: AllExits, temperatures: tuple[float, ...] | None):
    """Kept batch by batch without probabilities, or worked out from all of them afterwards."""
    everything = run_all_exits(cell, Pictures(), "val", 8, Keep(probabilities=True))
    kept = run_all_exits(cell, Pictures(), "val", 8, Keep(temperatures))
    assert kept.probabilities is None
    expected = Outcomes.of(everything.probabilities, Pictures().labels, temperatures)
    np.testing.assert_array_equal(kept.predicted, expected.predicted)
    np.testing.assert_array_equal(kept.labels, expected.labels)
    np.testing.assert_array_equal(kept.largest, everything.probabilities.max(axis=2))
    for rule in RULES:
        np.testing.assert_array_equal(kept.scores[rule], expected.scores[rule], err_msg=rule)


def test_an_interrupted_run_goes_on(cell: AllExits, tmp_path: Path):
    expected = run_all_exits(cell, Pictures(), "val", 8, Keep(probabilities=True))
    assert expected.probabilities.shape == (2, 30, 4)
    partial = Partial(tmp_path, {"weights": "a"})
    with pytest.raises(KeyboardInterrupt):
        run_all_exits(cell, Pictures(stop_after=2), "val", 8, Keep(probabilities=True, partial=partial))
    for stop_after, drawn in ((1, [16]), (None, [24])):
        pictures = Pictures(stop_after)
        again = Partial(tmp_path, {"weights": "a"})
        if stop_after:
            with pytest.raises(KeyboardInterrupt):
                run_all_exits(cell, pictures, "val", 8, Keep(probabilities=True, partial=again))
        else:
            found = run_all_exits(cell, pictures, "val", 8, Keep(probabilities=True, partial=again))
            assert_same(found, expected)
        assert pictures.drawn == drawn
    complete = Pictures()
    assert_same(run_all_exits(cell, complete, "val", 8, Keep(partial=Partial(tmp_path, {"weights": "a"}))), expected)
    assert complete.drawn == []
    again.remove()
    assert not (tmp_path / PARTIAL_FOLDER).exists()


def test_what_another_evaluation_left_is_not_taken(cell: AllExits, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run_all_exits(cell, Pictures(stop_after=2), "val", 8, Keep(partial=Partial(tmp_path, {"weights": "a"})))
    pictures = Pictures()
    run_all_exits(cell, pictures, "val", 8, Keep(partial=Partial(tmp_path, {"weights": "b"})))
    assert pictures.drawn == [0, 8, 16, 24]


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        Partial(tmp_path / "file", {})


@pytest.mark.parametrize("reuse", [True, False])
def test_features_and_relations_of_every_exit(reuse: bool):
    """Asking for them changes nothing else."""
    ms.set_seed(2)
    model = build_model("dvt_deit_small", num_classes=4, feature_reuse=reuse, relation_reuse=reuse, **SIZES)
    model.set_train(False)
    names = list(model.parameters_dict())
    images = Tensor(Pictures().images[:3])
    before = [logits.asnumpy() for logits in model(images)]
    exits = model.forward_features(images)
    for exit_, logits, grid in zip(exits, before, (2, 3), strict=True):
        np.testing.assert_allclose(exit_.logits.asnumpy(), logits, atol=1e-6)
        assert exit_.features.shape == (3, grid**2 + 1, 8)
        assert exit_.relations.shape == (3, 4, grid**2 + 1, grid**2 + 1)
    assert list(model.parameters_dict()) == names
    assert [exit_.hands_on_features for exit_ in model.exits] == [reuse, False]
    np.testing.assert_array_equal(model(images)[1].asnumpy(), before[1])
