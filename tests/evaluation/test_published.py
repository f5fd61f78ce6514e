"""Published curves: complete, plausible, and overlaid only on what they were published for."""

import pytest

from dvt.cost import cumulative_gmacs
from dvt.evaluation.published import CIFAR, IMAGENET, published_curve
from dvt.models.variants import list_models, model_config

NEVER_PUBLISHED = ["dvt_deit_tiny"]


@pytest.mark.parametrize("name", IMAGENET)
def test_curves_rise_within_the_model_s_own_costs(name: str):
    curve = IMAGENET[name]
    assert len(curve.gmacs) == len(curve.accuracy)
    assert list(curve.gmacs) == sorted(curve.gmacs) and list(curve.accuracy) == sorted(curve.accuracy)
    costs = cumulative_gmacs(name)
    assert costs[0] <= curve.gmacs[0] and curve.gmacs[-1] <= costs[-1]
    assert published_curve(model_config(name), "image_folder") is curve


def test_every_model_has_its_curve_or_was_never_published():
    assert [*IMAGENET, *NEVER_PUBLISHED] == list_models()
    for name in NEVER_PUBLISHED:
        assert published_curve(model_config(name), "image_folder") is None


def test_another_model_or_task_has_no_curve():
    assert published_curve(model_config("dvt_deit_small", num_classes=10), "image_folder") is None
    assert published_curve(model_config("dvt_deit_small", grid_sizes=(7, 14)), "image_folder") is None
    assert published_curve(model_config("dvt_deit_small", num_classes=10), "fashion_mnist") is None
    assert published_curve(model_config("dvt_t2t_vit_12", num_classes=10), "cifar10") is CIFAR["cifar10"]
