"""Whether the bytes that are folded are those that their silos signed for."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from orchestrator.core.messages import Update
from orchestrator.core.vector import Packet, PacketDigest

SMALL_BYTES = 1 << 20
"""Blocks up to this size are hashed at once: handing one to a thread would cost more."""

_THREADS = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "hash")


class Promises:
    """Of the updates of one fold; SHA-256 runs beside the sum, for it does not hold the interpreter."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._digests = [(update, PacketDigest()) for update in updates]

    def block(self, packets: Sequence[Packet]) -> Callable[[], None]:
        """Begin with the next block of each; the returned function waits until all of them are done."""
        work = list(zip(self._digests, packets, strict=True))
        if all(sum(array.nbytes for array in packet.values()) <= SMALL_BYTES for packet in packets):
            for (_, digest), packet in work:
                digest.add(packet)
            return lambda: None
        futures = [_THREADS.submit(digest.add, packet) for (_, digest), packet in work]

        def wait() -> None:
            for future in futures:
                future.result()

        return wait

    def broken(self) -> Update | None:
        """The first update of which other bytes came than its receipt says; None if all is well."""
        for update, digest in self._digests:
            if update.receipt is not None and digest.hexdigest() != update.receipt.update:
                return update
        return None
