"""What is done to the images of a split, apart from where they come from.

The order of the published recipe is crop (or shift) and flip, the operations of a policy, normalisation, erasing;
mixing then works on whole batches.

Legend: C channels, S side of the model input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.config.sections import AugmentSection
from dvt.data.augment.basic import ERASING_DRAWS, random_erasing
from dvt.data.augment.policies import Policy, build_policy
from dvt.data.preprocess import Preprocessing


@dataclass(frozen=True)
class Recipe:
    """Evaluation preprocessing, and how training varies it; picklable."""

    preprocessing: Preprocessing
    interpolation: str  # of the random resized crop: "bicubic", "bilinear" or "random"
    policy: Policy | None = None  # operations on the cropped image
    erasing: float = 0.0  # share of the images of which a block is replaced by noise, after normalisation

    @classmethod
    def of(cls, augment: AugmentSection, preprocessing: Preprocessing) -> "Recipe":
        """The configured recipe; policies fill with the mean colour of the data set."""
        fill = tuple(min(255, round(255 * value)) for value in preprocessing.mean)
        return cls(preprocessing, augment.interpolation, build_policy(augment.policy, fill), augment.erasing)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        side = self.preprocessing.image_size
        return self.preprocessing.in_channels, side, side

    @property
    def policy_draws(self) -> int:
        """How many random numbers the policy needs."""
        return 0 if self.policy is None else self.policy.draws

    @property
    def erasing_draws(self) -> int:
        """How many random numbers `erase` needs."""
        return ERASING_DRAWS if self.erasing > 0 else 0

    @property
    def draws(self) -> int:
        """How many random numbers `finish` needs."""
        return self.policy_draws + self.erasing_draws

    def finish(self, out: NDArray[np.float32], image: Image.Image | NDArray[np.uint8], draws: Sequence[float]) -> None:
        """Sets `out` (C, S, S) to the model input made of a cropped and flipped image, from `self.draws` numbers."""
        if self.policy is not None:
            image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
            image = self.policy(image, draws[: self.policy_draws])
        out[:] = self.preprocessing.normalise(np.asarray(image))
        self.erase(out, draws[self.policy_draws :])

    def erase(self, out: NDArray[np.float32], draws: Sequence[float]) -> None:
        """Erases a block of the normalised `out` (C, S, S) or not, from `self.erasing_draws` numbers."""
        if self.erasing > 0:
            random_erasing(out, self.erasing, draws)
