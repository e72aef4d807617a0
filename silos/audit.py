"""What a silo did, for its owner: one line of JSON per event, on disk before the reply leaves."""

import errno
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput

FILE = "audit.jsonl"
ROOM = 1 << 20
"""Bytes that must be free before work begins, so that what comes of it can be recorded."""
_LONGEST = 500


class Audit:
    """An append-only file, for its owner's eyes; each line is fsynced."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def ready(self) -> None:
        """`BadInput` when there is no room for what is about to be recorded."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:
            raise self._failed(error) from None
        if free < ROOM:
            what = "disk full"
            raise BadInput(
                f"{self.path}: {what} ({free:,} bytes free): the silo cannot record what it does",
                f"{what}: the silo cannot record what it does",
            )

    def write(self, event: str, **facts: Any) -> None:
        """Append one line; `BadInput` when that fails, and then nothing may leave."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "event": event, **{name: _short(each) for name, each in facts.items()}})
        try:
            _append(self.path, line.encode() + b"\n")
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> BadInput:
        rule = "the silo does nothing that it cannot record"
        return BadInput(f"{self.path}: {error.strerror}: {rule}", f"{error.strerror}: {rule}")


def append_line(path: Path, line: bytes) -> None:
    """All of the line, durable, to a file for its owner's eyes; `BadInput` when there is no room."""
    try:
        _append(path, line)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror}", f"{path.name}: {error.strerror}"
        ) from None


def _append(path: Path, line: bytes) -> None:
    new = not path.exists()
    if new:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        _append_whole(descriptor, line)
    finally:
        os.close(descriptor)
    if new:
        sync_folder(path.parent)


def write_private(path: Path, text: str) -> None:
    """A small file for its owner's eyes, durable, whole or not at all; `BadInput` when there is no room."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror}", f"{path.name}: {error.strerror}"
        ) from None


def _append_whole(descriptor: int, line: bytes) -> None:
    """All of the line or nothing; a line that a crash tore apart does not swallow it."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def sync_folder(folder: Path) -> None:
    """A new name in it is durable before this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(fact: Any) -> Any:
    return fact[:_LONGEST] if isinstance(fact, str) else fact
