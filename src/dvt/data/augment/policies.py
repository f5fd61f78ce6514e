"""RandAugment and AutoAugment on PIL images, from given random numbers. Needs no MindSpore.

`OPERATIONS` is the one table of what can be done to an image and how a magnitude between 0 and 10 becomes the argument
of each operation. A policy draws a few steps from it; `build_policy` makes the ones that a configuration can name.
All operations are PIL's own, so that training sees the pixels of the published recipe bit for bit.

Sources: RandAugment (Cubuk et al. 2019) in the variant `rand-m9-mstd0.5-inc1` of the published recipe; AutoAugment
(Cubuk et al. 2018, arXiv:1805.09501, tables 6 and 9).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from dvt.data.augment.basic import random_resampling
from dvt.errors import ConfigError

MAX_MAGNITUDE = 10
APPLICATION_RATE = 0.5
MAGNITUDE = NormalDist(9, 0.5)
"""RandAugment's magnitudes, before they are clipped to 0..10."""

Fill = tuple[int, ...]
Argument = float | None


@dataclass(frozen=True)
class Operation:
    """One row of `OPERATIONS`.

    Args:
        apply: (image, argument, resampling, fill) -> image; only geometric operations need the last two.
        argument: (magnitude 0..10, sign +1 or -1) -> argument; None for operations that need none.
    """

    apply: Callable[[Image.Image, Any, Image.Resampling, Fill], Image.Image]
    argument: Callable[[float, int], Argument]


def _rotate(image: Image.Image, degrees: float, resample: Image.Resampling, fill: Fill) -> Image.Image:
    return image.rotate(degrees, resample, fillcolor=fill)


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling, fill: Fill) -> Image.Image:
    """`matrix` maps places of the result to places of `image`: x = a x' + b y' + c, y = d x' + e y' + f."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def _add_to_dark(image: Image.Image, amount: int) -> Image.Image:
    """Adds to all values below 128."""
    table = [min(255, value + amount) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _no_argument(magnitude: float, sign: int) -> None:
    return None


def _signed(largest: float) -> Callable[[float, int], float]:
    return lambda magnitude, sign: sign * (magnitude / MAX_MAGNITUDE * largest)


def _enhancement(magnitude: float, sign: int) -> float:
    """Factor that is 1 for an unchanged image and grows away from it to 0.1 or 1.9."""
    return 1 + sign * (magnitude / MAX_MAGNITUDE * 0.9)


def _whole_share(magnitude: float, largest: int) -> int:
    return int(magnitude / MAX_MAGNITUDE * largest)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(lambda image, *_: ImageOps.autocontrast(image), _no_argument),
    "Equalize": Operation(lambda image, *_: ImageOps.equalize(image), _no_argument),
    "Invert": Operation(lambda image, *_: ImageOps.invert(image), _no_argument),
    "Rotate": Operation(_rotate, _signed(30)),  # degrees
    "Posterize": Operation(  # bits kept; none of them, a black image, at 10
        lambda image, bits, *_: ImageOps.posterize(image, bits), lambda magnitude, sign: 4 - _whole_share(magnitude, 4)
    ),
    "Solarize": Operation(  # value from which on the image is inverted
        lambda image, threshold, *_: ImageOps.solarize(image, threshold),
        lambda magnitude, sign: 256 - _whole_share(magnitude, 256),
    ),
    "SolarizeAdd": Operation(
        lambda image, amount, *_: _add_to_dark(image, amount), lambda magnitude, sign: _whole_share(magnitude, 110)
    ),
    "Color": Operation(lambda image, factor, *_: ImageEnhance.Color(image).enhance(factor), _enhancement),
    "Contrast": Operation(lambda image, factor, *_: ImageEnhance.Contrast(image).enhance(factor), _enhancement),
    "Brightness": Operation(lambda image, factor, *_: ImageEnhance.Brightness(image).enhance(factor), _enhancement),
    "Sharpness": Operation(lambda image, factor, *_: ImageEnhance.Sharpness(image).enhance(factor), _enhancement),
    "ShearX": Operation(lambda image, shear, *how: _affine(image, (1, shear, 0, 0, 1, 0), *how), _signed(0.3)),
    "ShearY": Operation(lambda image, shear, *how: _affine(image, (1, 0, 0, shear, 1, 0), *how), _signed(0.3)),
    "TranslateX": Operation(  # share of the width
        lambda image, share, *how: _affine(image, (1, 0, share * image.width, 0, 1, 0), *how), _signed(0.45)
    ),
    "TranslateY": Operation(  # share of the height
        lambda image, share, *how: _affine(image, (1, 0, 0, 0, 1, share * image.height), *how), _signed(0.45)
    ),
}
_NAMES = tuple(OPERATIONS)


class Step(NamedTuple):
    """An operation as drawn for one image.

    Args:
        operation: Name in `OPERATIONS`.
        argument: See `Operation`.
        resample: Interpolation of the geometric operations.
    """

    operation: str
    argument: Argument
    resample: Image.Resampling


class Policy(ABC):
    """What is done to an image of mode L or RGB; can be pickled.

    Args:
        fill: Colour of what geometric operations uncover, 0..255 per channel.
    """

    draws: int
    """How many random numbers an image needs."""

    def __init__(self, fill: Fill) -> None:
        self.fill = tuple(fill)

    @abstractmethod
    def steps(self, draws: Sequence[float]) -> list[Step]:
        """The operations that `draws` numbers in [0, 1) stand for, in order."""

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        """The changed image; `image` itself stays as it is.

        Raises:
            ValueError: The image has not one channel per entry of the fill colour.
        """
        if len(image.getbands()) != len(self.fill):
            raise ValueError(f"an image of mode {image.mode} cannot be filled with {self.fill}; give one per channel")
        for name, argument, resample in self.steps(draws):
            image = OPERATIONS[name].apply(image, argument, resample, self.fill)
        return image


class RandAugment(Policy):
    """`rand-m9-mstd0.5-inc1`: two of the 15 operations, drawn with replacement.

    Each is applied in half of the cases, at a magnitude drawn from N(9, 0.5) and clipped to 0..10, with a random sign
    and, if geometric, interpolated bilinearly or bicubically.
    """

    COUNT = 2
    DRAWS_PER_OPERATION = 5
    draws = COUNT * DRAWS_PER_OPERATION

    def steps(self, draws: Sequence[float]) -> list[Step]:
        """See `Policy`."""
        steps = []
        for first in range(0, self.draws, self.DRAWS_PER_OPERATION):
            choice, application, magnitude, sign, resampling = draws[first : first + self.DRAWS_PER_OPERATION]
            if application < APPLICATION_RATE:
                name = _NAMES[int(choice * len(_NAMES))]
                argument = OPERATIONS[name].argument(_clipped_magnitude(magnitude), _sign(sign))
                steps.append(Step(name, argument, random_resampling(resampling)))
        return steps


def _clipped_magnitude(draw: float) -> float:
    # The smallest number that `uniforms` makes is 0, for which the inverse of the distribution is not defined.
    return min(max(MAGNITUDE.inv_cdf(max(draw, 2**-54)), 0), MAX_MAGNITUDE)


def _sign(draw: float) -> int:
    return 1 if draw < 0.5 else -1


# One line per sub-policy of table 9 of the AutoAugment paper: (operation, probability, magnitude) twice. Operations
# without an argument have no magnitude (the paper's is without effect).
AUTO_AUGMENT = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)


def _paper_enhancement(magnitude: float, sign: int) -> float:
    return 0.1 + magnitude / MAX_MAGNITUDE * 1.8


# AutoAugment's magnitudes run through the ranges of table 6 of its paper from below, in tenths. Where RandAugment's
# magnitudes mean strength instead, the arguments differ:
PAPER_ARGUMENTS: dict[str, Callable[[float, int], Argument]] = {
    "Posterize": lambda magnitude, sign: 4 + _whole_share(magnitude, 4),  # 4 to 8 bits kept
    "Solarize": lambda magnitude, sign: _whole_share(magnitude, 256),  # thresholds 0 to 256
    "Color": _paper_enhancement,  # factors 0.1 to 1.9
    "Contrast": _paper_enhancement,
    "Sharpness": _paper_enhancement,
}


class AutoAugment(Policy):
    """The ImageNet policy of AutoAugment: one of its 25 sub-policies per image.

    As in RandAugment, rotation and shear have a random sign and are interpolated bilinearly or bicubically, of which
    the paper says nothing.
    """

    DRAWS_PER_OPERATION = 3
    draws = 1 + 2 * DRAWS_PER_OPERATION

    def steps(self, draws: Sequence[float]) -> list[Step]:
        """See `Policy`."""
        steps = []
        first = 1
        for name, probability, magnitude in AUTO_AUGMENT[int(draws[0] * len(AUTO_AUGMENT))]:
            application, sign, resampling = draws[first : first + self.DRAWS_PER_OPERATION]
            first += self.DRAWS_PER_OPERATION
            if application < probability:
                argument = PAPER_ARGUMENTS.get(name, OPERATIONS[name].argument)(magnitude, _sign(sign))
                steps.append(Step(name, argument, random_resampling(resampling)))
        return steps


POLICIES: dict[str, type[Policy]] = {"rand-m9-mstd0.5-inc1": RandAugment, "autoaugment": AutoAugment}


def build_policy(name: str, fill: Fill) -> Policy | None:
    """The policy of `augment.policy`; None for "none".

    Args:
        name: "none", "rand-m9-mstd0.5-inc1" or "autoaugment".
        fill: See `Policy`; the published recipe takes the mean colour of the data set.

    Raises:
        ConfigError: There is no such policy.
    """
    if name == "none":
        return None
    if name not in POLICIES:
        raise ConfigError(f"augment.policy is {name!r}; it must be one of none, {', '.join(POLICIES)}")
    return POLICIES[name](fill)
