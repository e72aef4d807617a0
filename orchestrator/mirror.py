"""A run directory whose durable half is in a store: what counts is what the store has.

The driver works in a folder of its machine. Wherever the run directory's record asks a disk to be durable, what
changed goes to the store, too, and only then is it durable:

    lease.json                        read from there, too: the higher epoch has the run
    start.safetensors                 what the run started from, if that is not the seed
    journal/EPOCH-OFFSET.jsonl        the journal's bytes from that offset on, in pieces
    checkpoints/vVERSION-EPOCH-SEAL/  one folder per checkpoint, its manifest last
    job.json, command.json, ...       small files for those who look

No object is ever written by two drivers: the names have the epoch of the one who made them. A driver that was taken
over and writes a last object late writes beside the run. There is no append in an object store, hence the pieces:
the newest is written anew with each durable line until it has `PIECE_BYTES`. A commit costs the same in every round.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.bucket import Bucket
from orchestrator.checkpoints import MANIFEST, STATE
from orchestrator.disk import OsFileSystem, StoreAway
from orchestrator.journal import JOURNAL
from orchestrator.starting import START

PIECE_BYTES = 128 << 10

LEASE, CHECKPOINTS = "lease.json", "checkpoints"

NOTES = (
    *("job.json", "command.json", "submission.json", "ray.json", "door.json", "summary.json"),
    "countersigns.jsonl",
)
"""Small files of a run directory that are not its record."""


@dataclass
class Held:
    """What the store has of a run."""

    journal_bytes: int = 0
    start: bool = False
    checkpoints: set[str] = field(default_factory=set)
    """Names in the store, of those that are whole."""
    scraps: set[str] = field(default_factory=set)
    """Names in the store that may have something, but not all of it."""


class Mirror(OsFileSystem):
    """The disk of a run directory at ``local`` that is mirrored in ``bucket``, which has what ``held`` says."""

    def __init__(self, local: Path, bucket: Bucket, held: Held) -> None:
        self.local, self.bucket, self._held = local, bucket, held
        self._lease = self._leased()
        self._epoch = 0
        """That of the lease in the store, once it is ours; nothing is written there before."""
        self._begin, self._end, self._sure = 0, 0, False
        """Of the newest piece of the journal; whether the store is known to have it."""

    def read(self, path: Path, offset: int = 0) -> bytes:
        """The lease is read from the store: another driver's would not be here."""
        if path != self.local / LEASE:
            return super().read(path, offset)
        try:
            return self.bucket.get(LEASE)[offset:]
        except FileNotFoundError as error:
            if self._epoch:
                raise StoreAway(
                    f"{self.bucket.where}/{LEASE}", "this run's lease is gone from there"
                ) from error
            raise

    def fsync(self, path: Path) -> None:
        super().fsync(path)
        if path == self.local / JOURNAL:
            self._push_journal()

    def fsync_dir(self, path: Path) -> None:
        super().fsync(path)
        if path == self.local:
            self._push_lease()
        elif path == self.local / CHECKPOINTS:
            self._push_checkpoints()

    def push_notes(self, names: Sequence[str] = NOTES) -> None:
        """Small files for those who look; a store that is away will get them another time."""
        with suppress(StoreAway):
            for name in names:
                if self._epoch and (data := _bytes(self.local / name)):
                    self.bucket.put(name, data)

    def _leased(self) -> bytes:
        return _bytes(self.local / LEASE)

    def _push_lease(self) -> None:
        """A new lease, and whatever this machine had of the journal that the store had not."""
        lease = self._leased()
        if lease == self._lease:
            return
        self.bucket.put(LEASE, lease)
        self._lease, self._epoch = lease, int(json.loads(lease)["epoch"])
        self._begin = min(self._held.journal_bytes, self._journal_bytes())
        self._push_journal()
        self._push_start()
        self.push_notes()

    def _push_start(self) -> None:
        if not self._held.start and (self.local / START).exists():
            self.bucket.put_file(START, self.local / START)
            self._held.start = True

    def _journal_bytes(self) -> int:
        return (self.local / JOURNAL).stat().st_size

    def _push_journal(self) -> None:
        """The newest piece as it is now; also if it became shorter, or nothing."""
        end = self._journal_bytes()
        if not self._epoch or (self._sure and end == self._end):
            return
        if self._sure and self._end - self._begin >= PIECE_BYTES:
            self._begin = self._end
        self._sure = False
        data = super().read(self.local / JOURNAL, self._begin)
        self.bucket.put(f"journal/{self._epoch:06d}-{self._begin:012d}.jsonl", data)
        self._end, self._sure = end, True

    def _push_checkpoints(self) -> None:
        """New ones first, so that there are never fewer than there could be; then the store forgets the others."""
        if not self._epoch:
            return
        wanted = stored_names(self.local / CHECKPOINTS)
        for name in sorted(wanted.keys() - self._held.checkpoints):
            self._push_checkpoint(name, wanted[name])
        for name in sorted((self._held.checkpoints | self._held.scraps) - wanted.keys()):
            self._forget(name)

    def _push_checkpoint(self, name: str, folder: Path) -> None:
        """Its manifest last: without one it is none."""
        self._held.scraps.add(name)
        self.bucket.put_file(f"{CHECKPOINTS}/{name}/{STATE}", folder / STATE)
        self.bucket.put_file(f"{CHECKPOINTS}/{name}/{MANIFEST}", folder / MANIFEST)
        self._held.scraps.remove(name)
        self._held.checkpoints.add(name)

    def _forget(self, name: str) -> None:
        """Its manifest first."""
        self._held.scraps.add(name)
        self._held.checkpoints.discard(name)
        self.bucket.remove(f"{CHECKPOINTS}/{name}/{MANIFEST}")
        self.bucket.remove_folder(f"{CHECKPOINTS}/{name}")
        self._held.scraps.remove(name)


def stored_names(checkpoints: Path) -> dict[str, Path]:
    """The checkpoints in the folder, by their names in a store: the same name is the same checkpoint."""
    found = {stored_name(each): each for each in checkpoints.glob("v*") if each.is_dir()}
    return {name: folder for name, folder in found.items() if name is not None}


def stored_name(folder: Path) -> str | None:
    """``v000012-000003-0123456789abcdef``: version, epoch, and the start of the manifest's own SHA-256."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return f"{folder.name}-{manifest['epoch']:06d}-{manifest['sha256'][:16]}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _bytes(path: Path) -> bytes:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""
