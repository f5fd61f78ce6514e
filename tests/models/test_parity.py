"""The full-size models against numbers computed in float64 with the published PyTorch model (tests/reference).

Weights and images come from tests/models/recipe.py; tests/reference/make_references.py says what the numbers are.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import recipe
import tiny
from mindspore import Tensor, nn, ops

from dvt.convert import reference_shapes, table
from dvt.cost import parameter_count
from dvt.models.variants import ModelConfig, model_config
from dvt.training.loss import ExitLosses

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "models.npz")

CASES: dict[str, ModelConfig] = {name: model_config(name) for name in ("dvt_t2t_vit_12", "dvt_t2t_vit_14")}
CASES["dvt_deit_small"] = model_config("dvt_deit_small")
for _name in ("dvt_t2t_vit_12", "dvt_deit_small"):
    CASES[f"{_name}.no_features"] = model_config(_name, feature_reuse=False)
    CASES[f"{_name}.no_relations"] = model_config(_name, relation_reuse=False)
    CASES[f"{_name}.no_reuse"] = model_config(_name, feature_reuse=False, relation_reuse=False)

PUBLISHED_PARAMETERS = {"dvt_t2t_vit_12": 22.46, "dvt_t2t_vit_14": 67.88, "dvt_deit_small": 70.44}  # millions


class Same(nn.Cell):
    """Stands for a model whose logits are there already."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def construct(self, logits: tuple[Tensor, ...], noise_key: Tensor | None) -> tuple[Tensor, ...]:
        return logits


class Recorded(nn.Cell):
    """Sum of the losses, and on the side the losses, the logits and what the exits hand on: one graph for all."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.losses = ExitLosses(Same(model.config))

    def construct(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        features, relations = None, None
        all_logits, handed_on = (), ()
        for exit_ in self.model.exits:
            logits, features, relations = exit_(images, features, relations)
            all_logits = all_logits + (logits,)
            if features is not None and relations is not None:
                handed_on = handed_on + (features, relations)
        losses = self.losses(all_logits, targets)
        return losses.sum(), losses, ops.stack(all_logits), handed_on


def reference(case: str, key: str) -> np.ndarray:
    return REFERENCE[f"{case}/{key}"]


def close(result: np.ndarray, expected: np.ndarray, absolute: float) -> None:
    np.testing.assert_allclose(result, expected, rtol=0, atol=absolute)


def test_logits_of_t2t_12_at_full_size(graph_mode: None):
    model = tiny.filled(CASES["dvt_t2t_vit_12"])
    images, _ = recipe.images_and_targets()
    logits = model(Tensor(images))
    close(np.stack([part.asnumpy() for part in logits]), reference("dvt_t2t_vit_12", "logits"), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_losses_and_gradients(case: str, graph_mode: None):
    config = CASES[case]
    model = tiny.filled(config)
    parameters = model.trainable_params()
    images, targets = recipe.images_and_targets()
    step = ms.value_and_grad(Recorded(model), None, parameters, has_aux=True)
    (_, losses, logits, handed_on), gradients = step(Tensor(images), Tensor(targets))

    close(logits.asnumpy(), reference(case, "logits"), 1e-4)
    close(losses.asnumpy(), reference(case, "loss"), 1e-5)
    check_handed_on(config, case, [part.asnumpy() for part in handed_on])
    check_gradients(config, case, {p.name: g.asnumpy() for p, g in zip(parameters, gradients, strict=True)})


def check_handed_on(config: ModelConfig, case: str, handed_on: list[np.ndarray]) -> None:
    both = config.feature_reuse and config.relation_reuse
    assert len(handed_on) == (4 if both else 0)
    for index in range(len(handed_on) // 2):
        features, relations = handed_on[2 * index : 2 * index + 2]
        parts = {
            "features": features,
            "relation_first": relations[:, : config.num_heads],
            "relation_last": relations[:, -config.num_heads :],
        }
        for part, value in parts.items():
            sample = value.ravel()[:: int(reference(case, "stride"))]
            close(sample, reference(case, f"exit{index + 1}/{part}"), 5e-4)


def check_gradients(config: ModelConfig, case: str, gradients: dict[str, np.ndarray]) -> None:
    released = {row.theirs: row.ours for row in table(config)}
    trained = [name for name in reference_shapes(config) if not recipe.is_fixed(name, config.tokenizer)]
    assert set(gradients) == {released[name] for name in trained}
    values = [gradients[released[name]].astype(np.float64) for name in trained]
    norms = np.array([np.linalg.norm(value) for value in values])
    np.testing.assert_allclose(norms, reference(case, "grad_norms"), rtol=1e-3, atol=1e-6)
    # A sum may cancel to nothing, so it is as exact as the norm times the root of the number of terms.
    scale = norms * np.sqrt([value.size for value in values])
    off = np.abs([value.sum() for value in values] - reference(case, "grad_sums"))
    assert (off <= 1e-4 * scale + 1e-5).all(), [
        n for n, bad in zip(trained, off > 1e-4 * scale + 1e-5, strict=True) if bad
    ]


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_counts(name: str):
    assert round(parameter_count(name) / 1e6, 2) == PUBLISHED_PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_counts_of_the_built_models(name: str):
    model = tiny.build_from_config(CASES[name])
    assert sum(parameter.size for parameter in model.get_parameters()) == parameter_count(name)
