"""Weights on disk: files of this package (`native`), those of PyTorch (`released`, `pytorch`), and `transfer` ."""

from dvt.checkpoint.native import (
    FORMAT,
    METADATA_KEY,
    Checkpoint,
    check_weights,
    load_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)

__all__ = [
    "FORMAT",
    "METADATA_KEY",
    "Checkpoint",
    "check_weights",
    "load_model",
    "load_weights",
    "read_checkpoint",
    "save_checkpoint",
]
