"""Folders in memory where the machine has such a place: tests of behaviour need no disk that syncs for real."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

MEMORY = Path("/dev/shm")


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder, removed at the end."""
    where = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    # What is left of a silo that was restarted may still write a last file.
    with TemporaryDirectory(dir=where, prefix="siloray-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
