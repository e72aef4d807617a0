"""Masks: streams of random numbers, made from a key, added to a vector of a ring and taken off again.

A stream is AES-256 in counter mode (NIST SP 800-38A) from counter 0, so a key serves for one stream only: keys
are derived for one sum (`orchestrator.privacy.pair_keys.derived`). All masks are added to a piece of the vector
while that piece is in the core's cache; `update_into` writes into a buffer of ours, where `update` would allocate
one for every piece and take five times as long.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from orchestrator.core.vector import blocks

PIECE_BYTES = 1 << 18
"""Of the vector that all masks are added to before the next: it, a stream and the zeros fit in a core's cache."""

Ring = NDArray[np.unsignedinteger[Any]]
"""One-dimensional, uint32 or uint16: sums wrap around."""


class Mask(NamedTuple):
    """The stream of a key, to be added or to be subtracted."""

    key: bytes
    """32 bytes, used for nothing else."""
    plus: bool

    @property
    def undone(self) -> "Mask":
        return Mask(self.key, not self.plus)


def add_masks(vector: Ring, masks: Sequence[Mask]) -> None:
    """Add the masks to the vector in its own memory."""
    streams = [(_stream(mask.key), np.add if mask.plus else np.subtract) for mask in masks]
    zeros = memoryview(bytes(PIECE_BYTES))
    room = bytearray(PIECE_BYTES + 16)
    numbers = np.frombuffer(room, vector.dtype)
    for start, stop in blocks(vector.size, PIECE_BYTES // vector.itemsize):
        piece, size = vector[start:stop], stop - start
        for stream, apply in streams:
            stream.update_into(zeros[: size * vector.itemsize], room)
            apply(piece, numbers[:size], out=piece)


def _stream(key: bytes) -> Any:
    if len(key) != 32:
        raise ValueError(f"a key of {8 * len(key)} bits: masks are made from 256")
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
