"""The journal: one line per event, each verified on its own, readable while it is written.

A line is ``{"crc":"<8 hex>",<rest>``; the CRC-32 is of the exact bytes of ``<rest>``, which holds the
``event`` and what the store needs with it: ``epoch`` of the driver that wrote it, ``commit`` (the version at
which the run stands from here on, else null) and ``synced`` (how many lines were durable before).
"""

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.faults import fault
from orchestrator.disk import FileSystem, OsFileSystem, naming_full

_LINE = re.compile(rb'\{"crc":"([0-9a-f]{8})",(.*\})', re.DOTALL)


class JournalDamaged(Exception):
    """A line that was once durable does not verify."""


class Line(NamedTuple):
    """One verified line; ``end`` is the byte offset behind it."""

    event: dict[str, Any]
    epoch: int
    commit: int | None
    synced: int
    end: int

    @property
    def seq(self) -> int:
        return int(self.event["seq"])


def to_json(what: str, value: Mapping[str, Any]) -> bytes:
    """Compact, with sorted keys. Raises ValueError naming ``what`` for NaN, infinity and what is not JSON."""
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be recorded: {error}") from None


def scan(data: bytes, path: Path, first: int | None = 0) -> list[Line]:
    """The verified lines from the start of ``data``, up to a torn tail; ``first`` is the number of the first.

    What lies behind a line that does not verify is a torn tail as long as no later line says that it was
    durable: an interrupted write may leave holes as well as a short end. Else raises JournalDamaged, except
    where ``first`` is None and no line verifies: then there is nothing to judge by.
    """
    lines: list[Line] = []
    end, torn = 0, False
    for raw in data.split(b"\n")[:-1]:
        end += len(raw) + 1
        line = _parse(raw, end)
        if torn:
            _check_torn(line, first, path)
        elif line is None or line.seq != (line.seq if first is None else first):
            torn = True
        else:
            lines.append(line)
            first = line.seq + 1
    return lines


def _parse(raw: bytes, end: int) -> Line | None:
    match = _LINE.fullmatch(raw)
    if match is None or zlib.crc32(match[2]) != int(match[1], 16):
        return None
    return Line(end=end, **json.loads(b"{" + match[2]))


def _check_torn(line: Line | None, torn: int | None, path: Path) -> None:
    """Raises JournalDamaged if ``line``, which lies behind line number ``torn``, knew that one as durable."""
    if line is not None and torn is not None and line.synced > torn:
        raise JournalDamaged(
            f"{path}: line {torn + 1} is damaged; it was durable when line {line.seq + 1} was written"
        )


def read_journal(
    path: Path, offset: int = 0, fs: FileSystem | None = None
) -> tuple[list[dict[str, Any]], int]:
    """For those who follow a run: the events from byte ``offset``, and the offset behind the last of them.

    A line that is not whole yet is left for the next call; a journal that is not there yet has no events.
    Raises JournalDamaged, with the line number, for damage and for an offset that is not the end of a line.
    """
    fs = fs or OsFileSystem()
    try:
        data = fs.read(path, max(offset - 1, 0))
    except FileNotFoundError:
        data = b""
    if offset and not data.startswith(b"\n"):
        raise JournalDamaged(f"{path}: byte {offset} is not the end of a line; read again from the start")
    lines = scan(data[1:], path, None) if offset else scan(data, path)
    if not lines and data.count(b"\n") > 1:
        scan(fs.read(path), path)  # only with line numbers can damage be told from a torn tail
    return [line.event for line in lines], offset + (lines[-1].end if lines else 0)


class Journal:
    """The writing end. One process at a time may hold it open; its threads may share it."""

    def __init__(self, path: Path, fs: FileSystem, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.epoch = 0
        """Of the last line; later lines carry what the owner sets here."""
        self.commit: int | None = None
        """Version that the run stands at by the journal; None before the first commit."""
        self._fs = fs
        self._clock = clock
        self._mutex = threading.Lock()
        self.synced = 0
        """How many lines are durable."""
        self._size = self._count = 0
        self._ragged = False

    def open(self) -> None:
        """Reads all lines and cuts a torn tail off, durably. Raises JournalDamaged for any other damage."""
        lines = self.lines()
        self._size, self._count = (lines[-1].end, len(lines)) if lines else (0, 0)
        self.epoch = max((line.epoch for line in lines), default=0)
        self.commit = next((line.commit for line in reversed(lines) if line.commit is not None), None)
        with naming_full(self._fs, self.path, 0):
            self._fs.append(self.path, b"")
            self._cut()
            self._fs.fsync_dir(self.path.parent)
        self.synced = self._count

    def lines(self) -> list[Line]:
        """All verified lines. Raises JournalDamaged."""
        try:
            data = self._fs.read(self.path)
        except FileNotFoundError:
            return []
        return scan(data, self.path)

    def stamp(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event with the wall clock's ``time``."""
        return {**event, "time": self._clock()}

    def write(self, event: Mapping[str, Any], commit: int | None = None, durable: bool = False) -> int:
        """Appends one stamped event and returns its number; after an error the journal is as it was."""
        with self._mutex:
            seq, line = self._count, self._encode(event, commit)
            with naming_full(self._fs, self.path, len(line)), self._whole_or_nothing():
                self._fs.append(self.path, line)
                fault("journal.appended")
                if durable:
                    self._fs.fsync(self.path)
            self._advance(len(line), commit, durable)
            return seq

    @contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        """Takes back what an interrupted write left; if even that fails now, before the next one."""
        if self._ragged:
            self._cut()
        self._ragged = True
        try:
            yield
        except Exception:
            with suppress(OSError):
                self._cut()
            raise
        self._ragged = False

    def _encode(self, event: Mapping[str, Any], commit: int | None) -> bytes:
        numbered = {**event, "seq": self._count}
        line = {"commit": commit, "epoch": self.epoch, "event": numbered, "synced": self.synced}
        body = to_json(f"event {event.get('type', '')}", line)[1:]
        return b'{"crc":"%08x",%s\n' % (zlib.crc32(body), body)

    def _advance(self, num_bytes: int, commit: int | None, durable: bool) -> None:
        self._size += num_bytes
        self._count += 1
        self.synced = self._count if durable else self.synced
        self.commit = self.commit if commit is None else commit

    def _cut(self) -> None:
        """Takes back whatever lies behind the last good line."""
        self._fs.truncate(self.path, self._size)
        self._fs.fsync(self.path)
        self._ragged = False
