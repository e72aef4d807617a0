"""The silo's privacy ledger: a line for each query that its data was put to, over all jobs, durable before the query.

A line is ``{"hash":"<SHA-256>",<rest>}``. The hash is of the exact bytes of ``<rest>``, which names the hash of the
line before: whoever changes, removes or reorders a line changes the newest hash, the ledger's *head*. Drivers keep
the heads that they were told, and sign them; a copy of the file that lacks one of these is an old one. A line that a
crash tore apart was never acknowledged, and is dropped; any other damage is refused.
"""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from orchestrator.core.errors import BadInput
from orchestrator.core.faults import fault
from orchestrator.core.messages import LedgerHead
from orchestrator.keys import is_signed
from silos.audit import sync_folder

FILE = "ledger/spent.jsonl"
"""In the silo's own folder."""

Unit = Literal["record", "patient", "silo"]
Part = Literal["train", "test"]

_LINE = re.compile(rb'\{"hash":"([0-9a-f]{64})",(.*\})', re.DOTALL)
_FIRST = "0" * 64


class Line(BaseModel, frozen=True, extra="forbid", strict=True):
    """What a line says. Epsilon is not in it: it is computed from all of them."""

    previous: str
    """Hash of the line before; zeros in the first."""
    salt: str
    """128 random bits. Drivers have the hash, and know all else in a line but the number of rows, from which ``q``
    and ``steps`` follow, and the millisecond: few enough to try."""
    at: str
    dataset: str
    data: str
    """Fingerprint of its files."""
    new_rows: bool
    """The owner said that no row of these files was in the data set before."""
    job: str
    run: str
    version: int
    unit: Unit
    part: Part
    q: float = Field(ge=0, le=1)
    sigma: float = Field(ge=0)
    steps: int = Field(ge=0)
    seen: LedgerHead | None
    """The newest head that the run's driver has signed."""


class Entry(NamedTuple):
    """A verified line."""

    line: Line
    hash: str


class Ledger:
    """The file. Every method raises `BadInput`, with the line's number, where it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def entries(self) -> list[Entry]:
        """All lines, without a torn one at the end."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failed(error) from None
        return _verified(data[: _whole(data)], self.path)

    @contextmanager
    def writing(self) -> Iterator["Writing"]:
        """Alone with the file, for reading and appending; other threads and processes wait."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._failed(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            try:
                yield Writing(descriptor, self.path)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failed(error) from None
        finally:
            os.close(lock)

    def _failed(self, error: OSError) -> BadInput:
        rule = "what cannot be entered in the privacy ledger does not begin"
        return BadInput(f"{self.path}: {error.strerror}: {rule}", f"{error.strerror}: {rule}")


class Writing:
    """The file while it is locked; a torn end is gone."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        self._size = _whole(data)
        self.entries = _verified(data[: self._size], path)
        if len(data) > self._size:
            os.ftruncate(descriptor, self._size)
            os.fsync(descriptor)

    def append(self, lines: Sequence[Line]) -> None:
        """All of them, durable before it returns; ``previous`` is filled in. OSError where that fails, and then none. A
        crash leaves the first ones: as spent."""
        made, previous = [], head_of(self.entries).hash
        for line in lines:
            entry, text = _written(line.model_copy(update={"previous": previous}))
            made.append((entry, text))
            previous = entry.hash
        fault("ledger.opened")
        try:
            for _, text in made:  # one by one: a hole in any but the last line would be damage
                if os.write(self._descriptor, text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fault("ledger.written")
                os.fsync(self._descriptor)
            if self._size == 0:
                for folder in (self._path.parent, self._path.parent.parent):
                    sync_folder(folder)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += sum(len(text) for _, text in made)
        self.entries += [entry for entry, _ in made]
        fault("ledger.durable")


def head_of(entries: Sequence[Entry]) -> LedgerHead:
    """Of these lines from the first on."""
    return LedgerHead(len(entries), entries[-1].hash if entries else _FIRST)


def contains(entries: Sequence[Entry], head: LedgerHead) -> bool:
    """Whether the ledger once ended there."""
    if head.length > len(entries):
        return False
    return head.length == 0 or entries[head.length - 1].hash == head.hash


def signed(head: LedgerHead, silo: str) -> bool:
    """Whether the driver with this key has signed that it was told of the silo's head."""
    return is_signed(head.key, head.statement(silo), head.signature)


def _written(line: Line) -> tuple[Entry, bytes]:
    rest = line.model_dump_json().encode()[1:]
    digest = hashlib.sha256(rest).hexdigest()
    return Entry(line, digest), b'{"hash":"' + digest.encode() + b'",' + rest + b"\n"


def _whole(data: bytes) -> int:
    """Bytes before a torn end: a last line that does not end, or has a hole, as a crash leaves them."""
    end = data.rfind(b"\n") + 1
    last = data.rfind(b"\n", 0, max(0, end - 1)) + 1
    return last if b"\0" in data[last:end] else end


def _verified(data: bytes, path: Path) -> list[Entry]:
    entries: list[Entry] = []
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        entry = _entry(raw)
        if entry is None or entry.line.previous != head_of(entries).hash:
            what = "is not as it was written" if entry is None else "does not follow the one before it"
            remedy = "put the newest copy of the file back"
            raise BadInput(
                f"{path}: line {number} {what}; {remedy}. No private data is worked on until then",
                f"line {number} of its privacy ledger {what}; {remedy}",
            )
        entries.append(entry)
    return entries


def _entry(raw: bytes) -> Entry | None:
    match = _LINE.fullmatch(raw)
    if match is None or hashlib.sha256(match[2]).hexdigest().encode() != match[1]:
        return None
    try:
        return Entry(Line.model_validate_json(b"{" + match[2]), match[1].decode())
    except ValidationError:
        return None
