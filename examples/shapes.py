"""Follows one image through a DVT and prints the shapes on the way: `python examples/shapes.py photo.jpg`.

The model has random weights, so what it says of the image means nothing; docs/walkthrough.md explains the lines. Run op
by op (PyNative), because only then can hooks look at what flows between cells.
"""

import sys

import mindspore as ms
import numpy as np

import dvt
from dvt import cost, device
from dvt.config.sections import IMAGENET_MEAN, IMAGENET_STD
from dvt.data.preprocess import Preprocessing, default_resize_size
from dvt.early_exit import check_thresholds
from dvt.early_exit.loop import leaving

SHOWN = ("tokens", "tokens.performer1", "tokens.performer2", "relation_reuse", "blocks.0.feature_reuse", "blocks.0")


def main(file: str, name: str = "dvt_t2t_vit_12", thresholds: tuple[float, ...] = (0.5, 0.5, 0.0)) -> None:
    device.set_up("CPU", graph_mode=False)
    ms.set_seed(0)
    model = dvt.build_model(name)
    model.set_train(False)
    size = model.config.image_size
    preprocessing = Preprocessing("imagenet", size, default_resize_size(size), 3, IMAGENET_MEAN, IMAGENET_STD)
    images = preprocessing(file)[None]
    print(f"{file} -> images {images.shape} {images.dtype}")

    shown = {f"exits.{k}.{part}" for k in range(model.num_exits) for part in SHOWN}
    for cell_name, cell in model.cells_and_names():
        if cell_name in shown:
            cell.register_forward_hook(lambda _, inputs, output, of=cell_name: print(f"  {of}: {shapes(output)}"))
    features = relations = None
    gmacs = cost.cumulative_gmacs(model)
    for k, exit_ in enumerate(model.exits):
        logits, features, relations = exit_(ms.Tensor(images), features, relations)
        print(f"exits.{k}: logits {shapes(logits)}, features {shapes(features)}, relations {shapes(relations)}")
        probabilities = ms.ops.softmax(logits, axis=-1).asnumpy()
        leaves = bool(leaving(k, probabilities, check_thresholds(thresholds, model.num_exits))[0])
        print(f"  confidence {probabilities.max():.4f}, threshold {thresholds[k]}: {'leaves' if leaves else 'goes on'}")
        if leaves:
            print(f"exit {k + 1}, class {np.argmax(probabilities[0])}, {gmacs[k]:.4f} GMACs")
            return


def shapes(value: ms.Tensor | tuple | None) -> str:
    """Shapes of a tensor, of the first of many, or a dash."""
    if isinstance(value, tuple):
        return f"{len(value)} x {shapes(value[0])}" if len(value) > 2 else ", ".join(map(shapes, value))
    return "-" if value is None else str(tuple(value.shape))


if __name__ == "__main__":
    main(sys.argv[1])
