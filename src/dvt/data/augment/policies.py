"""RandAugment and AutoAugment on PIL images, from given random numbers, with PIL's own operations, so that training
sees the pixels of the published recipe bit for bit. Sources: RandAugment (Cubuk et al. 2019) in the variant
`rand-m9-mstd0.5-inc1`; AutoAugment (Cubuk et al. 2018, arXiv:1805.09501, tables 6 and 9)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from dvt.data.augment.basic import random_resampling

MAX_MAGNITUDE = 10
RAND_AUGMENT_OPERATIONS = 2
RAND_AUGMENT_RATE = 0.5  # how often an operation that was drawn is applied
RAND_AUGMENT_MAGNITUDE = NormalDist(9, 0.5)  # before magnitudes are clipped to 0..10

Fill = tuple[int, ...]
Argument = float | None


class Operation(NamedTuple):
    """What can be done to an image, and how a magnitude becomes its argument."""

    apply: Callable[[Image.Image, Any, Image.Resampling, Fill], Image.Image]  # geometric ones need the last two
    argument: Callable[[float, int], Argument]  # of magnitude 0..10 and sign +1 or -1


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Callable[..., Image.Image]:
    """`matrix` maps places of the result to places of the image: x = a x' + b y' + c, y = d x' + e y' + f."""
    return lambda image, argument, resample, fill: image.transform(
        image.size, Image.Transform.AFFINE, matrix(image, argument), resample, fillcolor=fill
    )


def _enhanced(kind: Callable[[Image.Image], Any]) -> Callable[..., Image.Image]:
    return lambda image, factor, *_: kind(image).enhance(factor)


def _add_to_dark(image: Image.Image, amount: int, *_: Any) -> Image.Image:
    """Adds to all values below 128."""
    table = [min(255, value + amount) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _signed(largest: float) -> Callable[[float, int], float]:
    return lambda magnitude, sign: sign * (magnitude / MAX_MAGNITUDE * largest)


def _factor(magnitude: float, sign: int) -> float:
    return 1 + sign * (magnitude / MAX_MAGNITUDE * 0.9)


def _whole_share(magnitude: float, largest: int) -> int:
    return int(magnitude / MAX_MAGNITUDE * largest)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(lambda image, *_: ImageOps.autocontrast(image), lambda magnitude, sign: None),
    "Equalize": Operation(lambda image, *_: ImageOps.equalize(image), lambda magnitude, sign: None),
    "Invert": Operation(lambda image, *_: ImageOps.invert(image), lambda magnitude, sign: None),
    "Rotate": Operation(lambda image, degrees, how, fill: image.rotate(degrees, how, fillcolor=fill), _signed(30)),
    "Posterize": Operation(  # bits kept; none of them, a black image, at 10
        lambda image, bits, *_: ImageOps.posterize(image, bits), lambda magnitude, sign: 4 - _whole_share(magnitude, 4)
    ),
    "Solarize": Operation(  # value from which on the image is inverted
        lambda image, threshold, *_: ImageOps.solarize(image, threshold),
        lambda magnitude, sign: 256 - _whole_share(magnitude, 256),
    ),
    "SolarizeAdd": Operation(_add_to_dark, lambda magnitude, sign: _whole_share(magnitude, 110)),
    "Color": Operation(_enhanced(ImageEnhance.Color), _factor),
    "Contrast": Operation(_enhanced(ImageEnhance.Contrast), _factor),
    "Brightness": Operation(_enhanced(ImageEnhance.Brightness), _factor),
    "Sharpness": Operation(_enhanced(ImageEnhance.Sharpness), _factor),
    "ShearX": Operation(_affine(lambda image, shear: (1, shear, 0, 0, 1, 0)), _signed(0.3)),
    "ShearY": Operation(_affine(lambda image, shear: (1, 0, 0, shear, 1, 0)), _signed(0.3)),
    # Shares of the width and of the height.
    "TranslateX": Operation(_affine(lambda image, share: (1, 0, share * image.width, 0, 1, 0)), _signed(0.45)),
    "TranslateY": Operation(_affine(lambda image, share: (1, 0, 0, 0, 1, share * image.height)), _signed(0.45)),
}


class Step(NamedTuple):
    """An operation as drawn for one image: its name in `OPERATIONS`, and what it is applied with."""

    operation: str
    argument: Argument
    resample: Image.Resampling


@dataclass(frozen=True)
class Policy:
    """What is done to an image of mode L or RGB; picklable."""

    steps: Callable[[Sequence[float]], list[Step]]  # the operations, in order, that random numbers in [0, 1) stand for
    draws: int  # how many random numbers an image needs
    fill: Fill  # colour of what geometric operations uncover, 0..255 per channel

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        """The changed image; `image` itself stays as it is. Raises ValueError if it has not the channels of `fill`."""
        if len(image.getbands()) != len(self.fill):
            raise ValueError(f"an image of mode {image.mode} cannot be filled with {self.fill}; give one per channel")
        for name, argument, resample in self.steps(draws):
            image = OPERATIONS[name].apply(image, argument, resample, self.fill)
        return image


def rand_augment(draws: Sequence[float]) -> list[Step]:
    """`rand-m9-mstd0.5-inc1`: two of the 15 operations, drawn with replacement, each applied in half of the cases with
    a random sign and, if geometric, interpolated bilinearly or bicubically."""
    names = tuple(OPERATIONS)
    steps = []
    for first in range(0, 5 * RAND_AUGMENT_OPERATIONS, 5):
        choice, application, magnitude, sign, resampling = draws[first : first + 5]
        if application < RAND_AUGMENT_RATE:
            name = names[int(choice * len(names))]
            # The smallest number that `uniforms` makes is 0, at which the inverse of the distribution is not defined.
            magnitude = RAND_AUGMENT_MAGNITUDE.inv_cdf(max(magnitude, 2**-54))
            argument = OPERATIONS[name].argument(min(max(magnitude, 0), MAX_MAGNITUDE), 1 if sign < 0.5 else -1)
            steps.append(Step(name, argument, random_resampling(resampling)))
    return steps


# Table 9 of the AutoAugment paper: two of (operation, probability, magnitude) in each sub-policy. Operations without an
# argument have no magnitude (the paper's is without effect).
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

# AutoAugment's magnitudes run through the ranges of table 6 of its paper from below, in tenths. Where RandAugment's
# magnitudes mean strength instead, the arguments differ:
PAPER_ARGUMENTS: dict[str, Callable[[float, int], Argument]] = {
    "Posterize": lambda magnitude, sign: 4 + _whole_share(magnitude, 4),  # 4 to 8 bits kept
    "Solarize": lambda magnitude, sign: _whole_share(magnitude, 256),  # thresholds 0 to 256
    **dict.fromkeys(  # factors 0.1 to 1.9
        ("Color", "Contrast", "Sharpness"), lambda magnitude, sign: 0.1 + magnitude / MAX_MAGNITUDE * 1.8
    ),
}


def auto_augment(draws: Sequence[float]) -> list[Step]:
    """The ImageNet policy of AutoAugment: one of its 25 sub-policies per image. Signs and interpolation, of which the
    paper says nothing, are drawn as in RandAugment."""
    steps = []
    chosen = AUTO_AUGMENT[int(draws[0] * len(AUTO_AUGMENT))]
    for (name, probability, magnitude), first in zip(chosen, (1, 4), strict=True):
        application, sign, resampling = draws[first : first + 3]
        if application < probability:
            argument = PAPER_ARGUMENTS.get(name, OPERATIONS[name].argument)(magnitude, 1 if sign < 0.5 else -1)
            steps.append(Step(name, argument, random_resampling(resampling)))
    return steps


POLICIES = {"rand-m9-mstd0.5-inc1": (rand_augment, 5 * RAND_AUGMENT_OPERATIONS), "autoaugment": (auto_augment, 7)}
"""Name of a policy -> its steps, and how many random numbers they need."""


def build_policy(name: str, fill: Fill) -> Policy | None:
    """The policy of `augment.policy`, None for "none"; the published recipe fills with the mean colour."""
    return None if name == "none" else Policy(*POLICIES[name], fill)
