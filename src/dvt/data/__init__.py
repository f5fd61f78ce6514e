"""Images and labels: splits, how an image becomes a model input, batches made ahead of time."""

from dvt.data.batches import Splits
from dvt.data.preprocess import Preprocessing
from dvt.data.splits import SPLITS, load_evaluation, load_splits, load_validation

__all__ = ["SPLITS", "Preprocessing", "Splits", "load_evaluation", "load_splits", "load_validation"]
