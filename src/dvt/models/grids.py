"""Positions, and resizes between token grids as small fixed matrices. Imports no framework.

What is reused goes through nearest-neighbour upsampling to an intermediate side and adaptive average pooling: one
linear map, the Kronecker square of a small 1-D matrix (paper, section 3.2). Learned positions are resized bicubically.
"""

import math

import numpy as np

_CUBIC = -0.75  # PyTorch's a of the cubic convolution kernel (Keys 1981)


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
    """diag(class_weight, U) of shape (N, N'), float32, for token sequences with the class token first; `class_weight`
    is 1 where the class row is kept (relation reuse), 0 where zeros replace it (feature reuse)."""
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


def resize_positions(positions: np.ndarray, grid: int) -> np.ndarray:
    """Learned positions (1, G*G + 1, C) for another grid: (1, grid*grid + 1, C), float64. That of the class token is
    kept; the others are resized bicubically, as PyTorch does with `align_corners=False` and no antialiasing."""
    side = math.isqrt(positions.shape[1] - 1)
    matrix = bicubic_matrix(side, grid)
    cells = positions[0, 1:].astype(np.float64).reshape(side, side, -1)  # (G, G, C)
    resized = np.einsum("ij,jkc,lk->ilc", matrix, cells, matrix, optimize=True)
    return np.concatenate([positions[:, :1], resized.reshape(1, grid * grid, -1)], axis=1)


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) matrix of the bicubic resize along one axis; each row has four weights and sums to 1."""
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        cell = first + tap
        np.add.at(matrix, (np.arange(target), np.clip(cell, 0, source - 1)), _cubic(np.abs(centre - cell)))
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel at distances 0..2, in cells."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
