"""The compiled CPU kernels against float64 NumPy, and the fall-back without them."""

import inspect
import os
import shutil
import stat
import subprocess
from pathlib import Path

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


# ----------------------------------------------------------------------------------------------- compiling and loading


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the library in it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        if kernels._compiled.__wrapped__() is None:
            pytest.skip("no C++ compiler")
    return cache


@pytest.fixture
def library(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library in a cache of its own, which the next look-up takes."""
    shutil.copytree(compiled, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (path,) = tmp_path.rglob("*.so")
    return path


@pytest.fixture
def recompiled(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Compiling takes no time here; the folders in which it was asked for."""
    folders: list[Path] = []

    def copy(compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
        folders.append(folder)
        return Path(shutil.copy(next(compiled.rglob("*.so")), folder))

    monkeypatch.setattr(kernels, "compile_library", copy)
    return folders


def look_up(caplog: pytest.LogCaptureFixture) -> tuple[str | None, list[str]]:
    """The library that a new process takes, and its warnings."""
    caplog.clear()
    found = kernels._compiled.__wrapped__()
    return found, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_an_intact_library_is_taken_as_it_is(library: Path, recompiled, caplog) -> None:
    assert look_up(caplog) == (str(library), []) and not recompiled


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:30000], lambda b: b[:-1], lambda b: b[:9999] + b"x" + b[10000:]]
)
def test_a_damaged_library_is_compiled_again(damage, library: Path, recompiled, caplog) -> None:
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    assert look_up(caplog) == (str(library), []) and len(recompiled) == 1
    assert library.read_bytes() == whole


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("not a library", "kernels"),
        ("#include <signal.h>\n__attribute__((constructor)) void f() { raise(SIGBUS); }", "SIGBUS"),
        ("#include <stdlib.h>\n__attribute__((constructor)) void f() { exit(3); }", "exit status 3"),
        ('extern "C" int Gelu() { __builtin_trap(); }', "SIG"),
    ],
)
def test_a_library_that_does_not_work_is_left_alone(source: str, words: str, library: Path, caplog, tmp_path) -> None:
    """It is tried in a child first; one warning, and MindSpore's operators."""
    stem = library.name.rpartition("-")[0]
    library.unlink()
    if "{" in source:
        (tmp_path / "bad.cc").write_text(source)
        subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "bad.cc", "-o", tmp_path / "bad.so"], check=True)
    else:
        (tmp_path / "bad.so").write_text(source)
    shutil.copy(tmp_path / "bad.so", library.with_name(f"{stem}-{kernels._hash(tmp_path / 'bad.so')}.so"))
    found, (warning,) = look_up(caplog)
    assert found is None and "no compiled CPU kernels" in warning and words in warning


@pytest.mark.parametrize("change", ["library writable", "folder writable", "parent writable", "link", "other owner"])
def test_a_library_that_others_may_have_changed_is_not_loaded(change: str, library: Path, recompiled, caplog) -> None:
    cache = library.parents[2]
    if change == "library writable":
        library.chmod(0o766)
    elif change.endswith("writable"):
        library.parents["fp".index(change[0])].chmod(0o777)
    elif change == "link":
        library.rename(cache / "elsewhere.so")
        library.symlink_to(cache / "elsewhere.so")
    elif os.geteuid() != 0:
        pytest.skip("needs root: another user's file")
    else:
        os.chown(library, 12345, 12345)
    found, warnings = look_up(caplog)
    assert len(recompiled) == 1 and not warnings
    assert Path(found).parent == library.parent
    assert stat.S_IMODE(Path(found).stat().st_mode) == 0o700 and not Path(found).is_symlink()
    assert Path(found).stat().st_uid == os.geteuid()


@pytest.mark.parametrize("change", ["cache writable", "cache of another user", "kernels of another user"])
def test_a_folder_that_others_could_exchange_is_not_used(change: str, library: Path, recompiled, caplog) -> None:
    cache = library.parents[2]
    if change == "cache writable":
        cache.chmod(0o777)
    elif os.geteuid() != 0:
        pytest.skip("needs root: another user's folder")
    else:
        os.chown(cache if change.startswith("cache") else library.parent, 12345, 12345)
    found, (warning,) = look_up(caplog)
    assert found is None and not recompiled
    assert "other users could change what is in" in warning and "XDG_CACHE_HOME" in warning


@pytest.mark.parametrize("umask", [0, 0o077])
def test_caches_are_private_whatever_the_umask(umask: int, recompiled, caplog, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    before = os.umask(umask)
    try:
        found, warnings = look_up(caplog)
    finally:
        os.umask(before)
    assert found and not warnings
    assert {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "a").rglob("*")} == {0o700}


def test_without_a_home_folder_there_are_no_kernels(caplog, monkeypatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**30)  # nobody's number
    found, (warning,) = look_up(caplog)
    assert found is None and "home" in warning


def test_a_compiler_that_fails_means_plain_operators(caplog, tmp_path, monkeypatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such flag >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, (warning,) = look_up(caplog)
    assert found is None and "no such flag" in warning
    assert not list(tmp_path.rglob("*.so"))


def test_switched_off_by_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("DVT_KERNELS", "0")
    assert kernels.library() is None


# -------------------------------------------------------------------------------------------------------------- aarch64

AARCH64, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.fixture(scope="module")
def on_aarch64(tmp_path_factory: pytest.TempPathFactory):
    """Calls a kernel compiled for the processor of an Ascend host: (name, inputs, shapes of outputs) -> outputs."""
    missing = [tool for tool in (AARCH64, EMULATOR) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and '.join(missing)}: apt-get install g++-aarch64-linux-gnu qemu-user")
    folder = tmp_path_factory.mktemp("aarch64")
    native = kernels.PROCESSOR_FLAGS["aarch64"]
    assert native == ("-mcpu=native",)  # which a cross-compiler refuses
    library = kernels.compile_library(AARCH64, (*kernels.COMPILE_FLAGS, "-mcpu=tsv110"), folder)
    caller, source = folder / "call_kernel", Path(__file__).with_name("call_kernel.cc")
    subprocess.run([AARCH64, "-std=c++17", source, "-o", caller, "-ldl"], check=True)

    def call(name: str, inputs: list[np.ndarray], outputs: list[tuple[int, ...]]) -> list[np.ndarray]:
        arrays = [*(x.astype(np.float32) for x in inputs), *(np.zeros(shape, np.float32) for shape in outputs)]
        command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", caller, library, name]
        command += [",".join(map(str, each.shape)) for each in arrays]
        content = b"".join(each.tobytes() for each in arrays)
        done = subprocess.run(command, input=content, capture_output=True, check=True, timeout=120)
        values = iter(np.frombuffer(done.stdout, np.float32))
        return [np.array([next(values) for _ in range(each.size)]).reshape(each.shape) for each in arrays][
            len(inputs) :
        ]

    return call


@pytest.mark.slow
def test_kernels_of_aarch64_hosts(on_aarch64) -> None:
    """Compiled with that processor's flags, emulated, against float64."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((6, 10, 48)) for _ in range(2))
    cdf, density = 0.5 * (1 + erf(x / np.sqrt(2))), np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    (y,) = on_aarch64("Gelu", [x], [x.shape])
    np.testing.assert_allclose(y, x * cdf, atol=2e-6)
    (dx,) = on_aarch64("GeluGrad", [x, dy], [x.shape])
    np.testing.assert_allclose(dx, dy * (cdf + x * density), atol=2e-6)

    gamma, beta, epsilon = rng.standard_normal(48), rng.standard_normal(48), np.array([1e-5])
    scale = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    normed, g = (x - x.mean(axis=-1, keepdims=True)) * scale, dy * gamma
    (y,) = on_aarch64("LayerNorm", [x, gamma, beta, epsilon], [x.shape])
    np.testing.assert_allclose(y, normed * gamma + beta, atol=1e-5)
    dx, dgamma, dbeta = on_aarch64("LayerNormGrad", [x, gamma, epsilon, dy], [x.shape, gamma.shape, beta.shape])
    inner = g.mean(axis=-1, keepdims=True) + normed * (g * normed).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(dx, scale * (g - inner), atol=2e-5)
    np.testing.assert_allclose(dgamma, (dy * normed).sum(axis=(0, 1)), atol=1e-4)
    np.testing.assert_allclose(dbeta, dy.sum(axis=(0, 1)), atol=1e-4)

    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    expected = powers / powers.sum(axis=-1, keepdims=True)
    (y,) = on_aarch64("Softmax", [x], [x.shape])
    np.testing.assert_allclose(y, expected, atol=1e-6)
    (dx,) = on_aarch64("SoftmaxGrad", [expected, dy], [x.shape])
    np.testing.assert_allclose(dx, expected * (dy - (dy * expected).sum(axis=-1, keepdims=True)), atol=2e-6)

    bias = rng.standard_normal(10)
    (y,) = on_aarch64("AddBias", [x, bias], [x.shape])
    np.testing.assert_allclose(y, x + bias[:, None], atol=1e-6)
    (dbias,) = on_aarch64("AddBiasGrad", [dy], [bias.shape])
    np.testing.assert_allclose(dbias, dy.sum(axis=(0, 2)), atol=1e-4)
    x4 = rng.standard_normal((2, 17, 33, 5)).astype(np.float32)
    (y,) = on_aarch64("SwapMiddle", [x4], [(2, 33, 17, 5)])
    np.testing.assert_array_equal(y, x4.transpose(0, 2, 1, 3))
    (y,) = on_aarch64("Gelu", [np.array([1.0, np.nan])], [(2,)])
    assert np.isnan(y[1]) and np.isfinite(y[0])
