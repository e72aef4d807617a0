"""The shared model as one flat float32 vector, and named vectors packed one behind the other."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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


def digest_of(parts: Parts) -> str:
    """SHA-256 of named vectors: name, size and little-endian float32 of each, by name."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name}\0{parts[name].size}\0".encode())
        digest.update(np.ascontiguousarray(parts[name], "<f4").data)
    return digest.hexdigest()


class PacketDigest:
    """SHA-256 of a packet that comes block by block, however long the blocks are: of each array's bytes, and of these
    digests with the arrays' names, kinds and sizes."""

    def __init__(self) -> None:
        self._arrays: dict[str, tuple[Any, str, int]] = {}

    def add(self, packet: Packet) -> None:
        """The next block of every array."""
        for name, array in packet.items():
            digest, kind, size = self._arrays.get(name) or (hashlib.sha256(), array.dtype.str, 0)
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
            self._arrays[name] = digest, kind, size + array.size

    def hexdigest(self) -> str:
        """Of all blocks so far."""
        said = [
            [name, kind, size, digest.hexdigest()]
            for name, (digest, kind, size) in sorted(self._arrays.items())
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def packet_digest(packet: Packet) -> str:
    """Of a whole packet."""
    digest = PacketDigest()
    digest.add(packet)
    return digest.hexdigest()
