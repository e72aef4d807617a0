"""Gaussian noise that nobody can predict: a keystream of AES-256 in counter mode, and Box and Muller in float64.

The key comes from the operating system for each draw and is kept nowhere: a repeated draw is another one. NumPy's
generators are quick and no secret: from a few of their numbers the rest can be computed.
"""

import hashlib
import math
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from orchestrator.core.vector import Vector, blocks

CACHED = 1 << 15
"""Samples at a time; an even number, so that pairs never break."""

GRID_BITS = 24
"""Results lie on a grid of 2^-24 standard deviations or so. Without one, the gaps between neighbouring floating-point
numbers, which depend on the value, tell what the noise was added to (Mironov 2012)."""


_ZEROS = memoryview(bytes(8 * CACHED))


class Normals:
    """A stream of independent standard normals."""

    def __init__(self, key: bytes) -> None:
        """``key``: 32 bytes, never used for anything else."""
        self._keystream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def take(self, count: int) -> NDArray[np.float64]:
        """At most `CACHED` of them. 53 random bits to a uniform: no sample lies beyond 8.6."""
        pairs = (count + 1) // 2
        keystream = bytearray(16 * pairs + 15)
        self._keystream.update_into(_ZEROS[: 16 * pairs], keystream)
        words = np.frombuffer(keystream, "<u8", count=2 * pairs) >> np.uint64(11)
        radius = np.sqrt(-2.0 * np.log((words[:pairs] + np.uint64(1)) * 2.0**-53))
        angle = words[pairs:] * (2.0**-53 * 2 * math.pi)
        out = np.empty(2 * pairs)
        np.multiply(radius, np.cos(angle), out=out[:pairs])
        np.multiply(radius, np.sin(angle), out=out[pairs:])
        return out[:count]


def fresh_key() -> bytes:
    """From the operating system."""
    return secrets.token_bytes(32)


def insecure_key(seed: int, rng: np.random.Generator) -> bytes:
    """The same for the same seed and generator: for tests that compare bits, never where privacy counts."""
    return hashlib.sha256(f"insecure test noise {seed}".encode() + rng.bytes(16)).digest()


def add_noise(x: Vector, std: float, key: bytes) -> None:
    """Adds noise of this standard deviation to every element, in place. The sum is formed in float64, brought to a
    grid that depends on ``std`` alone, and then to float32."""
    grid = 2.0 ** (math.frexp(std)[1] - GRID_BITS)
    normals = Normals(key)
    for low, high in blocks(x.size, CACHED):
        noised = normals.take(high - low)
        noised *= std
        noised += x[low:high]
        noised /= grid
        np.rint(noised, out=noised)
        noised *= grid
        x[low:high] = noised
