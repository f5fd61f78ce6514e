"""The resize between token grids as small fixed matrices (spec: the resize; paper, section 3.2). Imports no framework.

Nearest-neighbour upsampling to an intermediate side followed by adaptive average pooling is one linear map, the
Kronecker square of a small 1-D matrix.
"""

import numpy as np


def resize_matrix_1d(source: int, side: int, target: int) -> np.ndarray:
    """(target, source): nearest upsampling of `source` cells to `side`, then adaptive average pooling to `target`."""
    nearest = np.zeros((side, source))
    nearest[np.arange(side), np.arange(side) * source // side] = 1.0
    pool = np.zeros((target, side))
    for cell in range(target):
        start, stop = cell * side // target, -(-(cell + 1) * side // target)
        pool[cell, start:stop] = 1.0 / (stop - start)
    return pool @ nearest


def resize_matrix(source: int, side: int, target: int) -> np.ndarray:
    """U of shape (target*target, source*source): the same resize of a flattened square grid."""
    matrix = resize_matrix_1d(source, side, target)
    return np.kron(matrix, matrix)


def token_resize_matrix(source: int, side: int, target: int, class_weight: float) -> np.ndarray:
    """diag(class_weight, U) of shape (N, N'), float32, for token sequences with the class token first.

    `class_weight` is 1 where the class row is kept (relation reuse), 0 where zeros replace it (feature reuse).
    """
    u = resize_matrix(source, side, target)
    matrix = np.zeros((u.shape[0] + 1, u.shape[1] + 1), np.float32)
    matrix[0, 0] = class_weight
    matrix[1:, 1:] = u
    return matrix


def sinusoid_positions(num_tokens: int, embed_dim: int) -> np.ndarray:
    """Fixed positions of T2T, float32 (1, N, C), class token included (spec: tokens)."""
    channel = np.arange(embed_dim)
    angle = np.arange(num_tokens)[:, None] / 10000.0 ** (2 * (channel // 2) / embed_dim)
    positions = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return positions[None].astype(np.float32)
