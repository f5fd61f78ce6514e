"""Every kind of graph of this package compiles for Ascend, with each factor somewhere, and what they launch exists
there: a simulation accepts operators that no card has."""

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, ops

from ascend.simulated import Ascend, Graphs
from dvt import device
from dvt.cluster.ranks import Ranks
from dvt.config import TrainSection
from dvt.deploy.writers import exportable
from dvt.early_exit.classifier import ExitCell
from dvt.models.cascade import AllExits, build_from_config
from dvt.models.precision import set_precision
from dvt.models.variants import ModelConfig
from dvt.training.gradients import GradientsMean
from dvt.training.step import TrainStep
from models import tiny

pytestmark = pytest.mark.slow

ONE = {"grid_sizes": (2,)}
TWO = {"grid_sizes": (2, 3)}
LABELS = np.array([0, 1, 2, 3], np.int32)

STEPS: dict[str, tuple[ModelConfig, dict[str, Any], np.ndarray]] = {
    "soft_sgd": (tiny.patch_config(**ONE), {"optimizer": "sgd"}, np.eye(7, dtype=np.float32)[LABELS]),
    "accumulation_o2": (tiny.patch_config(**ONE), {"accumulation_steps": 2, "amp_level": "O2"}, LABELS),
    "t2t": (tiny.t2t_config(**ONE, soft_splits=((6, 4, 1),)), {}, LABELS),
    "reuse_distillation_o1": (
        tiny.patch_config(**TWO),
        {"distillation": 0.5, "amp_level": "O1", "exit_lr_scales": [0, 1]},
        LABELS,
    ),
    "no_reuse_padded": (tiny.patch_config(**TWO, image_size=16, feature_reuse=False, relation_reuse=False), {}, LABELS),
    "eight_ranks": (tiny.patch_config(**ONE, depth=4), {"clip_norm": 1.0, "ema_decay": 0.9}, LABELS),
}
"""Model, what `TrainSection` has besides its defaults, and targets of the step of each name. Each has some factors that
meet in no operator: a graph takes seconds to compile."""

FORWARD = ["performer_o2", "evaluation", "export", "export_float16"]

# AICPU kernels that are known: exported soft splits, since every device and Lite's converter has no other operator.
KNOWN_ON_AICPU = {"export": {"Im2Col"}, "export_float16": {"Im2Col"}}

BRANCHES = {"Switch", "Partial", "ConditionSwitch", "ConditionGather"}
"""Operators of graphs in which the host reads a tensor to decide what runs next."""

# Operators of the older interface whose documentation names no platforms, and where CANN's is named instead.
REVIEWED = {
    "BiasAddGrad": "CANN 9.0, AOE, Operator List",
    "LayerNormGrad": "MindSpore's table of AI Core operators until 2.1, ops/_op_impl/tbe/layer_norm_grad.py",
    "StridedSliceGrad": "the same, strided_slice_grad_d.py",
    "TensorMove": "the same, tensor_move.py",
}


def one_step(name: str) -> None:
    config, options, targets = STEPS[name]
    device.set_up("Ascend")
    ranks = Ranks.join()
    train = TrainSection(**options)
    model = build_from_config(config)
    model.set_train(True)
    set_precision(model, train.amp_level)
    step = TrainStep(model, train, np.full(4, 1e-3, np.float32), 0, ranks)
    step.set_train(True)
    if ranks.world_size > 1:
        sizes = [parameter.size for parameter in step.parameters]
        step.reduce_gradients = GradientsMean(sizes, ranks.world_size, most=sum(sizes) // 8)
    for _ in range(train.accumulation_steps):
        step(Tensor(tiny.images_for(config, len(targets))), Tensor(targets))


for _name in STEPS:
    globals()[_name] = partial(one_step, _name)


def performer_o2() -> None:
    config = tiny.t2t_config(**ONE, soft_splits=((6, 4, 1),))
    model = build_from_config(config)
    set_precision(model, "O2")
    performer = model.exits[0].tokens.performer1
    performer(Tensor(np.ones((2, 9, performer.norm1.gamma.size), np.float32)), None)


def evaluation() -> None:
    config = tiny.patch_config(**TWO)
    AllExits(build_from_config(config).set_train(False))(Tensor(tiny.images_for(config)))


def export(precision: str = "float32") -> None:
    config = tiny.t2t_config(grid_sizes=(2, 3), soft_splits=((6, 4, 1), (5, 3, 1)))
    model = exportable(build_from_config(config), precision)
    values: dict[str, Tensor] = {"images": Tensor(tiny.images_for(config))}
    for index in range(config.num_exits):
        cell = ExitCell(model, index)
        values |= zip(cell.output_names, cell(*ExitCell.arguments(values)), strict=True)
        values = {name: value for name, value in values.items() if name in ("images", "features", "relations")}


def export_float16() -> None:
    export("float16")


@pytest.fixture(scope="module")
def graphs(ascend: Ascend) -> dict[str, Graphs]:
    alone = [name for name in (*STEPS, *FORWARD) if name != "eight_ranks"]
    return ascend.compile(__file__, alone) | ascend.compile(__file__, ["eight_ranks"], cards=8, rank=3)


@pytest.mark.parametrize("name", [*STEPS, *FORWARD])
def test_compiles_with_no_kernel_on_the_aicpu(graphs: dict[str, Graphs], name: str) -> None:
    assert not graphs[name].error
    assert graphs[name].of_kind("aclnn") and graphs[name].peak_bytes
    assert graphs[name].aicpu().keys() <= KNOWN_ON_AICPU.get(name, set())
    assert not {node.operator for node in graphs[name].nodes} & BRANCHES


@pytest.mark.parametrize("name", [*STEPS, *FORWARD])
def test_layer_norm_and_softmax_are_float32(graphs: dict[str, Graphs], name: str) -> None:
    kept = [node for node in graphs[name].nodes if "LayerNorm" in node.operator or "Softmax" in node.operator]
    assert kept and {kind for node in kept for kind in node.inputs} == {"Float32"}


def test_performers_are_float32_in_mixed_precision(graphs: dict[str, Graphs]) -> None:
    nodes = graphs["performer_o2"].nodes
    assert {kind for node in nodes for kind in (*node.inputs, *node.outputs)} == {"Float32"}
    assert any("Float16" in node.inputs for node in graphs["export_float16"].nodes)


def test_soft_splits_in_training_have_a_kernel_of_cann(graphs: dict[str, Graphs]) -> None:
    kernels = graphs["t2t"].of_kind("aclnn")
    assert kernels["Im2ColExt"] == 3 and kernels["Col2ImExt"] == 2


def test_an_accumulated_batch_is_two_graphs_of_which_one_updates(graphs: dict[str, Graphs]) -> None:
    operators = Counter(node.operator for node in graphs["accumulation_o2"].nodes)
    assert operators["AllFinite"] == 1 and operators["OneHot"] == 2


def test_gradients_leave_during_the_backward_pass(graphs: dict[str, Graphs]) -> None:
    """In messages, of which all but those of the first layers start before its last kernels."""
    order = graphs["eight_ranks"].order
    backward = [place for place, name in enumerate(order) if "Gradients/" in name]
    messages = [place for place, name in enumerate(order) if re.search("reduce_gradients.*/AllReduce", name)]
    launched = graphs["eight_ranks"].of_kind("HCCL")
    assert launched == {"AllReduce": 1 + len(messages)} and len(messages) >= 7  # losses, and gradients
    left = [sum(place > message for place in backward) for message in messages]
    assert left[0] > 0.6 * len(backward) and left[-4] > 0


def test_ascend_has_every_operator(graphs: dict[str, Graphs]) -> None:
    """By the documentation of the installed MindSpore. What is launched as aclnn is an operator of CANN itself."""
    launched = {kernel for each in graphs.values() for kernel in each.kernels}
    said = {name: platforms(name) for name, _ in launched}
    assert not {name for name, found in said.items() if found and "Ascend" not in found}
    silent = {name for name, kind in launched if kind in ("aclop", "AICPU") and not said[name]}
    assert silent <= REVIEWED.keys()
    assert platforms("MatMul") and platforms("Add") and "Ascend" not in platforms("Lgamma")


MODULES = ("mindspore.ops.operations", "mindspore.ops.auto_generate", "mindspore.ops.operations._grad_ops")


def platforms(operator: str) -> set[str]:
    """The platforms that the documentation of an operator, or of the function to which it refers, lists."""
    modules = [importlib.import_module(name) for name in MODULES]
    primitive = next((getattr(module, operator) for module in modules if hasattr(module, operator)), None)
    texts = [text for text in _texts(primitive) if "Supported Platforms:" in text]
    return {name for text in texts for name in re.findall(r"``(\w+)``", text.split("Supported Platforms:")[1][:80])}


def _texts(primitive: Any) -> Iterator[str]:
    text = inspect.getdoc(primitive) or ""
    yield text
    for name in re.findall(r"Refer to :func:`mindspore\.ops\.(\w+)`", text):
        yield inspect.getdoc(getattr(ops, name, None)) or ""
