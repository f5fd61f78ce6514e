"""Classifies or evaluates many images of noise, made as they are needed, and prints by how many MB memory grew.

python -m many_images predict|evaluate COUNT
"""

import resource
import sys
from collections.abc import Iterator

import mindspore as ms
import numpy as np

from dvt import AdaptiveClassifier
from dvt.evaluation.all_exits import run_all_exits
from dvt.models.cascade import AllExits, build_model

BATCH = 500


class Noise:
    """Stands in for `dvt.data.Splits`: as many images as asked for, none of them kept."""

    def __init__(self, count: int) -> None:
        self.sizes = {"val": count}

    def batches(self, split: str, batch_size: int, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(skip, self.sizes[split] // batch_size):
            yield rng.standard_normal((batch_size, 3, 8, 8), dtype=np.float32), rng.integers(0, 1000, batch_size)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main(task: str, count: int) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    model = build_model(
        "dvt_deit_small", 1000, image_size=8, grid_sizes=(1, 2, 4), embed_dim=8, depth=1, num_heads=1, mlp_hidden=8
    )

    def run(number: int) -> int:
        images = Noise(number)
        if task == "evaluate":
            return len(run_all_exits(AllExits(model), images, "val", BATCH).labels)
        batches = (batch for batch, _ in images.batches("val", BATCH))
        classifier = AdaptiveClassifier(model, (2.0, 0.00105, 0.0), batch_sizes=[BATCH])
        return sum(len(part.labels) for part in classifier.predict_batches(batches))

    run(BATCH)  # compiles
    before = peak()
    assert run(count) == count
    print(peak() - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
