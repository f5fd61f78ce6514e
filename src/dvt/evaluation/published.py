"""Published accuracies to be overlaid on measured ones: top-1 in percent at average GMACs per image.

They stand in `published.json` and nowhere else in the package. Sources: Wang et al., "Not All Images are Worth 16x16
Words", NeurIPS 2021: tables and, for single points, figures; and the curve stored with the released code of that paper.
"""

import json
from importlib import resources

from dvt.models.variants import ModelConfig
from dvt.report.results import PublishedCurve

_CURVES = {
    kind: {name: PublishedCurve(**curve) for name, curve in curves.items()}
    for kind, curves in json.loads(
        resources.files("dvt.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    ).items()
}
IMAGENET: dict[str, PublishedCurve] = _CURVES["imagenet"]  # by model
CIFAR: dict[str, PublishedCurve] = _CURVES["cifar"]  # by data set


def published_curve(model: ModelConfig, dataset: str) -> PublishedCurve | None:
    """The published curve of this model on this kind of data; None where there is none to compare with.

    A variant with other grids, another image size or another number of classes is not the published model.
    """
    if model.image_size != 224 or model.grid_sizes != (7, 10, 14):
        return None
    if dataset in CIFAR:
        return CIFAR[dataset]
    return IMAGENET.get(model.name) if dataset == "image_folder" and model.num_classes == 1000 else None
