"""Randomness without a stream to save: every draw has a key, and the same key gives the same draw.

Keys are (job seed, version, silo, purpose), so that a repeated round repeats its draws and a different
round or silo never shares them. Python's ``hash`` differs between processes; SHA-256 does not.
"""

import hashlib

import numpy as np


def seed_of(seed: int, *key: int | str) -> int:
    """A 63-bit seed for this key."""
    text = "\x1f".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng_of(seed: int, *key: int | str) -> np.random.Generator:
    """A NumPy generator for this key (Philox: counter-based)."""
    return np.random.Generator(np.random.Philox(key=seed_of(seed, *key)))
