"""Random numbers that nobody may foretell: AES-256 in counter mode, under a key of the operating system's.

Torch's own generators will not do for privacy: the one on a CPU has 2^32 seeds, and the outputs of both give their
state away. Floats have gaps, and so has this noise (Mironov 2012): at float32's 2^-24 of the deviation.
"""

import hashlib
import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_PIECE = 1 << 17
"""Elements of a vector that get their noise at a time: what is drawn stays in a core's cache."""
_ZEROS = memoryview(bytes(6 * _PIECE))


class Draws:
    """One stream. A key is used once."""

    def __init__(self, key: bytes) -> None:
        """``key``: 32 bytes."""
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def fresh(cls) -> "Draws":
        """Under a key that was never used and is not kept."""
        return cls(os.urandom(32))

    @classmethod
    def insecure(cls, *place: int | str) -> "Draws":
        """The same for the same place. For tests."""
        return cls(hashlib.sha256(repr(place).encode()).digest())

    def add_normal(self, vector: Tensor, deviation: float) -> None:
        """Independent Gaussian noise on every element of a flat float32 vector, in place."""
        for piece in vector.split(_PIECE):
            noise = self._normal((len(piece) + 1) // 2, piece.device)
            piece.add_(noise[: len(piece)], alpha=deviation)

    def chosen(self, num: int, q: float) -> Tensor:
        """Each number from 0 up to ``num``, with probability ``q``, independently; rising."""
        draws = np.frombuffer(self._bytes(8 * num), np.uint64) >> np.uint64(11)
        return torch.from_numpy(np.flatnonzero(draws < q * 2**53))

    def some_of(self, rows: Tensor, most: int) -> Tensor:
        """All of the rows, or so many of them at random."""
        if len(rows) <= most:
            return rows
        keys = np.frombuffer(self._bytes(8 * len(rows)), np.uint64)
        return rows[torch.from_numpy(np.argsort(keys)[:most])]

    def seed(self) -> int:
        """63 bits, for draws that privacy does not rest on."""
        return int.from_bytes(self._bytes(8), "little") >> 1

    def _normal(self, num_pairs: int, device: torch.device) -> Tensor:
        """Box and Muller's two for each pair of uniform numbers; the first of 62 bits, so that there are 9 deviations
        of tail."""
        drawn = self._bytes(12 * num_pairs)
        radius = torch.frombuffer(drawn, dtype=torch.int64, count=num_pairs).to(device)
        angle = torch.frombuffer(drawn, dtype=torch.int32, count=num_pairs, offset=8 * num_pairs).to(device)
        uniform = radius.bitwise_and((1 << 62) - 1).float().add_(0.5).mul_(2.0**-62)
        length = uniform.log_().mul_(-2.0).sqrt_()
        turn = angle.float().mul_(math.pi * 2.0**-31)
        return torch.cat([length * turn.cos(), length * turn.sin()])

    def _bytes(self, num: int) -> bytearray:
        buffer = bytearray(num + 15)
        zeros = _ZEROS[:num] if num <= len(_ZEROS) else bytes(num)
        self._stream.update_into(zeros, buffer)
        del buffer[num:]
        return buffer
