"""Mixed precision: which parts compute in float16. Weights, and therefore gradients and optimizer, stay float32.

O1: matrix products (dense layers, attention, mixing of relations). O2: also what flows from block to block.
Always float32: softmax, LayerNorm, the T2T performers, the loss (spec: recipes).
"""

from collections.abc import Iterator

from mindspore import dtype as mstype
from mindspore import nn

from dvt.errors import ConfigError
from dvt.models.layers import ChannelDense, Dense, Gelu, SwapMiddle, plain_bias
from dvt.models.tokens import TokenPerformer

AMP_LEVELS = ("O0", "O1", "O2")


def set_precision(model: nn.Cell, amp_level: str) -> None:
    """Makes `model`, a freshly built DVT, compute as `amp_level` says. Raises ConfigError for an unknown level."""
    if amp_level not in AMP_LEVELS:
        raise ConfigError(f"amp_level is {amp_level!r}; it must be one of {', '.join(AMP_LEVELS)}")
    if amp_level == "O0":
        return
    for cell in _outside_of_performers(model):
        if isinstance(cell, Dense | ChannelDense):
            cell.compute_in(mstype.float16, plain_bias)
        elif isinstance(cell, Gelu | SwapMiddle):
            cell.operator = cell.plain
    if amp_level == "O2":
        for exit_ in model.exits:
            exit_.stream_type = mstype.float16


def _outside_of_performers(cell: nn.Cell) -> Iterator[nn.Cell]:
    yield cell
    for child in cell.cells():
        if not isinstance(child, TokenPerformer):
            yield from _outside_of_performers(child)
