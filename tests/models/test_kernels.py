"""The compiled CPU kernels against float64 NumPy, and the fall-back without them."""

import inspect
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from scipy.special import erf

import dvt
from dvt.models import kernels
from dvt.models.kernels.operators import use_kernels
from dvt.models.layers import ChannelDense, Gelu, LayerNorm, Softmax, SwapMiddle, dense

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler, or kernels switched off")


def fast(cell: nn.Cell) -> nn.Cell:
    """The cell with compiled kernels."""
    use_kernels(cell, kernels.library())
    return cell


class _Gradients(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell
        self.weights = ms.ParameterTuple(cell.trainable_params())
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def construct(self, x: Tensor, sens: Tensor) -> tuple:
        return self.gradient(self.cell, self.weights)(x, sens)


@needs_kernels
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("shape", [(3,), (2, 5, 7), (40, 50, 96)])
def test_gelu_and_its_gradient(mode: int, shape: tuple[int, ...]) -> None:
    ms.set_context(mode=mode)
    try:
        rng = np.random.default_rng(0)
        x = (3 * rng.standard_normal(shape)).astype(np.float32)
        x.flat[:3] = 0.0, 40.0, -40.0
        sens = rng.standard_normal(shape).astype(np.float32)
        wide = x.astype(np.float64)
        cdf = 0.5 * (1 + erf(wide / np.sqrt(2)))
        density = np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi)
        cell = fast(Gelu())
        assert isinstance(cell.operator, ops.Custom)
        np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), wide * cdf, atol=2e-6, rtol=1e-6)
        (dx,), _ = _Gradients(cell)(Tensor(x), Tensor(sens))
        np.testing.assert_allclose(dx.asnumpy(), sens * (cdf + wide * density), atol=2e-6, rtol=1e-5)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 8), (6, 10, 48), (64, 82, 112)])
def test_layer_norm_and_its_gradients(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x = (2 * rng.standard_normal(shape) + 1).astype(np.float32)
    sens = rng.standard_normal(shape).astype(np.float32)
    cell = fast(LayerNorm(shape[-1], 1e-5))
    assert isinstance(cell.operator, ops.Custom)
    gamma, beta = (rng.standard_normal(shape[-1]).astype(np.float32) for _ in range(2))
    cell.gamma.set_data(Tensor(gamma))
    cell.beta.set_data(Tensor(beta))

    wide = x.astype(np.float64)
    scale = 1 / np.sqrt(wide.var(axis=-1, keepdims=True) + 1e-5)
    normed = (wide - wide.mean(axis=-1, keepdims=True)) * scale
    g = sens * gamma
    expected = scale * (g - g.mean(axis=-1, keepdims=True) - normed * (g * normed).mean(axis=-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))

    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), normed * gamma + beta, atol=1e-5)
    (dx,), (dgamma, dbeta) = _Gradients(cell)(Tensor(x), Tensor(sens))
    np.testing.assert_allclose(dx.asnumpy(), expected, atol=2e-5)
    np.testing.assert_allclose(dgamma.asnumpy(), (sens * normed).sum(axis=rows), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dbeta.asnumpy(), sens.sum(axis=rows), rtol=1e-4, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 17, 33, 1), (3, 16, 48, 5), (2, 9, 40, 32), (2, 1, 40, 64), (1, 300, 400, 3)]
)
def test_swap_of_the_middle_axes_and_its_gradient(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal(shape).astype(np.float32)
    cell = fast(SwapMiddle())
    assert isinstance(cell.operator, ops.Custom)
    np.testing.assert_array_equal(cell(Tensor(x)).asnumpy(), x.transpose(0, 2, 1, 3))
    sens = rng.standard_normal(x.transpose(0, 2, 1, 3).shape).astype(np.float32)
    (dx,), _ = _Gradients(cell)(Tensor(x), Tensor(sens))
    np.testing.assert_array_equal(dx.asnumpy(), sens.transpose(0, 2, 1, 3))


@needs_kernels
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3, 7), (700, 200)])
def test_bias_of_a_dense_layer_and_its_gradient(mode: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal(shape).astype(np.float32)
    cell = fast(dense(shape[-1], 6, 0.1))
    assert isinstance(inspect.getclosurevars(cell.linear).nonlocals["add_bias"], ops.Custom)
    weight, bias = rng.standard_normal((6, shape[-1])).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    cell.weight.set_data(Tensor(weight))
    cell.bias.set_data(Tensor(bias))
    sens = rng.standard_normal((*shape[:-1], 6)).astype(np.float32)
    ms.set_context(mode=mode)
    try:
        np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), x @ weight.T + bias, rtol=1e-4, atol=1e-4)
        (dx,), (_, dbias) = _Gradients(cell)(Tensor(x), Tensor(sens))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    np.testing.assert_allclose(dx.asnumpy(), sens @ weight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dbias.asnumpy(), sens.reshape(-1, 6).sum(axis=0), rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 90), (8, 5, 9000)])
def test_bias_of_a_channel_layer_and_its_gradient(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal(shape).astype(np.float32)
    cell = fast(ChannelDense(shape[1], 6))
    assert isinstance(cell.add_bias, ops.Custom)
    weight, bias = cell.weight.asnumpy(), cell.bias.asnumpy()
    sens = rng.standard_normal((shape[0], 6, shape[2])).astype(np.float32)
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), weight @ x + bias[:, None], rtol=1e-4, atol=1e-4)
    (dx,), (_, dbias) = _Gradients(cell)(Tensor(x), Tensor(sens))
    np.testing.assert_allclose(dx.asnumpy(), weight.T @ sens, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dbias.asnumpy(), sens.sum(axis=(0, 2), dtype=np.float64), rtol=1e-4, atol=1e-3)


@needs_kernels
def test_nan_comes_out_as_nan() -> None:
    x = np.array([1.0, np.nan, np.inf, 2.0], np.float32)
    assert np.isnan(fast(Gelu())(Tensor(x)).asnumpy()[1])
    rows = np.stack([np.full(8, np.nan, np.float32), np.arange(8, dtype=np.float32)])
    out = fast(LayerNorm(8, 1e-5))(Tensor(rows)).asnumpy()
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 7), (5, 4, 200)])
def test_softmax_and_its_gradient(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    x, sens = (3 * rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    cell = fast(Softmax())
    assert isinstance(cell.operator, ops.Custom)
    powers = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    expected = powers / powers.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, atol=1e-6)
    (dx,), _ = _Gradients(cell)(Tensor(x), Tensor(sens))
    inner = (sens * expected).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(dx.asnumpy(), expected * (sens - inner), atol=2e-6)


def test_plain_operators_serve_every_precision() -> None:
    x = np.linspace(-2, 2, 16, dtype=np.float16).reshape(2, 8)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(Gelu()(Tensor(x)).asnumpy(), 0.5 * wide * (1 + erf(wide / np.sqrt(2))), atol=2e-3)
    np.testing.assert_array_equal(SwapMiddle()(Tensor(x.reshape(1, 2, 8, 1))).asnumpy()[0, :, :, 0], x.T)


def test_models_with_and_without_kernels_agree() -> None:
    """Without them is what machines without a compiler run, and what is exported."""
    size = {"num_classes": 4, "image_size": 24, "grid_sizes": (2, 4), "embed_dim": 16, "depth": 1, "num_heads": 2}
    images = Tensor(np.random.default_rng(2).standard_normal((3, 3, 24, 24)).astype(np.float32))
    outputs = []
    for use in (True, False):
        ms.set_seed(3)
        model = dvt.build_model("dvt_deit_small", mlp_hidden=32, kernels=use, **size)
        custom = any(isinstance(getattr(cell, "operator", None), ops.Custom) for _, cell in model.cells_and_names())
        assert custom == (use and kernels.library() is not None)
        model.set_train(False)
        outputs.append(np.stack([logits.asnumpy() for logits in model(images)]))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)


def _in_new_process(tmp_path, **environment: str) -> str:
    code = "import logging; logging.basicConfig(level='INFO'); from dvt.models import kernels; print(kernels.library())"
    settings = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1] + done.stderr


def test_a_compiler_that_fails_means_plain_operators(tmp_path) -> None:
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such flag >&2; exit 1\n')
    broken.chmod(0o755)
    said = _in_new_process(tmp_path, CXX=str(broken))
    assert said.startswith("None") and "no such flag" in said
    assert not list(tmp_path.rglob("*.so"))


def test_switched_off_by_the_environment(tmp_path) -> None:
    assert _in_new_process(tmp_path, DVT_KERNELS="0").startswith("None")
