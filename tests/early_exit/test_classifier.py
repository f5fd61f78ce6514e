"""Real early exits: decisions, labels and probabilities are those computed afterwards from all exits on all images."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from dvt import AdaptiveClassifier
from dvt.early_exit import ALWAYS, NEVER, assign_exits
from dvt.early_exit import classifier as inference
from dvt.early_exit.scores import ExitRule
from dvt.errors import ConfigError, DataError
from dvt.models.cascade import build_model

SIZES = {"image_size": 12, "embed_dim": 8, "depth": 1, "num_heads": 1, "mlp_hidden": 8, "num_classes": 5}
GRIDS = (2, 3, 4)
BATCH_SIZES = (1, 4, 16)  # those that are compiled
APART = 1e-5  # thresholds keep this distance from every confidence, so that float rounding decides nothing


def build(seed: int = 0, **overrides) -> nn.Cell:
    """A model whose images differ in confidence: the initial weights, enlarged."""
    ms.set_seed(seed)
    model = build_model("dvt_deit_small", **{**SIZES, "grid_sizes": GRIDS, **overrides})
    for parameter in model.trainable_params():
        parameter.set_data(parameter * (15 if "head" in parameter.name else 5))
    return model.set_train(False)


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12), dtype=np.float32)


def all_probabilities(model: nn.Cell, images: np.ndarray) -> np.ndarray:
    """(K, n, classes), every exit on every image in one go."""
    logits = np.stack([part.asnumpy() for part in model(Tensor(images))])
    exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
    return exponentials / exponentials.sum(axis=2, keepdims=True)


def between(confidence: np.ndarray, share: float) -> float:
    """A threshold that about `share` of the images reach, in the middle of a gap between their confidences."""
    values = np.sort(confidence.astype(np.float64))
    gaps = np.flatnonzero(np.diff(values) > 2.5 * APART)
    below = gaps[np.abs(gaps - (1 - share) * len(values)).argmin()]
    return (values[below] + values[below + 1]) / 2


@pytest.fixture(scope="module")
def model() -> nn.Cell:
    return build()


@pytest.fixture(scope="module")
def classifier(model: nn.Cell) -> AdaptiveClassifier:
    return AdaptiveClassifier(model, batch_sizes=BATCH_SIZES)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return images_of(64)


@pytest.fixture(scope="module")
def probabilities(model: nn.Cell, images: np.ndarray) -> np.ndarray:
    return all_probabilities(model, images)


def threshold_vectors(confidence: np.ndarray) -> list[tuple[float, ...]]:
    vectors = [(ALWAYS,) * 3, (NEVER, NEVER, ALWAYS), (NEVER, ALWAYS, ALWAYS), (0.0, 0.0, 0.0), (1.5, 1.5, 1.5)]
    vectors += [(NEVER, NEVER, NEVER), (-np.inf, np.inf, np.inf), (np.inf, -np.inf, 0.0)]
    vectors += [tuple(between(confidence[k], share) for k in range(3)) for share in (0.1, 0.5, 0.9)]
    rng = np.random.default_rng(3)
    vectors += [tuple(between(confidence[k], share) for k, share in enumerate(rng.random(3))) for _ in range(6)]
    return vectors


@pytest.mark.parametrize("batch_size", [1, 3, 16, 33, 64])
def test_leaving_early_is_deciding_afterwards(
    batch_size: int, classifier: AdaptiveClassifier, images: np.ndarray, probabilities: np.ndarray
):
    count = 64 if batch_size > 1 else 20
    images, probabilities = images[:count], probabilities[:, :count]
    confidence = probabilities.max(axis=2)
    taken = set()
    for thresholds in threshold_vectors(confidence):
        expected = assign_exits(confidence, thresholds)
        result = [classifier.predict(images[i : i + batch_size], thresholds) for i in range(0, count, batch_size)]
        exit_index = np.concatenate([part.exit_index for part in result])
        np.testing.assert_array_equal(exit_index, expected, err_msg=str(thresholds))
        chosen = probabilities[expected, np.arange(count)]
        np.testing.assert_allclose(np.concatenate([part.probabilities for part in result]), chosen, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([part.confidence for part in result]), chosen.max(axis=1), atol=1e-5)
        top_two = np.sort(chosen, axis=1)[:, -2:]
        clear = top_two[:, 1] - top_two[:, 0] > APART
        labels = np.concatenate([part.labels for part in result])
        np.testing.assert_array_equal(labels[clear], chosen.argmax(axis=1)[clear])
        assert clear.mean() > 0.95
        taken.add(tuple(np.bincount(exit_index, minlength=3) > 0))
    assert (True, True, True) in taken and (True, False, False) in taken and (False, False, True) in taken


def test_a_threshold_that_is_reached_exactly_lets_the_image_leave(classifier: AdaptiveClassifier, images: np.ndarray):
    first = classifier.predict(images[:16], (ALWAYS, ALWAYS, ALWAYS))
    for quantile in (0, 5, 15):
        threshold = np.sort(first.confidence)[quantile]
        result = classifier.predict(images[:16], (threshold, NEVER, NEVER))
        np.testing.assert_array_equal(result.exit_index == 0, first.confidence >= threshold)
        above = np.nextafter(threshold, np.float32(2))
        assert (classifier.predict(images[:16], (above, NEVER, NEVER)).exit_index == 0).sum() == 15 - quantile


def test_results_come_in_the_order_of_the_images(
    classifier: AdaptiveClassifier, images: np.ndarray, probabilities: np.ndarray
):
    thresholds = [between(probabilities[k].max(axis=1), 0.4) for k in range(3)]
    order = np.random.default_rng(1).permutation(64)
    plain, shuffled = classifier.predict(images, thresholds), classifier.predict(images[order], thresholds)
    np.testing.assert_array_equal(shuffled.exit_index, plain.exit_index[order])
    np.testing.assert_allclose(shuffled.probabilities, plain.probabilities[order], atol=1e-5)


def test_types_and_shapes_of_the_result(classifier: AdaptiveClassifier, images: np.ndarray):
    result = classifier.predict(images[:3], (0.5, 0.5, 0.5))
    assert (result.labels.shape, result.labels.dtype) == ((3,), np.int64)
    assert (result.exit_index.shape, result.exit_index.dtype) == ((3,), np.int64)
    assert (result.confidence.shape, result.confidence.dtype) == ((3,), np.float32)
    assert (result.probabilities.shape, result.probabilities.dtype) == ((3, 5), np.float32)
    np.testing.assert_array_equal(result.confidence, result.probabilities.max(axis=1))
    np.testing.assert_array_equal(result.labels, result.probabilities.argmax(axis=1))
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-6)


def test_no_images(classifier: AdaptiveClassifier):
    result = classifier.predict(images_of(0), (0.5, 0.5, 0.5))
    assert result.probabilities.shape == (0, 5)
    assert result.labels.shape == result.confidence.shape == result.exit_index.shape == (0,)


def test_tensors_and_other_layouts_are_taken(classifier: AdaptiveClassifier, images: np.ndarray):
    expected = classifier.predict(images[:4], (0.5, 0.5, 0.5)).probabilities
    transposed = np.ascontiguousarray(images[:4].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for given in (Tensor(images[:4]), transposed, images[:4].astype(np.float64)):
        np.testing.assert_array_equal(classifier.predict(given, (0.5, 0.5, 0.5)).probabilities, expected)


def test_pynative_mode(model: nn.Cell, images: np.ndarray, probabilities: np.ndarray, pynative_mode: None):
    confidence = probabilities.max(axis=2)
    thresholds = [between(confidence[k], 0.4) for k in range(3)]
    result = AdaptiveClassifier(model, thresholds, batch_sizes=[16]).predict(images[:16])
    expected = assign_exits(confidence[:, :16], thresholds)
    np.testing.assert_array_equal(result.exit_index, expected)
    np.testing.assert_allclose(result.probabilities, probabilities[expected, np.arange(16)], atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {"grid_sizes": (4,)},
        {"grid_sizes": (2, 4), "feature_reuse": False},
        {"grid_sizes": (2, 4), "relation_reuse": False},
        {"grid_sizes": (2, 4), "feature_reuse": False, "relation_reuse": False},
    ],
)
def test_other_exits_and_reuses(overrides: dict, images: np.ndarray, pynative_mode: None):
    model = build(**overrides)
    probabilities = all_probabilities(model, images[:8])
    thresholds = [between(exit_.max(axis=1), 0.5) for exit_ in probabilities]
    result = AdaptiveClassifier(model, thresholds, batch_sizes=[4]).predict(images[:8])
    expected = assign_exits(probabilities.max(axis=2), thresholds)
    np.testing.assert_array_equal(result.exit_index, expected)
    np.testing.assert_allclose(result.probabilities, probabilities[expected, np.arange(8)], atol=1e-5)


def test_weights_loaded_later_are_used_and_training_does_not_disturb(images: np.ndarray, graph_mode: None):
    model, other = build(grid_sizes=(2,), drop_path_rate=0.9, depth=2), build(1, grid_sizes=(2,), depth=2)
    classifier = AdaptiveClassifier(model, [0.0], batch_sizes=[1, 4])
    before = classifier.predict(images[:4]).probabilities
    ms.load_param_into_net(model, other.parameters_dict())
    after = classifier.predict(images[:4]).probabilities
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, all_probabilities(other, images[:4])[0], atol=1e-5)
    model.set_train(True)  # between two evaluations of a training run; the second compiles another batch size
    for count in (4, 1):
        np.testing.assert_allclose(classifier.predict(images[:count]).probabilities, after[:count], atol=1e-5)


# --------------------------------------------------------------------------------------------------- throughput mode


@pytest.mark.parametrize("sizes", [[16] * 4, [5, 30, 1, 28]])
def test_throughput_mode_decides_as_latency_mode_does(
    sizes: list[int], classifier: AdaptiveClassifier, images: np.ndarray, probabilities: np.ndarray
):
    thresholds = [between(probabilities[k].max(axis=1), 0.4) for k in range(3)]
    batches = np.split(images, np.cumsum(sizes)[:-1])
    found = list(classifier.predict_batches(iter(batches), thresholds, batch_size=16))
    assert [len(part.labels) for part in found] == sizes
    expected = classifier.predict(images, thresholds)
    np.testing.assert_array_equal(np.concatenate([part.exit_index for part in found]), expected.exit_index)
    np.testing.assert_allclose(
        np.concatenate([part.probabilities for part in found]), expected.probabilities, atol=1e-5
    )


def test_another_rule_decides_on_its_own_scores(model: nn.Cell, images: np.ndarray, probabilities: np.ndarray):
    rule = ExitRule("margin", (1.2, 1.0, 0.8))
    scores = np.stack([rule.scores(k, each) for k, each in enumerate(probabilities)])
    thresholds = [between(each, 0.5) for each in scores]
    chosen = AdaptiveClassifier(model, thresholds, batch_sizes=[16], rule=rule)
    np.testing.assert_array_equal(chosen.predict(images).exit_index, assign_exits(scores, thresholds))
    np.testing.assert_allclose(chosen.all_exits(images), probabilities, atol=1e-5)
    with pytest.raises(ConfigError, match="2 temperatures for 3 exits"):
        AdaptiveClassifier(model, thresholds, rule=ExitRule("margin", (1.0, 1.0)))


# ---------------------------------------------------------------------------------------------------- compiled sizes


def test_throughput_mode_compiles_one_size_per_exit(
    model: nn.Cell, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """Every compiled graph holds memory of its own on the CPU, so what is left at the end is padded."""
    sizes = []
    plain = inference.ExitCell.__call__

    def noted(cell: inference.ExitCell, *inputs: Tensor | None):
        sizes.append(inputs[0].shape[0])
        return plain(cell, *inputs)

    monkeypatch.setattr(inference.ExitCell, "__call__", noted)
    few = AdaptiveClassifier(model, (NEVER, NEVER, ALWAYS), batch_sizes=BATCH_SIZES)
    assert sum(len(part.labels) for part in few.predict_batches(np.split(images, 8))) == 64
    assert set(sizes) == {16, 8}  # the last exit waits for half as many


def test_only_listed_batch_sizes_are_compiled(model: nn.Cell, images: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    sizes = set()
    plain = inference.ExitCell.__call__

    def noted(cell: inference.ExitCell, *inputs: Tensor | None):
        assert len({part.shape[0] for part in inputs if part is not None}) == 1
        sizes.add(inputs[0].shape[0])
        return plain(cell, *inputs)

    monkeypatch.setattr(inference.ExitCell, "__call__", noted)
    few = AdaptiveClassifier(model, (0.4, 0.5, 0.0), batch_sizes=(4, 1))
    for count in (1, 2, 3, 5, 7, 9, 11):
        few.predict(images[:count])
    assert sizes == {1, 4}


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        (None, "no thresholds: give 3 numbers"),
        ((0.5, 0.5), r"thresholds has shape \(2,\); 3 exits need shape \(3,\)"),
        ((0.5, float("nan"), 0.5), "NaN cannot be compared"),
        (0.5, "3 exits need shape"),
        (("a", "b", "c"), "one number per exit is needed"),
    ],
)
def test_thresholds_that_do_not_fit(thresholds, message: str, model: nn.Cell, classifier: AdaptiveClassifier):
    with pytest.raises(ConfigError, match=message):
        classifier.predict(images_of(1), thresholds)
    if thresholds is not None:
        with pytest.raises(ConfigError, match=message):
            AdaptiveClassifier(model, thresholds)


@pytest.mark.parametrize("shape", [(2, 1, 12, 12), (3, 12, 12), (2, 3, 12, 13), (2, 12, 12, 3), (2, 3, 144)])
def test_images_of_another_shape(shape: tuple[int, ...], classifier: AdaptiveClassifier):
    with pytest.raises(DataError, match=r"images have shape .*; this model needs \(B, 3, 12, 12\)"):
        classifier.predict(np.zeros(shape, np.float32), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers(value: float, classifier: AdaptiveClassifier):
    images = images_of(3)
    images[1, 2, 3, 4] = value
    with pytest.raises(DataError, match=r"image 1 of the batch has NaN or infinite pixels \(1 such images in all\)"):
        classifier.predict(images, (0.5, 0.5, 0.5))


@pytest.mark.parametrize("sizes", [(), (0, 4), (-1,)])
def test_batch_sizes_that_do_not_work(sizes: tuple[int, ...], model: nn.Cell):
    with pytest.raises(ConfigError, match="give one or more numbers of images, 1 or larger"):
        AdaptiveClassifier(model, batch_sizes=sizes)
