"""The journal: one line per event, each verified on its own, readable while it is written.

A line is ``{"crc":"<8 hex>",<rest>``; the CRC-32 is of the exact bytes of ``<rest>``, which holds the
``event`` and what the store needs with it: ``epoch`` of the driver that wrote it, ``commit`` (the version at
which the run stands from here on, else null) and ``synced`` (how many lines were durable before).

The lines are a chain: ``prev`` is the SHA-256 of the line before, so that the one of the last line, the **head**, is
that of the whole history. Durable lines are signed by the driver: ``<rest>`` is ``"sig":"<base64>",<body>`` then, and
the Ed25519 signature is of the exact bytes of ``<body>``.
"""

import base64
import hashlib
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

JOURNAL = "journal.jsonl"
"""In a run directory."""

_LINE = re.compile(rb'\{"crc":"([0-9a-f]{8})",(.*\})', re.DOTALL)
_SIGNED = re.compile(rb'"sig":"([A-Za-z0-9+/=]*)",(.*)', re.DOTALL)

Sign = Callable[[bytes], bytes]


class JournalDamaged(Exception):
    """A line that was once durable does not verify."""


class Head(NamedTuple):
    """Of so many lines: the SHA-256 of the last one, which covers all of them."""

    digest: str = ""
    length: int = 0


class Line(NamedTuple):
    """One verified line; ``end`` is the byte offset behind it."""

    event: dict[str, Any]
    epoch: int
    commit: int | None
    synced: int
    end: int
    digest: str
    """SHA-256 of its bytes."""
    prev: str | None = None
    """That of the line before, empty for the first; None in journals of a time when they were no chain."""
    sig: str | None = None
    body: bytes = b""
    """What the driver signed."""

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
        line = parse(raw, end)
        if torn:
            _check_torn(line, first, path)
        elif line is None or line.seq != (line.seq if first is None else first):
            torn = True
        else:
            _check_link(line, lines[-1] if lines else None, path)
            lines.append(line)
            first = line.seq + 1
    return lines


def parse(raw: bytes, end: int) -> Line | None:
    """A line, without its end; None where it does not verify. ``end``: where the next one begins."""
    match = _LINE.fullmatch(raw)
    if match is None or zlib.crc32(match[2]) != int(match[1], 16):
        return None
    signed = _SIGNED.fullmatch(match[2])
    body = match[2] if signed is None else signed[2]
    try:
        line = Line(end=end, digest=digest_of(raw), body=body, **json.loads(b"{" + match[2]))
    except (ValueError, TypeError, RecursionError):
        return None
    return line if _is_sound(line) else None


def _is_sound(line: Line) -> bool:
    """Whether its fields are what they should be: its checksum may have been made by somebody else."""
    event = line.event
    return (
        isinstance(event, dict)
        and isinstance(event.get("type", ""), str)
        and all(isinstance(each, int) for each in (event.get("seq"), line.epoch, line.synced))
        and isinstance(line.commit, int | None)
        and all(isinstance(each, str | None) for each in (line.prev, line.sig))
    )


def digest_of(line: bytes) -> str:
    """SHA-256 of a line, without its end."""
    return hashlib.sha256(line).hexdigest()


def break_in(line: Line, before: Line | None) -> str | None:
    """Why this line does not follow the one before it; None if it does, as far as can be told."""
    if before is None:
        first = line.seq == 0 and line.prev
        return "is the first, but was written as one that follows another" if first else None
    if line.prev is None:
        return "does not say which line it follows" if before.prev is not None else None
    return (
        None if line.prev == before.digest else "does not follow the line before it: one of them was changed"
    )


def _check_link(line: Line, before: Line | None, path: Path) -> None:
    broken = break_in(line, before)
    if broken is not None:
        raise JournalDamaged(f"{path}: line {line.seq + 1} {broken}")


def _check_torn(line: Line | None, torn: int | None, path: Path) -> None:
    """Raises JournalDamaged if ``line``, which lies behind line number ``torn``, knew that one as durable."""
    if line is not None and torn is not None and line.synced > torn:
        raise JournalDamaged(
            f"{path}: line {torn + 1} is damaged; it was durable when line {line.seq + 1} was written"
        )


def read_journal(
    path: Path, offset: int = 0, fs: FileSystem | None = None
) -> tuple[list[dict[str, Any]], int]:
    """As `read_lines`: the events alone."""
    lines, offset = read_lines(path, offset, fs)
    return [line.event for line in lines], offset


def read_lines(path: Path, offset: int = 0, fs: FileSystem | None = None) -> tuple[list[Line], int]:
    """For those who follow a run: the lines from byte ``offset``, and the offset behind the last of them.

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
    return lines, offset + (lines[-1].end if lines else 0)


class Journal:
    """The writing end. One process at a time may hold it open; its threads may share it."""

    def __init__(
        self,
        path: Path,
        fs: FileSystem,
        clock: Callable[[], float] = time.time,
        sign: Sign | None = None,
    ) -> None:
        """``sign`` makes the signature of a durable line; None: lines are not signed."""
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
        self._sign = sign
        self._last = ""
        """SHA-256 of the last line."""
        self._durable = Head()

    @property
    def head(self) -> Head:
        """Of the lines that are durable: whoever has seen it will find it in the journal, whatever happens."""
        with self._mutex:
            return self._durable

    def open(self) -> None:
        """Reads all lines and cuts a torn tail off, durably. Raises JournalDamaged for any other damage."""
        lines = self.lines()
        self._size, self._count = (lines[-1].end, len(lines)) if lines else (0, 0)
        self._last = lines[-1].digest if lines else ""
        self.epoch = max((line.epoch for line in lines), default=0)
        self.commit = next((line.commit for line in reversed(lines) if line.commit is not None), None)
        with naming_full(self._fs, self.path, 0):
            self._fs.append(self.path, b"")
            self._cut()
            self._fs.fsync_dir(self.path.parent)
        self.synced, self._durable = self._count, Head(self._last, self._count)

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
            seq, line = self._count, self._encode(event, commit, durable)
            with naming_full(self._fs, self.path, len(line)), self._whole_or_nothing():
                self._fs.append(self.path, line)
                fault("journal.appended")
                if durable:
                    self._fs.fsync(self.path)
            self._advance(line, commit, durable)
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

    def _encode(self, event: Mapping[str, Any], commit: int | None, durable: bool) -> bytes:
        numbered = {**event, "seq": self._count}
        line = {
            "commit": commit,
            "epoch": self.epoch,
            "event": numbered,
            "prev": self._last,
            "synced": self.synced,
        }
        body = to_json(f"event {event.get('type', '')}", line)[1:]
        if durable and self._sign is not None:
            body = b'"sig":"%s",%s' % (base64.b64encode(self._sign(body)), body)
        return b'{"crc":"%08x",%s\n' % (zlib.crc32(body), body)

    def _advance(self, line: bytes, commit: int | None, durable: bool) -> None:
        self._size += len(line)
        self._count += 1
        self._last = digest_of(line[:-1])
        if durable:
            self.synced, self._durable = self._count, Head(self._last, self._count)
        self.commit = self.commit if commit is None else commit

    def _cut(self) -> None:
        """Takes back whatever lies behind the last good line."""
        self._fs.truncate(self.path, self._size)
        self._fs.fsync(self.path)
        self._ragged = False
