"""Ways to damage a file, each a function of its bytes and a random generator; none of them knows a file format."""

from collections.abc import Callable

import numpy as np

HEADER_BYTES = 512
"""Half of all damage is done to so many first bytes: formats say there how much memory and time the rest will take."""
LARGEST_BLOCK = 4096
MOST_MUTATIONS = 4
"""Mutations that one case may undergo, one after the other."""

Mutation = Callable[[bytes, np.random.Generator], bytes]


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight single bits."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        changed[_position(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    """What is left of a copy that was cut off."""
    return data[: _position(data, rng)]


def extreme_length(data: bytes, rng: np.random.Generator) -> bytes:
    """A number of 1, 2, 4 or 8 bytes, in either order, set to where arithmetic on lengths breaks."""
    size = int(rng.choice([1, 2, 4, 8]))
    largest = 2 ** (8 * size) - 1
    value = int(rng.choice([0, 1, 2**8, 2**16, 2**31, 2**8 - 1, 2**16 - 1])) % (largest + 1)
    value = [value, largest, largest >> 1, largest - 1][rng.integers(4)]
    start = _position(data, rng)
    return data[:start] + value.to_bytes(size, rng.choice(["little", "big"])) + data[start + size :]


def repeat_block(data: bytes, rng: np.random.Generator) -> bytes:
    """A block twice or up to nine times over."""
    start, stop = _block(data, rng)
    return data[:stop] + data[start:stop] * int(rng.integers(1, 9)) + data[stop:]


def drop_block(data: bytes, rng: np.random.Generator) -> bytes:
    """A block left out."""
    start, stop = _block(data, rng)
    return data[:start] + data[stop:]


def overwrite_block(data: bytes, rng: np.random.Generator) -> bytes:
    """A block of random bytes in the place of another."""
    start, stop = _block(data, rng)
    return data[:start] + rng.bytes(stop - start) + data[stop:]


MUTATIONS: tuple[Mutation, ...] = (flip_bits, truncate, extreme_length, repeat_block, drop_block, overwrite_block)


def splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: _position(data, rng)] + other[_position(other, rng) :]


def mutated(corpus: list[bytes], seed: int, number: int) -> bytes:
    """Case `number` of a seed: the same bytes for the same corpus on every machine.

    Args:
        corpus: Good files, none of them empty.
        seed: Of the run.
        number: Of the case, from 0.
    """
    rng = np.random.default_rng([seed, number])
    data = corpus[rng.integers(len(corpus))]
    for _ in range(rng.integers(1, MOST_MUTATIONS + 1)):
        if not data:
            break
        kind = rng.integers(len(MUTATIONS) + 1)
        if kind == len(MUTATIONS):
            data = splice(data, corpus[rng.integers(len(corpus))], rng)
        else:
            data = MUTATIONS[kind](data, rng)
    return data


def _position(data: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(min(len(data), HEADER_BYTES) if rng.random() < 0.5 else len(data)))


def _block(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = _position(data, rng)
    return start, min(len(data), start + int(rng.integers(1, LARGEST_BLOCK + 1)))
