"""Published accuracies to be overlaid on measured ones, from `published.json`: top-1 in percent at GMACs per image.

Source: Wang et al., "Not All Images are Worth 16x16 Words", NeurIPS 2021, and the code released with it.
"""

import json
from importlib import resources

from dvt.models.variants import ModelConfig
from dvt.report.results import PublishedCurve

_STORED = json.loads(resources.files("dvt.evaluation").joinpath("published.json").read_text(encoding="utf-8"))
IMAGENET = {model: PublishedCurve(**curve) for model, curve in _STORED["imagenet"].items()}
CIFAR = {dataset: PublishedCurve(**curve) for dataset, curve in _STORED["cifar"].items()}


def published_curve(model: ModelConfig, dataset: str) -> PublishedCurve | None:
    """The published curve of this model on this kind of data; None where there is none to compare with.

    A variant with other grids, another image size or another number of classes is not the published model.
    """
    if model.image_size != 224 or model.grid_sizes != (7, 10, 14):
        return None
    if dataset in CIFAR:
        return CIFAR[dataset]
    return IMAGENET.get(model.name) if dataset == "image_folder" and model.num_classes == 1000 else None
