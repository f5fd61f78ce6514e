"""Mixed precision: what computes in float16, what must not, and how far results may move."""

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor, nn, ops

from dvt.errors import ConfigError
from dvt.models.precision import set_precision
from dvt.models.tokens import TokenPerformer

CONFIGS = {"patch": tiny.patch_config, "t2t": tiny.t2t_config}


@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_half_precision_stays_near_and_is_really_used(config, level: str, graph_mode: None) -> None:
    exact = tiny.filled(config())
    images = Tensor(tiny.images_for(exact.config, 4))
    expected = [logits.asnumpy() for logits in exact(images)]
    model = tiny.filled(config())
    set_precision(model, level)
    logits = model(images)
    assert [part.dtype for part in logits] == [ms.float16] * 3
    for part, full in zip(logits, expected, strict=True):
        difference = np.abs(part.asnumpy().astype(np.float32) - full).max()
        assert 1e-6 < difference < 0.05 * np.abs(full).max()
    assert all(parameter.dtype == ms.float32 for parameter in model.get_parameters())
    _, features, relations = model.exits[0](images)
    assert relations.dtype == ms.float16
    assert features.dtype == (ms.float16 if level == "O2" else ms.float32)


def test_performers_and_layer_norm_stay_in_float32(graph_mode: None) -> None:
    model = tiny.filled(tiny.t2t_config())
    set_precision(model, "O2")
    performer = next(cell for _, cell in model.cells_and_names() if isinstance(cell, TokenPerformer))
    tokens = Tensor(np.ones((1, 5, performer.norm1.gamma.shape[0]), np.float32))
    assert performer(tokens, None).dtype == ms.float32
    norm = model.exits[0].norm
    assert norm(Tensor(np.ones((1, 16), np.float16))).dtype == ms.float32


def test_softmax_of_attention_survives_logits_that_float16_cannot_sum(graph_mode: None) -> None:
    """exp(12) is beyond float16; the softmax of such logits must not be."""
    model = tiny.filled(tiny.patch_config(grid_sizes=(2, 3)))
    set_precision(model, "O2")
    attention = model.exits[1].blocks[0].attn
    received = Tensor(np.full((1, 2, 5, 5), 60000.0, np.float16))
    x, relations = attention(Tensor(np.ones((1, 10, 16), np.float16)), received)
    assert relations.dtype == ms.float16 and np.isfinite(x.asnumpy()).all()


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_gradients_are_float32_and_near(level: str, graph_mode: None) -> None:
    def gradients(level: str) -> list[np.ndarray]:
        model = tiny.filled(tiny.patch_config(grid_sizes=(2, 3)))
        set_precision(model, level)
        weights = ms.ParameterTuple(model.trainable_params())
        images = Tensor(tiny.images_for(model.config, 4))

        class Objective(nn.Cell):
            def __init__(self) -> None:
                super().__init__(auto_prefix=False)
                self.model = model

            def construct(self, x: Tensor) -> Tensor:
                return sum(
                    [ops.log_softmax(logits.astype(ms.float32), axis=-1)[:, 0].mean() for logits in self.model(x)]
                )

        return [g.asnumpy() for g in ms.grad(Objective(), None, weights)(images)]

    exact, half = gradients("O0"), gradients(level)
    assert all(gradient.dtype == np.float32 for gradient in half)
    norm = np.sqrt(sum(np.square(g).sum() for g in exact))
    off = np.sqrt(sum(np.square(a - b).sum() for a, b in zip(exact, half, strict=True)))
    assert off < 0.05 * norm


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="O0, O1, O2"):
        set_precision(tiny.filled(tiny.patch_config()), "O3")
