"""The cost model against computations by hand and against what must hold of any ring."""

import pytest

from benchmarks import scaling_model as scaling
from benchmarks.scaling_model import Hardware
from dvt.config import TrainSection
from dvt.cost import cumulative_gmacs
from dvt.models.variants import model_config

# Two exits with 2x2 and 4x4 patches of an 8x8 grey image: N' = 5, N = 17.
TINY = model_config(
    "dvt_deit_small",
    image_size=8,
    in_channels=1,
    num_classes=10,
    grid_sizes=[2, 4],
    embed_dim=8,
    depth=2,
    num_heads=2,
    mlp_hidden=16,
)
HARDWARE = Hardware(tflops=50, bandwidth=20, latency=10e-6, network_bandwidth=10, network_latency=40e-6)


def test_ring_by_hand():
    # 4 members, 80 MB: 6 messages of 20 MB at 10 GB/s, 2 ms each, and 6 times 1 ms.
    assert scaling.ring_seconds(80e6, 4, 10, 1e-3) == pytest.approx(6 * 2e-3 + 6e-3)
    assert scaling.ring_seconds(80e6, 1, 10, 1e-3) == 0


def test_ring_cost_hardly_depends_on_its_size_but_for_latency():
    many, few = (scaling.ring_seconds(1e9, n, 10, 0) for n in (1000, 2))
    assert many / few == pytest.approx(2 * 999 / 1000)


def test_reduction_over_machines_by_hand():
    # 2 machines of 8: inside, 14 messages of 10 MB at 20 GB/s; between, 2 messages of 5 MB (half of an eighth) at 10.
    size = 80e6
    inside = 14 * (0.5e-3 + 10e-6)
    between = 2 * (0.5e-3 + 40e-6)
    assert scaling.reduction_seconds(size, 8, HARDWARE) == pytest.approx(inside)
    assert scaling.reduction_seconds(size, 16, HARDWARE) == pytest.approx(inside + between)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 22,461,516 with fixed positions (348 tokens of width 256) and 3 x 2 x 32 x 64 random features.
        ("dvt_t2t_vit_12", 22_461_516 - 348 * 256 - 6 * 32 * 64),
        ("dvt_deit_small", 70_442_232),
    ],
)
def test_trainable_parameters(name: str, parameters: int):
    config = model_config(name)
    assert scaling.trainable_parameters(config) == parameters
    assert scaling.gradient_bytes(config) == 4 * parameters


def test_compute_by_hand():
    config, train = model_config("dvt_deit_small"), TrainSection(batch_size=64, accumulation_steps=2)
    # 8.843 GMACs are 17.69 GFLOPs forward, thrice that with the backward pass, for 128 images at 50 TFLOPS.
    assert scaling.compute_seconds(config, train, 50) == pytest.approx(3 * 2 * 8.843e9 * 128 / 50e12, rel=1e-3)
    again = TrainSection(batch_size=64, accumulation_steps=2, recompute=True)
    ratio = scaling.compute_seconds(config, again, 50) / scaling.compute_seconds(config, train, 50)
    assert ratio == pytest.approx(4 / 3)


def test_step_and_efficiency():
    config, train = model_config("dvt_t2t_vit_12"), TrainSection(batch_size=128)
    one, many = (scaling.step(config, train, devices, HARDWARE) for devices in (1, 16))
    assert one.efficiency == 1
    assert one.reduction == 0
    assert one.images_per_second == pytest.approx(50e12 / (6e9 * cumulative_gmacs(config)[-1]))
    assert many.seconds == pytest.approx(many.compute + many.reduction)
    assert many.efficiency == pytest.approx(many.images_per_second / (16 * one.images_per_second))
    hidden = scaling.step(config, train, 16, Hardware(**{**vars(HARDWARE), "overlap": 1.0}))
    assert hidden.seconds == pytest.approx(max(many.compute, many.reduction + many.compute / 3))


def test_efficiency_falls_with_devices_and_rises_with_accumulation():
    config = model_config("dvt_deit_small")
    efficiencies = [scaling.step(config, TrainSection(), 2**power, HARDWARE).efficiency for power in range(11)]
    assert efficiencies == sorted(efficiencies, reverse=True)
    accumulated = scaling.step(config, TrainSection(accumulation_steps=4), 1024, HARDWARE)
    assert accumulated.efficiency > efficiencies[-1]


def test_kept_elements_of_a_tiny_model_by_hand():
    # Exit 1: 5 tokens of width 8, 2 maps of 5x5, MLP 8 -> 16 -> 8.
    assert scaling.block_elements(TINY, 0) == 6 * 5 * 8 + 2 * 25 + 5 * (2 * 8 + 2 * 16)
    # Exit 2: 17 tokens; 48 channels join in front of norm2; the feature MLP runs on the 5 tokens of exit 1.
    assert scaling.block_elements(TINY, 1) == 6 * 17 * 8 + 2 * 289 + 17 * (2 * 56 + 2 * 16) + 5 * (8 + 2 * 128)
    # 2 layers x 2 heads of 5x5 relations; the hidden layer of their mixing is three times as wide.
    assert scaling.relation_elements(TINY, 0) == 4 * 25 * 7
    assert scaling.relation_elements(TINY, 1) == 0
    assert scaling.token_elements(TINY, 0) == scaling.token_elements(TINY, 1) == 64
    kept, working = scaling.kept_elements(TINY)
    blocks = scaling.block_elements(TINY, 0), scaling.block_elements(TINY, 1)
    assert kept == 2 * sum(blocks) + 4 * 25 * 7 + 2 * 64
    assert working == max(blocks)
    # Computed again: only what goes into each block stays, at exit 2 with the received relations.
    again, _ = scaling.kept_elements(TINY, recompute=True)
    assert again == 2 * (5 * 8) + 2 * (17 * 8 + 2 * 289) + 4 * 25 * 7 + 2 * 64


def test_tokens_of_t2t_by_hand():
    config = model_config("dvt_t2t_vit_12", grid_sizes=[14], soft_splits=[[7, 4, 2]])
    first = 56**2 * (2 * 147 + 9 * 64 + 2 * 32)
    second = 28**2 * (2 * 576 + 9 * 64 + 2 * 32)
    assert scaling.token_elements(config, 0) == first + second + 14**2 * 576


def test_memory_by_hand():
    config = model_config("dvt_deit_small")
    train = TrainSection(batch_size=64, ema_decay=0.9999, accumulation_steps=2, amp_level="O2")
    found = scaling.memory(config, train)
    gib_of_a_copy = 4 * 70_442_232 / 2**30
    assert found.weights == pytest.approx(1.5 * gib_of_a_copy)
    assert found.gradients == pytest.approx(2 * gib_of_a_copy)
    assert found.optimizer == pytest.approx(2 * gib_of_a_copy)
    assert found.moving_average == pytest.approx(gib_of_a_copy)
    kept, working = scaling.kept_elements(config)
    assert found.activations == pytest.approx(64 * 2 * kept / 2**30)
    assert found.total == pytest.approx(6.5 * gib_of_a_copy + 64 * 2 * (kept + working) / 2**30)


def test_recomputation_saves_memory_and_reuse_costs_some():
    config = model_config("dvt_t2t_vit_14")
    plain = scaling.memory(config, TrainSection())
    assert scaling.memory(config, TrainSection(recompute=True)).activations < 0.6 * plain.activations
    no_relations = model_config("dvt_t2t_vit_14", relation_reuse=False)
    assert scaling.memory(no_relations, TrainSection()).activations < plain.activations
    assert scaling.memory(config, TrainSection(optimizer="sgd")).optimizer == plain.optimizer / 2
