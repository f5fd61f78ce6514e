"""Images and labels: splits, how an image becomes a model input, batches made ahead of time.

A reader starts at `splits.load_splits`; `preprocess.Preprocessing` is what evaluation does to one image. MindSpore is
imported only when `Splits.pipeline` is called.
"""

from dvt.data.batches import Splits
from dvt.data.preprocess import Preprocessing
from dvt.data.splits import SPLITS, load_splits, load_validation

__all__ = ["SPLITS", "Preprocessing", "Splits", "load_splits", "load_validation"]
