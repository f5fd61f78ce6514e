"""A cost model of data-parallel training: time of a step, memory per device, images/s needed. Pure Python.

It is for choosing a batch size, a number of devices and a network before any are rented, and for noticing when a
measured run is far from what it could be. Every number of the hardware is an input; none is claimed as measured.
Assumptions (docs/distributed.md discusses them):

- the backward pass costs twice the forward pass, and with recomputation the forward pass is done twice;
- gradients are float32, reduced once per step of the optimizer, and not hidden behind the backward pass unless
  `overlap` says so;
- inside a machine and between machines the all-reduce is a ring, in which every message costs its latency;
- kept for the backward pass is what the derivatives of the operators need; fragmentation, workspaces of operators and
  the runtime itself come on top.

Axis letters: C width, H heads, L layers, M MLP hidden, N tokens of an exit, N' tokens of the exit before.
"""

import math
from dataclasses import dataclass

from dvt.config import TrainSection
from dvt.convert import parameter_shapes
from dvt.cost import cumulative_gmacs
from dvt.models.variants import (
    FEATURE_CHANNELS,
    FEATURE_HIDDEN,
    LATER_SOFT_SPLIT,
    PERFORMER_DIM,
    PERFORMER_FEATURES,
    RELATION_EXPANSION,
    ModelConfig,
    patch_geometry,
    split_sides,
)

FLOAT32 = 4
FLOAT16 = 2

# Bytes of a kept number. O1 keeps the inputs of matrix products in float16, the stream between blocks in float32.
ACTIVATION_BYTES = {"O0": 4.0, "O1": 3.0, "O2": 2.0}

# Moments of the optimizer per parameter.
MOMENTS = {"adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class Hardware:
    """What a machine and the network can do; all of it assumed by whoever asks.

    Attributes:
        tflops: Sustained 10^12 floating-point operations per second of one device (a multiply-add counts as two).
        bandwidth: 10^9 bytes per second that a device sends to its neighbour inside a machine.
        latency: Seconds per message inside a machine.
        devices_per_machine: Devices of one machine.
        network_bandwidth: 10^9 bytes per second that a device sends to another machine.
        network_latency: Seconds per message between machines.
        overlap: Share of the backward pass behind which the all-reduce is hidden, 0 to 1.
    """

    tflops: float
    bandwidth: float
    latency: float
    devices_per_machine: int = 8
    network_bandwidth: float = 12.5
    network_latency: float = 30e-6
    overlap: float = 0.0


@dataclass(frozen=True)
class Memory:
    """GiB of one device, by what fills them."""

    weights: float
    gradients: float
    optimizer: float
    moving_average: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Step:
    """One step of the optimizer on a number of devices; times in seconds.

    Attributes:
        devices: Number of devices.
        compute: Forward and backward passes.
        reduction: All-reduce of the gradients, hidden or not.
        seconds: The step.
        images_per_second: Of all devices, also what the input pipelines must deliver together.
        efficiency: images_per_second, as a share of that many single devices.
    """

    devices: int
    compute: float
    reduction: float
    seconds: float
    images_per_second: float
    efficiency: float


def trainable_parameters(config: ModelConfig) -> int:
    """Parameters with a gradient: all but the fixed positions and random features of T2T models."""
    fixed = ("pos_embed", "random_features") if config.tokenizer == "t2t" else ()
    return sum(math.prod(shape) for name, shape in parameter_shapes(config).items() if not name.endswith(fixed))


def gradient_bytes(config: ModelConfig) -> int:
    """What one all-reduce carries."""
    return FLOAT32 * trainable_parameters(config)


def compute_seconds(config: ModelConfig, train: TrainSection, tflops: float) -> float:
    """Forward and backward passes of one step of the optimizer on one device."""
    passes = 4 if train.recompute else 3
    images = train.batch_size * train.accumulation_steps
    return passes * 2e9 * cumulative_gmacs(config)[-1] * images / (tflops * 1e12)


def ring_seconds(size: float, members: int, bandwidth: float, latency: float) -> float:
    """A ring all-reduce: 2 (n - 1) messages, each of the n-th part.

    Args:
        size: Bytes that each member contributes.
        members: Number n of members.
        bandwidth: 10^9 bytes per second from a member to the next.
        latency: Seconds per message.
    """
    return 2 * (members - 1) * (size / members / (bandwidth * 1e9) + latency)


def reduction_seconds(size: float, devices: int, hardware: Hardware) -> float:
    """The all-reduce of `size` bytes: a ring inside each machine, and one between machines for each device's part."""
    inside = min(devices, hardware.devices_per_machine)
    machines = math.ceil(devices / hardware.devices_per_machine)
    return ring_seconds(size, inside, hardware.bandwidth, hardware.latency) + ring_seconds(
        size / inside, machines, hardware.network_bandwidth, hardware.network_latency
    )


def step(config: ModelConfig, train: TrainSection, devices: int, hardware: Hardware) -> Step:
    """One step of the optimizer with the batch size of `train` on each of `devices` devices."""
    compute = compute_seconds(config, train, hardware.tflops)
    reduction = reduction_seconds(gradient_bytes(config), devices, hardware)
    backward = compute * (1 - 1 / (4 if train.recompute else 3)) / train.accumulation_steps  # of the last batch
    seconds = compute + max(0.0, reduction - hardware.overlap * backward)
    images = devices * train.batch_size * train.accumulation_steps
    return Step(devices, compute, reduction, seconds, images / seconds, compute / seconds)


def memory(config: ModelConfig, train: TrainSection) -> Memory:
    """Memory of one device in training, in GiB, from the shapes alone."""
    trained = trainable_parameters(config)
    everything = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    accumulated = train.accumulation_steps > 1
    half_copies = 0 if train.amp_level == "O0" else FLOAT16 * everything
    kept, working = kept_elements(config, train.recompute)
    per_element = ACTIVATION_BYTES[train.amp_level] * train.batch_size
    return Memory(
        weights=_gib(FLOAT32 * everything + half_copies),
        gradients=_gib(FLOAT32 * trained * (2 if accumulated else 1)),
        optimizer=_gib(FLOAT32 * trained * MOMENTS[train.optimizer]),
        moving_average=_gib(FLOAT32 * trained if train.ema_decay > 0 else 0),
        activations=_gib(kept * per_element),
        working=_gib(working * per_element),
    )


def kept_elements(config: ModelConfig, recompute: bool = False) -> tuple[int, int]:
    """Numbers per image that (all exits keep for the backward pass, the largest block needs on top while it runs)."""
    kept = 0
    blocks = []
    for exit_index in range(config.num_exits):
        block = block_elements(config, exit_index)
        blocks.append(block)
        kept += token_elements(config, exit_index) + relation_elements(config, exit_index)
        kept += config.depth * (block_inputs(config, exit_index) if recompute else block)
    return kept, max(blocks)


def block_elements(config: ModelConfig, exit_index: int) -> int:
    """Numbers per image that one block keeps: the inputs of its norms and products, q, k, v, the attention map."""
    n, dim = config.num_tokens(exit_index), config.embed_dim
    attention = n * dim * 6 + config.num_heads * n**2  # norm1's input and output, q, k, v, proj's input; the map
    reuses_features = config.feature_reuse and exit_index > 0
    mlp_in = dim + (FEATURE_CHANNELS if reuses_features else 0)
    mlp = n * (2 * mlp_in + 2 * config.mlp_hidden)  # norm2's input and output; GELU's input and output
    reuse = 0
    if reuses_features:
        source = config.num_tokens(exit_index - 1)
        reuse = source * (dim + 2 * FEATURE_HIDDEN)  # norm's output; GELU's input and output
    return attention + mlp + reuse


def block_inputs(config: ModelConfig, exit_index: int) -> int:
    """Numbers per image that a block keeps when it is computed again: its tokens, and the relations it receives."""
    n = config.num_tokens(exit_index)
    received = config.num_heads * n**2 if config.relation_reuse and exit_index > 0 else 0
    return n * config.embed_dim + received


def relation_elements(config: ModelConfig, exit_index: int) -> int:
    """Numbers per image of the relations that an exit hands on, and of the two layers that mix them at the next."""
    if not config.relation_reuse or exit_index == config.num_exits - 1:
        return 0
    maps = config.depth * config.num_heads * config.num_tokens(exit_index) ** 2
    return maps * (1 + 2 * RELATION_EXPANSION)  # themselves; GELU's input and output


def token_elements(config: ModelConfig, exit_index: int) -> int:
    """Numbers per image that the way from the image to the tokens keeps."""
    grid = config.grid_sizes[exit_index]
    if config.tokenizer == "patch":
        patch, _ = patch_geometry(config.image_size, grid)
        return config.in_channels * (grid * patch) ** 2
    first = config.soft_splits[exit_index]
    sides = split_sides(config.image_size, first)
    later_dim = PERFORMER_DIM * LATER_SOFT_SPLIT[0] ** 2
    performers = _performer_elements(sides[0] ** 2, config.in_channels * first[0] ** 2)
    performers += _performer_elements(sides[1] ** 2, later_dim)
    return performers + sides[2] ** 2 * later_dim


def _performer_elements(tokens: int, in_dim: int) -> int:
    # norm1's input and output; k, q, v, the sums before and after the division, norm2's input and output, GELU's input
    # and output; phi of k and q
    return tokens * (2 * in_dim + 9 * PERFORMER_DIM + 2 * PERFORMER_FEATURES)


def _gib(size: float) -> float:
    return size / 2**30
