"""At most one process at a time, by a lock that the kernel frees when its holder ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.core.errors import BadInput


@contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Raises `BadInput` while another process has the lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{lock}: another process serves {what} already") from None
        yield
    finally:
        os.close(descriptor)
