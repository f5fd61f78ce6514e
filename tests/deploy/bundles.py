"""A small model, its bundle, and real images for both."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

CLASS_NAMES = ["ant", "bee", "cat", "dog", "élan"]
PREPROCESSING = {
    "dataset": "image_folder",
    "image_size": 24,
    "resize_size": 28,
    "in_channels": 3,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
}
SIZES = {"image_size": 24, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_hidden": 24, "num_classes": 5}
GRIDS = (2, 3, 4)
BATCH_SIZES = (1, 4, 16)


def model(name: str = "dvt_deit_small", **overrides: object):
    """The initial weights, enlarged, so that images differ in confidence."""
    import mindspore as ms

    from dvt.models.cascade import build_model

    ms.set_seed(3)
    built = build_model(name, **{**SIZES, "grid_sizes": GRIDS, **overrides})
    for parameter in built.trainable_params():
        parameter.set_data(parameter * (8 if "head" in parameter.name else 4))
    return built.set_train(False)


def write(folder: Path) -> Path:
    """A bundle of `model` with all formats and thresholds that spread the photographs over the exits."""
    import mindspore as ms
    from mindspore import Tensor, ops

    from dvt.deploy import export_bundle

    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    built, images = model(), photographs(200)
    probabilities = ops.softmax(ops.stack(built(Tensor(images))), axis=-1).asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    export_bundle(
        built,
        folder,
        ["MINDIR", "ONNX", "ONNX_INT8"],
        {f"{share}": thresholds(probabilities, share) for share in (0.4, 0.1, 0.8)},
        CLASS_NAMES,
        PREPROCESSING,
        BATCH_SIZES,
        calibration=(images, probabilities[-1].argmax(axis=1)),
    )
    ms.set_context(mode=before)
    return folder


def thresholds(probabilities: np.ndarray, share: float) -> list[float]:
    """Thresholds with which about `share` of the images leave at each exit, in gaps between their confidences, so that
    float rounding decides nothing."""
    result = []
    for values in np.sort(probabilities.max(axis=2).astype(np.float64), axis=1):
        gaps = np.flatnonzero(np.diff(values) > 1e-4)
        below = gaps[np.abs(gaps - (1 - share) * len(values)).argmin()]
        result.append((values[below] + values[below + 1]) / 2)
    return result


def photographs(count: int, side: int = 24) -> np.ndarray:
    """Parts of two photographs, resized and normalised: float32 (count, 3, side, side)."""
    rng = np.random.default_rng(5)
    pictures = load_sample_images().images
    mean, std = (np.float32(PREPROCESSING[key]) for key in ("mean", "std"))
    inputs = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        part = int(rng.integers(40, 300))
        top, left = (int(rng.integers(0, size - part)) for size in picture.shape[:2])
        crop = Image.fromarray(picture[top : top + part, left : left + part]).resize((side, side), Image.BICUBIC)
        inputs.append(((np.asarray(crop, np.float32) / 255 - mean) / std).transpose(2, 0, 1))
    return np.stack(inputs).astype(np.float32)
