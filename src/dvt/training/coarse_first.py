"""Training that begins with the first exit alone, which is cheap, and then starts the finer exits from its weights.

Short training favours coarse grids; finer exits that start from a coarser one begin with what it has learned. A finer
exit takes every layer whose tensors all have the shapes of its own: the attention, norm1 and the MLP's second layer of
every block (norm2 and the MLP's first layer too, where features are not reused), the last norm, the head and the class
token; and learned positions, resized bicubically. Patch embeddings and the reuse layers keep their random start. The
optimizer's moments and the moving averages follow: those of a taken layer are taken too, the others start as in a new
run. The bias correction of AdamW starts again: without it, moments that start at zero would take steps several times
too long; with it, those taken along take shorter steps for some hundred steps, as after a warm-up.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import Tensor, nn

from dvt.checkpoint.native import load_weights
from dvt.checkpoint.transfer import start_exit
from dvt.models.variants import ModelConfig
from dvt.training.step import TrainStep

FIRST = "exits.0."
AVERAGES = "ema."
BIAS_CORRECTION = ("adam_beta1_power", "adam_beta2_power")


class FirstExit(nn.Cell):
    """The first exit of a DVT, called like the whole: images (B, I, S, S), noise key -> one tuple of logits."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.config, self.num_exits = model.config, 1
        self.exit = model.exits[0]

    def construct(self, images: Tensor, noise_key: Tensor | None = None) -> tuple[Tensor, ...]:
        logits, _, _ = self.exit(images, None, None, noise_key)
        return (logits,)


def start_finer_exits(model: nn.Cell) -> None:
    """Puts what fits of the first exit's weights into the others."""
    weights = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
    load_weights(model, weights | _for_finer_exits(model.config, _below(FIRST, weights)))


def hand_over(model: nn.Cell, coarse: TrainStep, full: TrainStep) -> None:
    """Copies the state of the first exit's step to that of all exits, which was made after `start_finer_exits`."""
    values = coarse.state()
    for prefix in {name.partition(FIRST)[0] for name in values if FIRST in name}:  # "ema.", "adam_moment1." and such
        finer = _for_finer_exits(model.config, _below(prefix + FIRST, values))
        if prefix != AVERAGES:  # resized bicubically, second moments could become negative
            finer = {name: value for name, value in finer.items() if not name.endswith("pos_embed")}
        values |= {prefix + name: value for name, value in finer.items()}
    full.load_state(values | {name: np.ones((), np.float32) for name in BIAS_CORRECTION if name in values})


def _for_finer_exits(config: ModelConfig, first: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values for exits 1..K-1 by full name, from those of exit 0 by names below it."""
    return {
        f"exits.{index}.{name}": value
        for index in range(1, config.num_exits)
        for name, value in start_exit(config, index, first, config.grid_sizes[0])[0].items()
    }


def _below(prefix: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
