"""What reuse means: gradients flow back through what is handed on, and nothing large is built on the way."""

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import Tensor, nn, ops

from dvt.models.reuse import RelationReuse


class LastExit(nn.Cell):
    """A loss of the last exit alone."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return ops.square(self.model(images)[-1]).sum()


def first_exit_gradients(**overrides) -> dict[str, np.ndarray]:
    """Gradients of the last of two exits' loss in the first exit's weights."""
    config = tiny.patch_config(grid_sizes=(2, 4), depth=2, **overrides)
    model = tiny.filled(config)
    parameters = list(model.exits[0].trainable_params())
    gradients = ms.grad(LastExit(model), None, parameters)(Tensor(tiny.images_for(config)))
    return {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients, strict=True)}


def untouched(gradients: dict[str, np.ndarray]) -> set[str]:
    return {name.removeprefix("exits.0.") for name, gradient in gradients.items() if np.abs(gradient).max() < 1e-7}


def test_gradients_flow_through_features(graph_mode: None):
    gradients = first_exit_gradients(relation_reuse=False)
    # Features are the last block's output before the final norm.
    assert untouched(gradients) == {"norm.gamma", "norm.beta", "head.weight", "head.bias"}


def test_gradients_flow_through_relations(graph_mode: None):
    gradients = first_exit_gradients(feature_reuse=False)
    # Relations end at the last block's queries and keys: its values, projection and MLP have no part in them.
    last = {"attn.proj", "mlp.fc1", "mlp.fc2"}
    expected = {f"blocks.1.{part}.{leaf}" for part in last for leaf in ("weight", "bias")}
    expected |= {f"blocks.1.norm2.{leaf}" for leaf in ("gamma", "beta")}
    assert untouched(gradients) == expected | {"norm.gamma", "norm.beta", "head.weight", "head.bias"}
    queries_keys, values = np.split(gradients["exits.0.blocks.1.attn.qkv.weight"], [32])
    assert np.abs(queries_keys).max() > 1e-4 and (values == 0).all()


def test_without_reuse_exits_are_independent(graph_mode: None):
    gradients = first_exit_gradients(feature_reuse=False, relation_reuse=False)
    assert all((gradient == 0).all() for gradient in gradients.values())


@pytest.mark.parametrize("key", ["feature_reuse", "relation_reuse"])
def test_nothing_is_handed_on_where_nobody_takes_it(key: str, pynative_mode: None):
    config = tiny.patch_config(**{key: False})
    exits, images = tiny.filled(config).exits, Tensor(tiny.images_for(config))
    _, features, relations = exits[0](images)
    assert (features is None) == (key == "feature_reuse")
    assert (relations is None) == (key == "relation_reuse")


def test_relations_are_resized_layer_by_layer(pynative_mode: None):
    config = tiny.patch_config(grid_sizes=(2, 4), depth=3)
    exit_ = tiny.filled(config).exits[1]
    assert isinstance(exit_.relation_reuse, RelationReuse)
    relations = Tensor(np.random.default_rng(0).standard_normal((2, 6, 5, 5), dtype=np.float32))
    mixed = exit_.relation_reuse(relations)
    assert [part.shape for part in mixed] == [(2, 2, 5, 5)] * 3
    assert all(exit_.blocks[0].attn.core.resize(part).shape == (2, 2, 17, 17) for part in mixed)


def test_no_tensor_holds_the_finer_relations_of_all_layers(pynative_mode: None, monkeypatch: pytest.MonkeyPatch):
    config = tiny.patch_config(grid_sizes=(2, 4), depth=6)
    exits, images = tiny.filled(config).exits, Tensor(tiny.images_for(config))
    _, features, relations = exits[0](images)

    sizes: list[int] = []

    def note(result):
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                sizes.append(value.size)
        return result

    for _, cell in exits[1].cells_and_names():
        cell.register_forward_hook(lambda cell, inputs, output: note(output))
    for name in ("matmul", "concat", "softmax"):
        plain = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *args, plain=plain, **kwargs: note(plain(*args, **kwargs)))
    exits[1](images, features, relations)

    one_layer = len(images) * config.num_heads * 17 * 17
    assert len(sizes) > 50
    assert one_layer in sizes
    assert max(sizes) < config.depth * one_layer
