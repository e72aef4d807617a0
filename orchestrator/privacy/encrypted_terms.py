"""What both sides of an encrypted sum must see alike: its section of the job, and the form of its packets.

A packet is made of chunks of one length: the ciphertext of as many coordinates as one holds, then the silo's marks of
them. The driver adds chunk to chunk; it needs no key for that, and has none.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from orchestrator.core.messages import SiloId
from orchestrator.privacy.bfv import (
    SEALED_BYTES,
    SUM_BYTES,
    Bytes,
    NoCiphertext,
    Parameters,
    padded,
    self_test,
)
from orchestrator.privacy.fixed_point import LIMB_BITS, FixedPoint
from orchestrator.privacy.lanes import Lanes
from orchestrator.privacy.pair_keys import derived
from orchestrator.privacy.ring_sum import RingSum, UnfitPacket
from orchestrator.privacy.sealing import FEWEST, SumHeader
from orchestrator.privacy.sum_mac import COPIES, Marks, added_marks

MARK_BYTES = 8 * COPIES
CHUNK_BYTES = SEALED_BYTES + MARK_BYTES
"""Of a silo's packet."""
SUM_CHUNK_BYTES = SUM_BYTES + MARK_BYTES
MOST_SILOS = 128
"""For so many the sum is tested to be exact."""
FEW_BITS = 12
"""Of a value: with as many, and room for two numbers in a slot, the job's default is two."""


class EncryptedTerms(RingSum, frozen=True):
    """Section ``combine`` of an encrypted sum, without its two halves."""

    name: Literal["encrypted_sum"] = "encrypted_sum"
    grain: ClassVar[int] = CHUNK_BYTES
    sum_grain: ClassVar[int] = SUM_CHUNK_BYTES

    @property
    def dtype(self) -> str:
        return "uint8"

    @property
    def least(self) -> int:
        return FEWEST

    def bits_for_values(self, made: FixedPoint) -> int:
        """As many as let two numbers share a slot, where these are not too few."""
        most = super().bits_for_values(made)
        for bits in range(most, FEW_BITS - 1, -1):
            if self.lanes_of(bits, made.max_updates).per_slot == 2:
                return bits
        return most

    def lanes(self, header: SumHeader) -> Lanes:
        return self.lanes_of(header.value_bits, header.num_updates)

    def lanes_of(self, value_bits: int, num_updates: int) -> Lanes:
        """For values of so many bits, times weights, and for the limbs of metrics beside them."""
        largest = ((1 << (value_bits - 1)) - 1) * self.most_level
        return Lanes(max(largest, (1 << LIMB_BITS) - 1), num_updates)

    def sealed_size(self, header: SumHeader) -> int:
        return CHUNK_BYTES * self.lanes(header).num_chunks(header.length)

    def packet_bytes(self, length: int, point: FixedPoint) -> int:
        return CHUNK_BYTES * self.lanes_of(point.value_bits, point.max_updates).num_chunks(length)

    def add(self, rows: Sequence[Any]) -> Any:
        """Chunk by chunk; the sum's chunks are longer than those of a packet."""
        parameters, chunks = self.parameters(), len(rows[0]) // CHUNK_BYTES
        cut = [row.reshape(chunks, CHUNK_BYTES) for row in rows]
        try:
            return np.concatenate([_added(parameters, [row[i] for row in cut]) for i in range(chunks)])
        except NoCiphertext as error:
            raise UnfitPacket(error.index, str(error)) from error

    def ready(self) -> None:
        self.parameters()

    @staticmethod
    def parameters() -> Parameters:
        """Tested once in a process; raises `BadInput` where TenSEAL is missing, or does not do what it must."""
        return self_test(MOST_SILOS)


def _added(parameters: Parameters, chunks: Sequence[Bytes]) -> Bytes:
    total = parameters.added([chunk[:SEALED_BYTES].tobytes() for chunk in chunks])
    marks = added_marks([marks_in(chunk) for chunk in chunks])
    return chunk_of(total, SUM_BYTES, marks)


def chunk_of(ciphertext: bytes, size: int, marks: Marks) -> Bytes:
    """``size``: room for the ciphertext."""
    return np.concatenate([padded(ciphertext, size), marks.astype("<u8").view(np.uint8)])


def marks_in(chunk: Bytes) -> Marks:
    return np.frombuffer(chunk[-MARK_BYTES:].tobytes(), "<u8").astype(np.uint64)


def consent(secret: bytes, silo: SiloId, tag: bytes, survivors: Collection[SiloId]) -> bytes:
    """By which silos that share the secret know that this one takes these to be in the sum: it says so once."""
    listed = hashlib.sha256(json.dumps(sorted(survivors)).encode()).digest()
    return derived(secret, f"consent {silo}", tag + listed)


def majority(num_members: int) -> int:
    """More than half: two lists of survivors cannot both have as many."""
    return num_members // 2 + 1
