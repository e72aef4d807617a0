"""The shared model as one flat float32 vector, and named vectors packed one behind the other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""One-dimensional float32."""

Parts = Mapping[str, Vector]
"""Named vectors: ``delta``, ``control``, ``params``."""

Packet = Mapping[str, NDArray[np.generic]]
"""What a codec made of a vector: named one-dimensional arrays."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each named part lies in a packed vector."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, parts: Parts) -> "Layout":
        return cls(tuple(parts), tuple(part.size for part in parts.values()))

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def pack(self, parts: Parts) -> Vector:
        """One vector from the parts; a single part is returned as it is, without a copy."""
        if len(self.names) == 1:
            return parts[self.names[0]]
        return np.concatenate([parts[name] for name in self.names])

    def unpack(self, vector: Vector) -> dict[str, Vector]:
        """Views of the packed vector, by name."""
        ends = np.cumsum((0, *self.sizes))
        return {name: vector[ends[i] : ends[i + 1]] for i, name in enumerate(self.names)}


def blocks(size: int, length: int) -> Iterator[tuple[int, int]]:
    """Consecutive ``(start, stop)`` ranges of at most ``length`` elements that cover ``size``."""
    for start in range(0, size, length):
        yield start, min(start + length, size)
