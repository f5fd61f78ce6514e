"""Small models of every kind against a second implementation in NumPy and float64: outputs and gradients."""

import mindspore as ms
import numpy as np
import numpy_dvt
import pytest
import tiny
from mindspore import Tensor, nn, ops

from dvt.convert import table
from dvt.models import kernels
from dvt.models.variants import ModelConfig, model_config
from dvt.training.loss import ExitLosses

NO_REUSE = {"feature_reuse": False, "relation_reuse": False}

CONFIGS = {
    "patch": tiny.patch_config(depth=2),
    "patch, features": tiny.patch_config(relation_reuse=False),
    "patch, relations": tiny.patch_config(feature_reuse=False),
    "patch, no reuse": tiny.patch_config(**NO_REUSE),
    "patch, 7 to 14": tiny.patch_config(image_size=56, grid_sizes=(7, 14)),
    "patch, 2 to 4": tiny.patch_config(grid_sizes=(2, 4), depth=2, embed_dim=8),
    "patch, padded": tiny.patch_config(image_size=30, grid_sizes=(4,), in_channels=1),
    "patch, padded like 23/23/3": tiny.patch_config(image_size=44, grid_sizes=(4, 10), embed_dim=32, num_heads=4),
    "patch, no qkv bias": tiny.patch_config(grid_sizes=(2, 4), qkv_bias=False, norm_eps=1e-2, resize_sides=(3,)),
    "t2t": tiny.t2t_config(),
    "t2t, two exits": tiny.t2t_config(grid_sizes=(2, 4), soft_splits=((6, 4, 1), (3, 2, 1))),
    "t2t, features": tiny.t2t_config(relation_reuse=False, grid_sizes=(2, 4), soft_splits=((6, 4, 1), (3, 2, 1))),
    "t2t, one exit": tiny.t2t_config(
        grid_sizes=(4,), soft_splits=((3, 2, 1),), in_channels=1, qkv_bias=True, norm_eps=1e-2
    ),
}


class Everything(nn.Cell):
    """images -> logits, features and relations of every exit, those that are there."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        features, relations = None, None
        outputs = self.model(images)
        for exit_ in self.model.exits:
            _, features, relations = exit_(images, features, relations)
            if features is not None:
                outputs = outputs + (features,)
            if relations is not None:
                outputs = outputs + (relations,)
        return outputs


def expected_outputs(config: ModelConfig, tensors: dict[str, np.ndarray], images: np.ndarray) -> list[np.ndarray]:
    exits = numpy_dvt.forward(config, tensors, images)
    handed_on = []
    for output in exits[:-1]:
        handed_on += [output.features] if config.feature_reuse else []
        handed_on += [output.relations] if config.relation_reuse else []
    return [output.logits for output in exits] + handed_on


def compare(config: ModelConfig, tolerance: float = 2e-5) -> None:
    tensors, images = tiny.recipe_weights(config), tiny.images_for(config)
    results = Everything(tiny.filled(config, tensors))(Tensor(images))
    expected = expected_outputs(config, tensors, images)
    assert [result.shape for result in results] == [value.shape for value in expected]
    for result, value in zip(results, expected, strict=True):
        assert np.abs(value).max() > 0.1
        np.testing.assert_allclose(result.asnumpy(), value, rtol=tolerance, atol=tolerance)


ELSEWHERE = ("t2t", "t2t, two exits", "patch, 2 to 4")  # compared by the other tests


@pytest.mark.parametrize(
    "name", [*(name for name in CONFIGS if name not in ELSEWHERE), pytest.param("t2t", marks=pytest.mark.slow)]
)
def test_outputs(name: str, graph_mode: None):
    compare(CONFIGS[name])


@pytest.mark.slow
def test_outputs_of_deit_tiny_at_full_size(graph_mode: None):
    """The variant that test_parity.py has no reference numbers for."""
    compare(model_config("dvt_deit_tiny"), 1e-4)


@pytest.mark.parametrize("name", ["patch", "t2t, two exits"])
def test_outputs_in_pynative_mode(name: str, pynative_mode: None):
    compare(CONFIGS[name])


def test_outputs_of_mindspores_own_operators(pynative_mode: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(kernels.SWITCH, "0")
    compare(CONFIGS["t2t, two exits"])


class SumOfLosses(nn.Cell):
    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.losses = ExitLosses(model)

    def construct(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.losses(images, targets).sum()


def numpy_loss(config: ModelConfig, tensors: dict[str, np.ndarray], images: np.ndarray, targets: np.ndarray) -> float:
    total = 0.0
    for output in numpy_dvt.forward(config, tensors, images):
        shifted = output.logits - output.logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        total -= (targets * log_probabilities).sum(axis=1).mean()
    return total


@pytest.mark.parametrize("name", ["patch, 2 to 4", "t2t, two exits"])
def test_gradient_of_every_parameter_in_a_random_direction(name: str, graph_mode: None):
    config = CONFIGS[name]
    tensors, images = tiny.recipe_weights(config), tiny.images_for(config)
    rng = np.random.default_rng(9)
    targets = rng.dirichlet(np.full(config.num_classes, 0.3), size=len(images)).astype(np.float32)
    model = tiny.filled(config, tensors)
    parameters = model.trainable_params()
    gradients = ms.value_and_grad(SumOfLosses(model), None, parameters)(Tensor(images), Tensor(targets))[1]

    released = {row.ours: row.theirs for row in table(config)}
    step = 1e-4
    for parameter, gradient in zip(parameters, gradients, strict=True):
        key = released[parameter.name]
        direction = rng.standard_normal(tensors[key].shape)
        direction /= np.linalg.norm(direction)
        sides = [
            numpy_loss(config, {**tensors, key: tensors[key] + sign * step * direction}, images, targets)
            for sign in (1, -1)
        ]
        slope = (sides[0] - sides[1]) / (2 * step)
        result = (gradient.asnumpy().astype(np.float64).ravel() * direction.ravel()).sum()
        assert result == pytest.approx(slope, rel=1e-3, abs=2e-6), parameter.name
    fixed = {name for name, value in model.parameters_dict().items() if not value.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in fixed} == (
        {"random_features", "pos_embed"} if config.tokenizer == "t2t" else set()
    )


def test_the_class_row_of_reused_features_is_zero(pynative_mode: None):
    config = tiny.patch_config()
    reuse = tiny.filled(config).exits[1].blocks[0].feature_reuse
    features = np.random.default_rng(0).standard_normal((2, 5, 16), dtype=np.float32)
    context = reuse(Tensor(features)).asnumpy()
    assert context.shape == (2, 10, 48)
    assert (context[:, 0] == 0).all() and (np.abs(context[:, 1:]).max(axis=2) > 0).all()


def test_shapes_that_an_exit_returns(pynative_mode: None):
    config = tiny.patch_config()
    exits, images = tiny.filled(config).exits, Tensor(tiny.images_for(config, count=3))
    logits, features, relations = exits[0](images, None, None)
    assert (logits.shape, features.shape, relations.shape) == ((3, 7), (3, 5, 16), (3, 2, 5, 5))
    logits, features, relations = exits[1](images, features, relations)
    assert (logits.shape, features.shape, relations.shape) == ((3, 7), (3, 10, 16), (3, 2, 10, 10))
    logits, features, relations = exits[2](images, features, relations)
    assert logits.shape == (3, 7) and features is None and relations is None
    assert bool(ops.isfinite(logits).all())
