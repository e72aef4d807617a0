"""A file system in memory that loses what a real one may lose.

Files and folders are nodes; each has what programs see and what is on the platter. ``fsync`` moves a file's
bytes to the platter, ``fsync_dir`` a folder's names. At a power cut every folder keeps an arbitrary prefix of
its pending changes of names, and every file that was not synced keeps its old bytes, or a part of the new
ones, possibly with a hole of zeros; the name of a file that was never synced may survive without any bytes.
"""

import errno
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

HOLE_BYTES = 200
"""Longest hole; it stands for a block that was not written yet when a later one was."""


class Crash(BaseException):
    """The process or the machine stops here. No handler for errors may catch it."""


@dataclass
class File:
    data: bytes = b""
    platter: bytes = b""


@dataclass
class Folder:
    names: dict[str, "Node"] = field(default_factory=dict)
    platter: dict[str, "Node"] = field(default_factory=dict)
    pending: list[dict[str, "Node | None"]] = field(default_factory=list)

    def change(self, names: dict[str, "Node | None"]) -> None:
        """Changes some names at once."""
        _apply(self.names, names)
        self.pending.append(names)


Node = File | Folder


class CrashFileSystem:
    """Implements ``orchestrator.disk.FileSystem``; every call that changes something is one step."""

    def __init__(self) -> None:
        self.root = Folder()
        self.capacity = 2**62
        """Bytes that all files together may have."""
        self.steps = 0
        self._locks: set[Path] = set()
        self._alarm: tuple[int, type[BaseException]] | None = None
        self._dead = False

    # What a test does to it.

    def arm(self, steps: int | None, error: type[BaseException] = Crash) -> None:
        """Raises ``error`` after so many steps; Crash goes on until ``restart``, OSError (EIO) comes once."""
        self._alarm = None if steps is None else (self.steps + steps, error)

    def restart(self, chance: random.Random, power_cut: bool) -> None:
        """Starts anew after the process died, or the whole machine with what was not synced."""
        if power_cut:
            _lose(self.root, chance)
        self._dead, self._alarm, self._locks = False, None, set()

    def flip(self, path: Path, bit: int) -> None:
        """Damages one bit of a file, on the platter too."""
        file = self._file(path)
        damaged = bytearray(file.data)
        damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
        file.data = file.platter = bytes(damaged)

    def used_bytes(self) -> int:
        return _size(self.root)

    # What the store does with it.

    def read(self, path: Path, offset: int = 0) -> bytes:
        return self._file(path).data[offset:]

    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None:
        self._step()
        file = self._made(path)
        file.data = b""
        for chunk in chunks:
            self._add(file, bytes(chunk))

    def append(self, path: Path, data: bytes) -> None:
        self._step()
        self._add(self._made(path), data)

    def truncate(self, path: Path, size: int) -> None:
        self._step()
        file = self._file(path)
        file.data = file.data[:size]

    def fsync(self, path: Path) -> None:
        self._step()
        file = self._file(path)
        file.platter = file.data

    def fsync_dir(self, path: Path) -> None:
        self._step()
        folder = self._folder(path)
        folder.platter, folder.pending = dict(folder.names), []

    def mkdir(self, path: Path) -> None:
        folder = self.root
        for name in path.parts[1:]:
            if name not in folder.names:
                self._step()
                folder.change({name: Folder()})
                folder.platter, folder.pending = dict(folder.names), []
            child = folder.names[name]
            assert isinstance(child, Folder)
            folder = child

    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent
        self._step()
        folder, node = self._folder(old.parent), self._node(old)
        target = folder.names.get(new.name)
        if isinstance(target, Folder) and target.names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(new))
        folder.change({old.name: None, new.name: node})

    def remove(self, path: Path) -> None:
        folder = self._folder(path.parent)
        node = folder.names.get(path.name)
        if node is None:
            return
        if isinstance(node, Folder):
            for name in list(node.names):
                self.remove(path / name)
        self._step()
        folder.change({path.name: None})

    def list(self, path: Path) -> list[str]:
        self._alive()
        return list(self._folder(path).names)

    def free_bytes(self, path: Path) -> int:
        return max(self.capacity - self.used_bytes(), 0)

    def lock(self, path: Path) -> Callable[[], None] | None:
        self._step()
        if path in self._locks:
            return None
        self._made(path)
        self._locks.add(path)
        return lambda: self._locks.discard(path)

    def _alive(self) -> None:
        if self._dead:
            raise Crash

    def _step(self) -> None:
        self._alive()
        self.steps += 1
        if self._alarm is None or self.steps <= self._alarm[0]:
            return
        error, self._alarm = self._alarm[1], None
        self._dead = error is Crash
        raise error if error is Crash else error(errno.EIO, os.strerror(errno.EIO))

    def _add(self, file: File, data: bytes) -> None:
        """Appends, as one more step; what interrupts it leaves a part behind."""
        room = self.free_bytes(Path("/"))
        try:
            self._step()
        except BaseException:
            file.data += data[: min(len(data) // 2, room)]
            raise
        if len(data) > room:
            file.data += data[:room]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.data += data

    def _node(self, path: Path) -> Node:
        self._alive()
        node: Node = self.root
        for name in path.parts[1:]:
            if not isinstance(node, Folder) or name not in node.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            node = node.names[name]
        return node

    def _file(self, path: Path) -> File:
        node = self._node(path)
        assert isinstance(node, File)
        return node

    def _folder(self, path: Path) -> Folder:
        node = self._node(path)
        assert isinstance(node, Folder)
        return node

    def _made(self, path: Path) -> File:
        folder = self._folder(path.parent)
        if path.name not in folder.names:
            folder.change({path.name: File()})
        return self._file(path)


def _apply(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _size(node: Node) -> int:
    return len(node.data) if isinstance(node, File) else sum(_size(child) for child in node.names.values())


def _lose(node: Node, chance: random.Random) -> None:
    if isinstance(node, File):
        node.data = node.platter = _torn(node, chance)
        return
    for change in node.pending[: chance.randint(0, len(node.pending))]:
        _apply(node.platter, change)
    node.names, node.pending = dict(node.platter), []
    for child in node.names.values():
        _lose(child, chance)


def _torn(file: File, chance: random.Random) -> bytes:
    """What a power cut makes of a file: bytes that were synced and not written again since stay."""
    old, new = file.platter, file.data
    if old == new or chance.random() < 0.25:
        return old
    safe = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
    longer = new if len(new) > safe else old
    torn = bytearray(longer[: chance.randint(safe, len(longer))])
    if chance.random() < 0.5:
        start = chance.randint(safe, len(torn))
        stop = chance.randint(start, min(start + HOLE_BYTES, len(torn)))
        torn[start:stop] = bytes(stop - start)
    return bytes(torn)
