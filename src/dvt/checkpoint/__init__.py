"""Weights on disk: files of this package, files of PyTorch, and starting a model from either.

`native` saves and loads `.ckpt` files, whose bytes `format` reads; `pytorch` converts the `.pth.tar` files of the
released models, whose tensor names `released` translates; `transfer` takes what fits another model.
"""

from dvt.checkpoint.native import Checkpoint, load_model, load_weights, read_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "load_model", "load_weights", "read_checkpoint", "save_checkpoint"]
