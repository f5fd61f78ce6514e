"""Resizes between grids, against doing them step by step with loops or by PyTorch, and the fixed positions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvt.models.grids import (
    bicubic_matrix,
    resize_matrix,
    resize_matrix_1d,
    resize_positions,
    sinusoid_positions,
    token_resize_matrix,
)

PAIRS = [(7, 14, 10), (10, 20, 14), (7, 20, 14), (3, 6, 6), (3, 6, 9), (2, 4, 3), (4, 4, 4), (3, 7, 5), (1, 2, 5)]


def nearest(grid: np.ndarray, side: int) -> np.ndarray:
    """(G', G', D) -> (side, side, D)."""
    source = len(grid)
    result = np.empty((side, side, grid.shape[2]))
    for row in range(side):
        for column in range(side):
            result[row, column] = grid[math.floor(row * source / side), math.floor(column * source / side)]
    return result


def adaptive_average(grid: np.ndarray, target: int) -> np.ndarray:
    """(side, side, D) -> (G, G, D)."""
    side = len(grid)
    result = np.empty((target, target, grid.shape[2]))
    for row in range(target):
        for column in range(target):
            top, bottom = math.floor(row * side / target), math.ceil((row + 1) * side / target)
            left, right = math.floor(column * side / target), math.ceil((column + 1) * side / target)
            cells = [grid[r, c] for r in range(top, bottom) for c in range(left, right)]
            result[row, column] = sum(cells) / len(cells)
    return result


@pytest.mark.parametrize(("source", "side", "target"), PAIRS)
def test_one_matrix_does_both_steps(source: int, side: int, target: int):
    grid = np.random.default_rng(0).standard_normal((source, source, 3))
    expected = adaptive_average(nearest(grid, side), target)
    result = resize_matrix(source, side, target) @ grid.reshape(source * source, 3)
    np.testing.assert_allclose(result.reshape(target, target, 3), expected, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 20))
def test_a_resize_is_an_average(source: int, more: int, target: int):
    matrix = resize_matrix_1d(source, source + more, target)
    assert matrix.shape == (target, source)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    np.testing.assert_allclose(matrix[::-1, ::-1].sum(axis=1), 1.0)
    # What is left of something else stays left of it.
    centres = matrix @ np.arange(source)
    assert (np.diff(centres) >= -1e-12).all()


def test_a_resize_to_the_same_side_changes_nothing():
    np.testing.assert_array_equal(resize_matrix(4, 4, 4), np.eye(16))


def test_7_to_10_by_hand():
    matrix = resize_matrix_1d(7, 14, 10)
    # Cell 0 averages positions 0 and 1 of 14, both copies of 0; cell 1 positions 1 and 2, a copy of 0 and one of 1.
    np.testing.assert_allclose(matrix[0], [1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(matrix[1], [0.5, 0.5, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(matrix[2], [0, 2 / 3, 1 / 3, 0, 0, 0, 0])


@pytest.mark.parametrize("class_weight", [0.0, 1.0])
def test_the_class_token_stays_apart(class_weight: float):
    matrix = token_resize_matrix(7, 14, 10, class_weight)
    assert matrix.shape == (101, 50) and matrix.dtype == np.float32
    assert matrix[0, 0] == class_weight
    assert (matrix[0, 1:] == 0).all() and (matrix[1:, 0] == 0).all()
    np.testing.assert_allclose(matrix[1:, 1:], resize_matrix(7, 14, 10), rtol=1e-6)


@pytest.mark.parametrize(("tokens", "dim"), [(50, 256), (5, 6)])
def test_positions_are_sines_and_cosines(tokens: int, dim: int):
    positions = sinusoid_positions(tokens, dim)
    assert positions.shape == (1, tokens, dim) and positions.dtype == np.float32
    for p in (0, 1, tokens - 1):
        for j in range(dim):
            angle = p / 10000 ** (2 * (j // 2) / dim)
            assert positions[0, p, j] == pytest.approx(math.cos(angle) if j % 2 else math.sin(angle), abs=1e-6)


def test_bicubic_matrices_equal_pytorch():
    # torch.nn.functional.interpolate(identity, size=(source, target), mode="bicubic", align_corners=False)
    seven = [
        [1.09921647, -0.09921647, 0, 0],
        [0.65925656, 0.40224125, -0.06149781, 0],
        [0.05721574, 0.98897595, -0.04619169, 0],
        [-0.09375, 0.59375, 0.59375, -0.09375],
        [0, -0.04619169, 0.98897595, 0.05721574],
        [0, -0.06149781, 0.40224125, 0.65925656],
        [0, 0, -0.09921647, 1.09921647],
    ]
    three = [[0.68518519, 0.37037037, -0.05555556, 0, 0], [0, 0, 1, 0, 0], [0, 0, -0.05555556, 0.37037037, 0.68518519]]
    np.testing.assert_allclose(bicubic_matrix(4, 7), seven, atol=1e-8)
    np.testing.assert_allclose(bicubic_matrix(5, 3), three, atol=1e-8)
    np.testing.assert_array_equal(bicubic_matrix(5, 5), np.eye(5))


@pytest.mark.parametrize("grid", [7, 10, 20])
def test_resized_positions_equal_pytorch(grid: int):
    torch = pytest.importorskip("torch", reason="PyTorch is optional: pip install -r requirements-torch.txt")
    positions = np.random.default_rng(0).standard_normal((1, 14 * 14 + 1, 5), dtype=np.float32)
    cells = torch.from_numpy(positions[:, 1:]).double().reshape(1, 14, 14, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(cells, size=(grid, grid), mode="bicubic", align_corners=False)
    resized = resize_positions(positions, grid)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])
    np.testing.assert_allclose(resized[0, 1:], expected[0].permute(1, 2, 0).reshape(-1, 5).numpy(), atol=1e-12)


def test_rows_of_the_map_stay_rows():
    """A map that varies along columns only still does after the resize: axes are not swapped."""
    cells = np.broadcast_to(np.arange(4.0), (4, 4)).reshape(1, 16, 1)
    resized = resize_positions(np.concatenate([np.full((1, 1, 1), 9.0), cells], axis=1), 6)[0, 1:, 0].reshape(6, 6)
    np.testing.assert_allclose(resized, np.broadcast_to(bicubic_matrix(4, 6) @ np.arange(4.0), (6, 6)), atol=1e-12)
