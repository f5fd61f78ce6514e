"""Long loops (`scripts/run_tests.sh --soak`): what must hold after many batches, not only after a few."""

import time

import numpy as np
import psutil
import pytest

import dvt
from dvt.early_exit import assign_exits

SECONDS = 300
MARGIN = 1e-5  # float rounding differs with the batch size: thresholds keep this far from every confidence


@pytest.mark.soak
def test_random_batches_and_thresholds_for_minutes(graph_mode) -> None:
    """Every decision equals the one made afterwards from all exits, and memory stops growing."""
    import mindspore as ms

    ms.set_seed(0)
    model = dvt.build_model(
        "dvt_deit_small",
        num_classes=5,
        image_size=24,
        grid_sizes=(2, 3, 4),
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_hidden=16,
        init_std=0.3,
    )
    classifier = dvt.AdaptiveClassifier(model, [0.0, 0.0, 0.0])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((256, 3, 24, 24)).astype(np.float32)
    rows = ([0, 0, 0], [2, 0, 0], [2, 2, 0])
    confidence = np.stack([classifier.predict(images, row).confidence for row in rows])  # (K, n)

    process, sizes, rounds = psutil.Process(), [], 0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        chosen = rng.choice(256, rng.integers(1, 130), replace=False)
        thresholds = np.append(rng.uniform(0.15, 1.0, 2), 0)
        if (np.abs(confidence[:2, chosen] - thresholds[:2, None]) < MARGIN).any():
            continue
        result = classifier.predict(images[chosen], thresholds)
        exit_index = assign_exits(confidence[:, chosen], thresholds)
        np.testing.assert_array_equal(result.exit_index, exit_index)
        np.testing.assert_allclose(result.confidence, confidence[exit_index, chosen], atol=1e-5)
        rounds += 1
        if rounds % 200 == 0:
            sizes.append(process.memory_info().rss)
    assert rounds > 400
    assert sizes[-1] - sizes[len(sizes) // 2] < 50e6
