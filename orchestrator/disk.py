"""What the run directory asks of a disk, small enough that a test can put a crashing one in its place."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
    """There is no room for what must be written; what was durable before still is."""

    def __init__(self, path: Path, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            errno.ENOSPC, f"disk full: {needed_bytes:,} bytes needed, {free_bytes:,} free", str(path)
        )
        self._given: tuple[object, ...] = (path, needed_bytes, free_bytes)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """It comes from another machine, too."""
        return type(self), self._given

    def __str__(self) -> str:
        return f"{self.strerror}: {self.filename}"


class StoreAway(DiskFull):
    """The store that must have what is written cannot be reached, or refuses it. Waited for as space is."""

    def __init__(self, where: str, why: str) -> None:
        OSError.__init__(self, errno.EIO, f"the store does not answer: {why}", where)
        self._given = (where, why)


class FileSystem(Protocol):
    """Bytes are durable after ``fsync``; names (new, changed, gone) after ``fsync_dir`` of their folder."""

    def read(self, path: Path, offset: int = 0) -> bytes: ...
    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None: ...
    def append(self, path: Path, data: bytes) -> None: ...
    def truncate(self, path: Path, size: int) -> None: ...
    def fsync(self, path: Path) -> None: ...
    def fsync_dir(self, path: Path) -> None: ...
    def mkdir(self, path: Path) -> None:
        """Makes the folder and those above it, durably; one that is there is fine."""

    def rename(self, old: Path, new: Path) -> None: ...
    def remove(self, path: Path) -> None:
        """Removes a file or a whole folder; one that is not there is fine."""

    def list(self, path: Path) -> list[str]:
        """The names in a folder; none if it is not there."""
        ...

    def free_bytes(self, path: Path) -> int: ...
    def lock(self, path: Path) -> Callable[[], None] | None:
        """Locks until the returned function is called or the process ends; None if another holds it."""


class OsFileSystem:
    """The real disk. POSIX only: locks are ``flock``, which the kernel frees when their process dies."""

    def read(self, path: Path, offset: int = 0) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()

    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None:
        with path.open("wb") as file:
            file.writelines(chunks)

    def append(self, path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(path, size)

    def fsync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    fsync_dir = fsync

    def mkdir(self, path: Path) -> None:
        if path.is_dir():
            return
        self.mkdir(path.parent)
        path.mkdir(exist_ok=True)
        self.fsync_dir(path.parent)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def list(self, path: Path) -> list[str]:
        return os.listdir(path) if path.is_dir() else []

    def free_bytes(self, path: Path) -> int:
        return shutil.disk_usage(path).free

    def lock(self, path: Path) -> Callable[[], None] | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return lambda: os.close(descriptor)


@contextmanager
def naming_full(fs: FileSystem, path: Path, needed_bytes: int) -> Iterator[None]:
    """Turns the system's "no space left" into DiskFull, which says where and how much."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE or isinstance(error, DiskFull):
            raise
        raise DiskFull(path, needed_bytes, fs.free_bytes(path.parent)) from error


def put(path: Path, text: str) -> None:
    """Write a small file, whole or not at all, in place of an older one. Raises DiskFull."""
    data = text.encode()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming_full(OsFileSystem(), path, len(data)):
            unfinished.write_bytes(data)
            unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time works on what lies at this path; the kernel ends the lock with its process."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
