"""What is done to the images of a split one by one, apart from where they come from.

The order of the published recipe is crop (or shift) and flip, and the operations of a policy, on pixels; then whole
batches are mixed, normalised, and erased (`dvt.data.batches`). Normalising before mixing gives the same to rounding.

Legend: C channels, S side of the model input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvt.config.sections import AugmentSection
from dvt.data.augment.policies import Policy, build_policy
from dvt.data.preprocess import Preprocessing


@dataclass(frozen=True)
class Recipe:
    """Evaluation preprocessing, and how training varies it; picklable."""

    preprocessing: Preprocessing
    interpolation: str  # of the random resized crop: "bicubic", "bilinear" or "random"
    policy: Policy | None = None  # operations on the cropped image

    @classmethod
    def of(cls, augment: AugmentSection, preprocessing: Preprocessing) -> "Recipe":
        """The configured recipe; policies fill with the mean colour of the data set."""
        fill = tuple(min(255, round(255 * value)) for value in preprocessing.mean)
        return cls(preprocessing, augment.interpolation, build_policy(augment.policy, fill))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        side = self.preprocessing.image_size
        return self.preprocessing.in_channels, side, side

    @property
    def draws(self) -> int:
        """How many random numbers `varied` needs."""
        return 0 if self.policy is None else self.policy.draws

    def varied(self, image: Image.Image | NDArray[np.uint8], draws: Sequence[float]) -> NDArray[np.uint8]:
        """(S, S[, 3]) pixels of a cropped and flipped image after the operations of the policy."""
        if self.policy is not None:
            image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
            image = self.policy(image, draws)
        return np.asarray(image)
