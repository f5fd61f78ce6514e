"""How sure an exit is of an image: the scores that are compared with thresholds, and temperatures before them.

Every rule gives a score that rises with certainty. Plain NumPy. Axis letters: K exits, n images, C classes. Sources:
confidence is the paper's rule; entropy is one of those it compares with (paper, table "exit rule").
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dvt.errors import ConfigError

RuleName = Literal["confidence", "entropy", "margin"]
RULES: tuple[str, ...] = get_args(RuleName)
_SMALLEST = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class ExitRule:
    """What is compared with the thresholds.

    Args:
        name: "confidence", the largest probability; "entropy", 1 - entropy / log(C), which is 1 for a certain answer
            and 0 for none; "margin", the largest probability less the second largest.
        temperatures: One per exit, above 0, by which its logits are divided first; None leaves them as they are.
    """

    name: str = "confidence"
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ConfigError(f"unknown exit rule {self.name!r}; choose from {', '.join(RULES)}")
        if self.temperatures is not None:
            values = tuple(float(value) for value in self.temperatures)
            if not all(0 < value < float("inf") for value in values):
                raise ConfigError(f"the temperatures are {list(values)}; every one must be above 0 and finite")
            object.__setattr__(self, "temperatures", values)

    def scores(self, exit_index: int, probabilities: np.ndarray) -> np.ndarray:
        """Scores (n,) of one exit's softmax outputs (n, C), in their precision."""
        if self.temperatures is not None:
            probabilities = at_temperature(probabilities, self.temperatures[exit_index])
        if self.name == "entropy":
            entropy = -(probabilities * np.log(np.maximum(probabilities, _SMALLEST))).sum(axis=-1)
            return (1 - entropy / np.log(max(probabilities.shape[-1], 2))).astype(probabilities.dtype)
        if self.name == "margin" and probabilities.shape[-1] > 1:
            second, first = np.moveaxis(np.partition(probabilities, -2, axis=-1)[..., -2:], -1, 0)
            return first - second
        return probabilities.max(axis=-1)

    def check_exits(self, num_exits: int) -> None:
        """Raises ConfigError unless there is a temperature for each exit, or none at all."""
        if self.temperatures is not None and len(self.temperatures) != num_exits:
            raise ConfigError(f"there are {len(self.temperatures)} temperatures for {num_exits} exits; give one each")

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {"name": self.name, "temperatures": self.temperatures and list(self.temperatures)}

    @classmethod
    def from_dict(cls, stored: dict | None) -> "ExitRule":
        """The inverse of `to_dict`; None is the paper's rule."""
        stored = stored or {}
        return cls(stored.get("name", "confidence"), stored.get("temperatures"))


CONFIDENCE = ExitRule()


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax outputs (..., C) of the logits divided by `temperature`: above 1 they come out flatter."""
    if temperature == 1:
        return probabilities
    logits = np.log(np.maximum(probabilities, _SMALLEST)) / np.asarray(temperature, probabilities.dtype)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def describe(rule: ExitRule) -> str:
    """ "confidence", or "margin at temperatures 1.32, 1.10, 0.97"."""
    temperatures = ", ".join(f"{t:.3g}" for t in rule.temperatures or ())
    return f"{rule.name} at temperatures {temperatures}" if temperatures else rule.name
