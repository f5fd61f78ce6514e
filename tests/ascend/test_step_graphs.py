"""Training steps, and an exit as it is exported, as Ascend compiles them: nothing that its host computes or waits for,
float32 where float16 is too coarse, and gradients in messages that leave before the last one is known."""

import numpy as np
import pytest
import tiny
from mindspore import Tensor

from ascend.simulated import Ascend, Graphs
from dvt.cluster.ranks import ALONE, Ranks
from dvt.config import TrainSection
from dvt.deploy.mindir import exportable
from dvt.early_exit.classifier import ExitCell
from dvt.models.cascade import build_from_config
from dvt.models.precision import set_precision
from dvt.models.variants import ModelConfig
from dvt.training.gradients import GradientsMean
from dvt.training.step import TrainStep

pytestmark = pytest.mark.slow

T2T = tiny.t2t_config(grid_sizes=(3,), soft_splits=((5, 3, 1),))
PATCH = tiny.patch_config(grid_sizes=(2,))
# What the AICPU, a small processor beside the cores, would compute.
SLOW = {"Im2Col", "Col2Im", "RightShift", "LeftShift"}
BRANCHES = {"Switch", "ConditionSwitch", "Partial"}


def step_of(config: ModelConfig, ranks: Ranks = ALONE, **train: object) -> TrainStep:
    model = build_from_config(config)
    model.set_train(True)
    section = TrainSection(**{"ema_decay": 0.9, "clip_norm": 1.0, **train})
    set_precision(model, section.amp_level)
    step = TrainStep(model, section, np.full(4, 1e-3, np.float32), 0, ranks)
    step.set_train(True)
    return step


def call(step: TrainStep, config: ModelConfig) -> None:
    step(Tensor(tiny.images_for(config)), Tensor(np.array([1, 2], np.int32)))


def scaled_adamw_on_class_indices() -> None:
    call(step_of(T2T, amp_level="O1"), T2T)


def accumulated_sgd() -> None:
    step = step_of(PATCH, optimizer="sgd", accumulation_steps=2)
    for _ in range(2):
        call(step, PATCH)


def performer_in_mixed_precision() -> None:
    model = build_from_config(T2T)
    set_precision(model, "O2")
    performer = model.exits[0].tokens.performer1
    performer(Tensor(np.ones((2, 9, performer.norm1.gamma.shape[0]), np.float32)), None)


def exported_in_float16() -> None:
    config = tiny.patch_config(grid_sizes=(2, 3))
    ExitCell(exportable(build_from_config(config), "float16"), 0)(Tensor(tiny.images_for(config)))


def messages() -> None:
    ranks = Ranks(0, 8)
    step = step_of(tiny.patch_config(grid_sizes=(2, 3)), ranks)
    step.reduce_gradients = GradientsMean([parameter.size for parameter in step.parameters], 8, most=10_000)
    call(step, PATCH)


FUNCTIONS = ["scaled_adamw_on_class_indices", "accumulated_sgd", "performer_in_mixed_precision", "exported_in_float16"]


@pytest.fixture(scope="module")
def graphs(ascend: Ascend) -> dict[str, Graphs]:
    return ascend.compile(__file__, FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_is_slow_and_nothing_waits_for_the_host(name: str, graphs: dict[str, Graphs]) -> None:
    assert not graphs[name].error
    operators = {node.operator for node in graphs[name].nodes}
    assert operators and not operators & (SLOW | BRANCHES)


def test_soft_splits_have_a_kernel_of_their_own(graphs: dict[str, Graphs]) -> None:
    kernels = graphs["scaled_adamw_on_class_indices"].of_kind("aclnn")
    assert kernels["Im2ColExt"] == 3 and kernels["Col2ImExt"] == 2


def test_an_accumulated_batch_is_two_graphs(graphs: dict[str, Graphs]) -> None:
    """Both add to the sums; one of them updates the weights."""
    kernels = graphs["accumulated_sgd"].kernels
    parameters = len(step_of(PATCH).parameters)
    count = sum(number for (name, _), number in kernels.items() if name == "ApplyMomentum")
    assert count == parameters


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layer_norm_and_softmax_are_float32(name: str, graphs: dict[str, Graphs]) -> None:
    kept = [node for node in graphs[name].nodes if "LayerNorm" in node.operator or "Softmax" in node.operator]
    assert kept and {kind for node in kept for kind in node.inputs} == {"Float32"}


def test_performers_are_float32_in_mixed_precision(graphs: dict[str, Graphs]) -> None:
    nodes = graphs["performer_in_mixed_precision"].nodes
    assert "Float16" not in {kind for node in nodes for kind in (*node.inputs, *node.outputs)}
    half = graphs["exported_in_float16"].nodes
    assert {node.inputs[0] for node in half if node.operator.startswith("MatMul")} == {"Float16"}


def test_messages_are_under_way_before_the_backward_pass_ends(ascend: Ascend) -> None:
    found = ascend.compile(__file__, ["messages"], cards=8)["messages"]
    assert not found.error
    order = [node.operator for node in found.nodes]
    sent = [place for place, operator in enumerate(order) if operator == "AllReduce"]
    assert len(sent) > 3
    last_gradient = max(place for place, operator in enumerate(order) if operator == "LayerNormGrad")
    assert sum(place < last_gradient for place in sent) >= 2
