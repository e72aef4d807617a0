"""Numbers of a ring, side by side in the slots of a ciphertext, so that adding slots adds all of them.

A number of the ring stands for a signed one, of at most ``bound`` for each update that is in it; with as much added it
is none below zero, and the sum of n updates has as many bits as 2 n bound. That is a lane; as many lanes as fit share a
slot.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.privacy.bfv import PLAIN_BITS, SLOTS, Slots

Ring = NDArray[np.unsignedinteger]
Numbers = NDArray[np.uint64]

MOST_BITS = 32
"""Of a lane: what `orchestrator.privacy.sum_mac` can tell apart."""
_SIGNED = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}


@dataclass(frozen=True)
class Lanes:
    """How numbers lie in slots."""

    bound: int
    """Of an update's number, whatever its sign."""
    num_updates: int
    """In the sum, at most."""

    @property
    def bits(self) -> int:
        """Of a sum."""
        return (2 * self.bound * self.num_updates).bit_length()

    @property
    def per_slot(self) -> int:
        return min(2, (PLAIN_BITS - 1) // self.bits)

    @property
    def per_chunk(self) -> int:
        """Numbers in a ciphertext."""
        return SLOTS * self.per_slot

    def num_chunks(self, size: int) -> int:
        return -(-size // self.per_chunk)

    def lifted(self, ring: Ring, num_updates: int = 1) -> Numbers:
        """At a silo: elements of the ring, in which it has summed so many updates, as numbers from 0 to twice their
        bound. Raises `ValueError` for others."""
        signed, bound = ring.view(_SIGNED[ring.dtype]).astype(np.int64), num_updates * self.bound
        if signed.size and max(signed.max(), -signed.min()) > bound:
            raise ValueError(f"a number of the update is not within ±{bound}")
        return (signed + bound).view(np.uint64)

    def lowered(self, sums: Numbers, num_updates: int, ring: np.dtype[np.unsignedinteger]) -> Ring:
        """What the sum of so many updates' lifted numbers is in the ring."""
        return (sums - np.uint64(num_updates * self.bound)).astype(ring)

    def packed(self, numbers: Numbers) -> Slots:
        """One chunk's numbers, fewer at the end, in 8192 slots: the first 8192 in the low lanes."""
        slots = np.zeros(SLOTS, np.uint64)
        slots[: min(SLOTS, numbers.size)] = numbers[:SLOTS]
        high = numbers[SLOTS:]
        slots[: high.size] |= high << np.uint64(self.bits)
        return slots

    def unpacked(self, slots: Slots) -> Numbers:
        """All ``per_chunk`` numbers of a chunk."""
        if self.per_slot == 1:
            return slots
        low = slots & np.uint64((1 << self.bits) - 1)
        return np.concatenate([low, slots >> np.uint64(self.bits)])
