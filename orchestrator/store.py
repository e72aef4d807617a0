"""The durable run directory: what is left when the driver dies.

    lock                locked while a driver lives
    lease.json          who that is, and the epoch
    journal.jsonl       one verified line per event (``orchestrator/journal.py``)
    countersigns.jsonl  what silos signed when the run was over
    checkpoints/        v000012, v000013, ... (``orchestrator/checkpoints.py``)

**The commit point of a round is the rename of its checkpoint**, made durable. The checkpoint carries the
round's event, so a crash before the journal line loses nothing: recovery writes that line. The world hears of
rounds from the journal alone, hence only of committed ones. If a committed checkpoint turns out damaged,
recovery goes back to the one before, moves what it skipped out of the way, and says so with a ``rewound``
line: what the lines before it say about later versions no longer counts.
"""

import base64
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.at_rest import Key
from orchestrator.checkpoints import Checkpoints, State, Unusable, checkpoint_name
from orchestrator.core.faults import fault
from orchestrator.core.receipts import Receipt
from orchestrator.disk import DiskFull, FileSystem, OsFileSystem, StoreAway, naming_full
from orchestrator.journal import JOURNAL, Head, Journal, JournalDamaged, read_journal, to_json
from orchestrator.keys import Signer

__all__ = [
    "DiskFull",
    "JournalDamaged",
    "LeaseHeld",
    "LeaseLost",
    "NothingUsable",
    "Recovered",
    "Store",
    "checkpoint_name",
    "read_journal",
]


COUNTERSIGNS = "countersigns.jsonl"
"""Receipts of silos that have seen the whole journal, a line each."""


class LeaseHeld(Exception):
    """Another driver that is alive works on this run."""


class LeaseLost(Exception):
    """This driver does not have the run (any more), and must not write."""


class NothingUsable(Exception):
    """The run has history, but no checkpoint of it can be used."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The newest checkpoint that verifies."""

    version: int
    state: dict[str, NDArray[np.float32]]
    meta: dict[str, Any]
    event: dict[str, Any]
    """The round's event, with its time, as the commit recorded it."""
    journal_lines: int
    """How many journal lines were durable before it."""
    skipped: tuple[tuple[str, str], ...]
    """Newer checkpoints that could not be used: name and reason."""
    journal_head: str = ""
    """SHA-256 of the last of these lines; empty in checkpoints of a time when the journal was no chain."""


class Store:
    """One run directory. ``append`` may come from any thread, even during ``commit``; the rest from one."""

    def __init__(
        self,
        root: Path,
        fs: FileSystem | None = None,
        keep: int = 3,
        clock: Callable[[], float] = time.time,
        key: Key | None = None,
        signer: Signer | None = None,
    ) -> None:
        """The ``keep`` newest checkpoints stay, and those in ``pins``; ``clock`` gives seconds since 1970; ``key``
        encrypts the vectors in checkpoints; ``signer`` signs the durable lines of the journal."""
        self.root = root
        self.epoch = 0
        """Set by ``acquire``."""
        self._mine: dict[str, Any] = {}
        """The lease as this driver wrote it."""
        self.pins: set[int] = set()
        """Versions never to be deleted, such as the best one. Not durable: set it after ``recover``."""
        self._fs = fs or OsFileSystem()
        self._keep = max(keep, 1)
        self._clock = clock
        self._journal = Journal(root / JOURNAL, self._fs, clock, signer.sign if signer else None)
        self._checkpoints = Checkpoints(root / "checkpoints", self._fs, key)
        self.key, self.signer = key, signer
        self.driver_key = base64.b64encode(signer.public).decode() if signer else ""
        """Public, of the journal's signatures; empty for none."""
        self._unlock: Callable[[], None] | None = None
        self._recovered = False

    def acquire(self, owner: str) -> int:
        """Takes the run for this process and returns the new epoch, higher than any before.

        Raises LeaseHeld if a live driver has it, JournalDamaged, DiskFull.
        """
        self._fs.mkdir(self._checkpoints.root)
        unlock = self._fs.lock(self.root / "lock")
        if unlock is None:
            raise LeaseHeld(f"{self.root} is in use by {_holder(self._lease())}")
        self._unlock = unlock
        try:
            self._journal.open()
            # The lines carry the epoch too, so that a damaged lease file does not turn it back.
            self.epoch = 1 + max(self._lease().get("epoch", 0), self._journal.epoch)
            self._write_lease(owner)
        except BaseException:
            self.release()
            raise
        self._journal.epoch = self.epoch
        return self.epoch

    def release(self) -> None:
        """Lets another driver have the run. So does the end of the process, however it comes."""
        if self._unlock is not None:
            self._unlock()
        self._unlock, self._recovered = None, False

    def append(self, event: Mapping[str, Any], durable: bool = False) -> int:
        """Journals one event, stamped with ``seq`` and ``time``, and returns ``seq``.

        One that is not ``durable`` outlives the process at once, but the machine only from the next durable
        line on. Raises ValueError for NaN and infinity, and DiskFull; the journal is then as it was.
        """
        if self._unlock is None:
            raise LeaseLost(f"{self.root} is not acquired")
        return self._journal.write(self._journal.stamp(event), durable=durable)

    @property
    def head(self) -> Head:
        """Of the journal's durable lines."""
        return self._journal.head

    def events(self, after: int = -1) -> Iterator[tuple[int, dict[str, Any]]]:
        """The events with ``seq`` above ``after``, in order. Needs no lease. Raises JournalDamaged."""
        return ((line.seq, line.event) for line in self._journal.lines() if line.seq > after)

    def countersign(self, receipts: Sequence[Receipt]) -> None:
        """Keeps what silos signed when the run was over. Raises DiskFull."""
        path = self.root / COUNTERSIGNS
        data = b"".join(to_json("receipt", asdict(each)) + b"\n" for each in receipts)
        with naming_full(self._fs, path, len(data)):
            self._fs.append(path, data)
            self._fs.fsync(path)

    def commit(self, version: int, state: State, event: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Makes the version durable, then its event in the journal; then deletes checkpoints that may go.

        ``state`` must not change meanwhile. After an error the version does not count and may be committed
        anew; if the process ends instead, recovery may find it whole and take it, with its event. Raises
        ValueError for a version not above the last one, DiskFull, LeaseLost.
        """
        self._check_lease()
        if not self._recovered:
            raise ValueError("recover before committing")
        last = self._journal.commit
        if last is not None and version <= last:
            raise ValueError(f"version {version} cannot follow {last}")
        event = self._journal.stamp(event)
        record = {"event": event, "meta": meta, "epoch": self.epoch, **_lines(self._journal.head)}
        self._with_room(version, lambda: self._checkpoints.save(version, state, record))
        self._with_room(version, lambda: self._journal.write(event, commit=version, durable=True))
        fault("commit.done")
        self._retain()

    def newest(self, expect: Mapping[str, Any] | None = None) -> Recovered | None:
        """The newest checkpoint that verifies and whose ``meta`` agrees with ``expect``. Needs no lease.

        None if there are no checkpoints; raises NothingUsable if there are, but none will do.
        """
        skipped: list[tuple[str, str]] = []
        for version in reversed(self._checkpoints.versions()):
            try:
                state, record = self._checkpoints.load(version, expect or {})
            except Unusable as why:
                skipped.append((checkpoint_name(version), str(why)))
            else:
                return _recovered(version, state, record, tuple(skipped))
        if skipped:
            raise NothingUsable(f"{self.root}: no usable checkpoint: {'; '.join(_sentences(skipped))}")
        return None

    def kept(self, version: int) -> Recovered | None:
        """A version whose checkpoint is still there and verifies; None for any other. Needs no lease."""
        try:
            state, record = self._checkpoints.load(version, {})
        except Unusable:
            return None
        return _recovered(version, state, record, ())

    def recover(self, expect: Mapping[str, Any] | None = None) -> Recovered | None:
        """``newest``, and the journal brought to agree with it; None for a run without history.

        Raises NothingUsable, or JournalDamaged if durable lines are missing.
        """
        self._check_lease()
        self._checkpoints.settle()
        found = self.newest(expect)
        if found is None and self._journal.commit is not None:
            raise NothingUsable(
                f"{self.root}: no checkpoint, but the journal has version {self._journal.commit}"
            )
        if found is not None:
            self._agree(found)
        self._checkpoints.sweep(below=0)
        self._recovered = True
        return found

    def _agree(self, found: Recovered) -> None:
        """Makes the journal's last version that of the checkpoint found."""
        if self._journal.synced < found.journal_lines:
            had = f"{found.journal_lines} when {checkpoint_name(found.version)} was made"
            raise JournalDamaged(f"{self._journal.path} has {self._journal.synced} lines, but had {had}")
        self._check_head(found)
        # First out of the way, or a later recovery might yet take one of them for the run's newest.
        for version in self._checkpoints.versions():
            if version > found.version:
                self._checkpoints.set_aside(version)
        if self._journal.commit is None or self._journal.commit < found.version:
            self._journal.write(found.event, commit=found.version, durable=True)
        elif self._journal.commit > found.version:
            rewound = {"type": "rewound", "version": found.version, "skipped": _sentences(found.skipped)}
            self._journal.write(self._journal.stamp(rewound), commit=found.version, durable=True)

    def _check_head(self, found: Recovered) -> None:
        """The lines before the checkpoint are those that it was made after."""
        if found.journal_head and self._journal.lines()[found.journal_lines - 1].digest != found.journal_head:
            raise JournalDamaged(
                f"{self._journal.path}: line {found.journal_lines} is another one than when "
                f"{checkpoint_name(found.version)} was made"
            )

    def _with_room(self, version: int, step: Callable[[], object]) -> None:
        """Runs a step of this version's commit; if the disk is full, once more after deleting what may go."""
        try:
            step()
        except DiskFull as error:
            if isinstance(error, StoreAway) or not self._make_room(version):
                raise
            step()

    def _make_room(self, version: int) -> bool:
        """Deletes the oldest checkpoint that need not stay, and what was set aside; whether there was any."""
        swept = self._checkpoints.sweep(below=version)
        must_stay = {*self.pins, self._journal.commit, version}
        oldest = [old for old in self._checkpoints.versions() if old not in must_stay][:1]
        for old in oldest:
            self._checkpoints.delete(old)
        return swept or bool(oldest)

    def _retain(self) -> None:
        versions = self._checkpoints.versions()
        recent = versions[-self._keep :]
        try:
            for version in set(versions) - set(recent) - self.pins:
                self._checkpoints.delete(version)
            self._checkpoints.sweep(below=recent[0])
        except OSError as error:
            # The commit stands; the next one tries again.
            logging.getLogger(__name__).warning("old checkpoints stay: %s", error)

    def _lease(self) -> dict[str, Any]:
        """What the lease file says; empty if there is none, or it is damaged."""
        try:
            lease = json.loads(self._fs.read(self.root / "lease.json"))
        except (FileNotFoundError, ValueError):
            return {}
        return lease if isinstance(lease, dict) and isinstance(lease.get("epoch"), int) else {}

    def _write_lease(self, owner: str) -> None:
        lease = {"owner": owner, "pid": os.getpid(), "host": socket.gethostname(), "since": self._clock()}
        self._mine = {**lease, "epoch": self.epoch}
        data = to_json("lease", self._mine)
        path, new = self.root / "lease.json", self.root / "lease.json.new"
        with naming_full(self._fs, path, len(data)):
            self._fs.write(new, [data])
            self._fs.fsync(new)
            self._fs.rename(new, path)
            self._fs.fsync_dir(self.root)

    def replaced(self) -> bool:
        """Whether a newer driver has the run: a silo that says so may be wrong, or lie."""
        try:
            self._check_lease()
        except LeaseLost:
            return True
        return False

    def _check_lease(self) -> None:
        """Raises LeaseLost if another driver has come since (a file system without locks lets it): with a higher
        epoch, or where both came at once with the same one, as the last to write its lease."""
        if self._unlock is None:
            raise LeaseLost(f"{self.root} is not acquired")
        lease = self._lease()
        if lease.get("epoch", 0) >= self.epoch and lease != self._mine:
            raise LeaseLost(
                f"{self.root} was taken over by {_holder(lease)}; this driver has epoch {self.epoch}"
            )


def _lines(head: Head) -> dict[str, Any]:
    return {"journal_lines": head.length, "journal_head": head.digest}


def _recovered(
    version: int,
    state: dict[str, NDArray[np.float32]],
    record: Mapping[str, Any],
    skipped: tuple[tuple[str, str], ...],
) -> Recovered:
    meta, event, lines = (record[key] for key in ("meta", "event", "journal_lines"))
    return Recovered(version, state, meta, event, lines, skipped, record.get("journal_head", ""))


def _holder(lease: Mapping[str, Any]) -> str:
    if not lease.keys() >= {"owner", "pid", "host", "since"}:
        return "another driver"
    since = datetime.fromtimestamp(lease["since"], UTC).isoformat(" ", "seconds")
    return f"{lease['owner']} (pid {lease['pid']} on {lease['host']}, since {since})"


def _sentences(skipped: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}: {why}" for name, why in skipped]
