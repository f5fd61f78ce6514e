"""Published accuracies to be overlaid on measured ones: top-1 in percent at average GMACs per image.

Sources: [1] Wang et al., "Not All Images are Worth 16x16 Words", NeurIPS 2021: tables and, for single points, figures;
[2] the curve of DVT on DeiT-S stored with the released code of that paper. One table; nothing else in the package
holds published accuracies.
"""

from dvt.models.variants import ModelConfig
from dvt.report.results import PublishedCurve

_PAPER = "Wang et al., NeurIPS 2021"


IMAGENET: dict[str, PublishedCurve] = {
    "dvt_t2t_vit_12": PublishedCurve(
        "published, ImageNet",
        f"{_PAPER}, table of budgeted batch classification; last point read off a figure",
        (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.77),
        (73.70, 76.22, 77.89, 78.89, 79.47, 79.75, 79.98),
    ),
    "dvt_t2t_vit_14": PublishedCurve(
        "published, ImageNet",
        f"{_PAPER}, table of budgeted batch classification; last point read off a figure",
        (2.0, 2.5, 3.0, 3.5, 4.0, 5.27),
        (79.24, 80.61, 81.47, 82.10, 82.42, 82.78),
    ),
    "dvt_deit_small": PublishedCurve(
        "published, ImageNet",
        f"{_PAPER}, curve stored with the released code",
        (1.24, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 7.0),
        (73.63, 75.72, 78.13, 79.57, 80.53, 81.11, 81.45, 81.62, 81.80),
    ),
}

CIFAR: dict[str, PublishedCurve] = {
    "cifar10": PublishedCurve(
        "published, CIFAR-10", f"{_PAPER}, table of transfer", (0.50, 0.77, 1.49), (97.21, 98.19, 98.53)
    ),
    "cifar100": PublishedCurve(
        "published, CIFAR-100", f"{_PAPER}, table of transfer", (0.54, 1.62, 1.86), (85.45, 89.11, 89.63)
    ),
}


def published_curve(model: ModelConfig, dataset: str) -> PublishedCurve | None:
    """The published curve of this model on this kind of data; None where there is none to compare with.

    A variant with other grids, another image size or another number of classes is not the published model.
    """
    if model.image_size != 224 or model.grid_sizes != (7, 10, 14):
        return None
    if dataset in CIFAR:
        return CIFAR[dataset]
    return IMAGENET.get(model.name) if dataset == "image_folder" and model.num_classes == 1000 else None
