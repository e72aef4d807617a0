"""Updates that the driver may yet ask for."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from orchestrator.core.messages import Update
from orchestrator.core.vector import Packet

KEPT_UPDATES = 2
"""Updates kept for a driver that asks again after a crash; the newest, and one that it may not have folded."""


class Outbox:
    """By version; the packet of the newest lies in the trainer's own memory while that is free. From any thread."""

    def __init__(self) -> None:
        self._updates: dict[int, tuple[Update, Packet]] = {}
        self._lock = threading.Lock()

    def get(self, version: int) -> tuple[Update, Packet] | None:
        with self._lock:
            return self._updates.get(version)

    @contextmanager
    def reading(self, version: int) -> Iterator[Packet | None]:
        """The packet, which stays as it is meanwhile."""
        with self._lock:
            found = self._updates.get(version)
            yield None if found is None else found[1]

    def put(self, update: Update, packet: Packet) -> None:
        with self._lock:
            self._updates[update.version] = update, packet

    def make_room(self, keep: Iterable[int] = ()) -> None:
        """The next work reuses the trainer's memory: copy out what the driver has not fetched yet, drop the rest."""
        with self._lock:
            wanted = sorted(set(keep) & self._updates.keys())[-KEPT_UPDATES:]
            self._updates = {version: _owned(*self._updates[version]) for version in wanted}


def _owned(update: Update, packet: Packet) -> tuple[Update, Packet]:
    return update, {name: np.array(array) for name, array in packet.items()}
