"""Runs brought from a store to this machine: whole for a driver, the small part for those who look.

**Which copy counts.** What this machine has of a run is good if the store has nothing else: an older copy is brought
up to date, and one that is ahead (its driver died before the store had everything) stays, and its driver makes the
store agree. If another driver has gone on meanwhile, what is here is put into ``.set-aside`` and brought anew.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from orchestrator.at_rest import store_key
from orchestrator.bucket import Bucket, Entry, copies, within
from orchestrator.checkpoints import MANIFEST, STATE, Checkpoints, Unusable
from orchestrator.disk import OsFileSystem, naming_full
from orchestrator.journal import JOURNAL, JournalDamaged
from orchestrator.lease import has_driver
from orchestrator.mirror import CHECKPOINTS, LEASE, NOTES, Held, Mirror, stored_names
from orchestrator.starting import START

SET_ASIDE = ".set-aside"

_PIECE = re.compile(r"(\d{6,})-(\d{12,})\.jsonl")
_SEEN = ".seen"
"""In a copy for those who look: what the store had when it was made."""


def runs_copy(uri: str) -> Path:
    """The folder in which drivers on this machine work on the runs of a store."""
    return copies(uri, "runs")


def open_mirror(uri: str, local: Path) -> Mirror:
    """The run at ``uri``, brought to this machine. Raises BadInput, StoreAway, JournalDamaged."""
    bucket = Bucket(uri)
    bucket.check()
    return Mirror(local, bucket, pull(bucket, local))


def pull(bucket: Bucket, local: Path) -> Held:
    """Brings the run directory down; what the store has of it."""
    there = bucket.entries()
    held, journal = _held(there), _journal(bucket, there)
    ours, as_new = _read(local / JOURNAL), _epoch(_read(local / LEASE)) >= _epoch(_lease(bucket))
    ahead = as_new and ours.startswith(journal)
    if not ahead and not journal.startswith(ours):
        _set_aside(local)
    _bring_checkpoints(bucket, held, local / CHECKPOINTS, ahead)
    if not ahead:
        _write(local / JOURNAL, journal)
    for name in {each.name for each in there} & set(NOTES):
        _write(local / name, bucket.get(name))
    held.start = START in {each.name for each in there}
    if held.start and not (local / START).exists():
        _write(local / START, bucket.get(START))
    held.journal_bytes = len(journal)
    return held


def _held(there: Iterable[Entry]) -> Held:
    names = {each.name for each in within(there, CHECKPOINTS)}
    folders = {name.partition("/")[0] for name in names}
    whole = {each for each in folders if {f"{each}/{MANIFEST}", f"{each}/{STATE}"} <= names}
    return Held(checkpoints=whole, scraps=folders - whole)


def _journal(bucket: Bucket, there: Iterable[Entry]) -> bytes:
    """The journal of a run. Where two pieces have something to say of the same bytes, the later driver's counts."""
    found: list[tuple[int, bytes]] = []
    for start, name in _pieces(there):
        while found and found[-1][0] >= start:
            found.pop()
        if found:
            found[-1] = found[-1][0], found[-1][1][: start - found[-1][0]]
        if sum(len(data) for _, data in found) < start:
            raise JournalDamaged(f"{bucket.where}/journal: a piece before {name} is missing")
        found.append((start, bucket.get(f"journal/{name}")))
    return b"".join(data for _, data in found)


def _pieces(there: Iterable[Entry]) -> list[tuple[int, str]]:
    """Where each piece begins, and its name; by epoch and offset."""
    matches = [_PIECE.fullmatch(each.name) for each in within(there, "journal")]
    ordered = sorted((int(match[1]), int(match[2]), match[0]) for match in matches if match)
    return [(start, name) for _, start, name in ordered]


def _bring_checkpoints(bucket: Bucket, held: Held, folder: Path, ahead: bool) -> None:
    """Fetches what is not here, or here but damaged. What the store does not have stays only if this machine is
    ahead of it."""
    folder.mkdir(parents=True, exist_ok=True)
    here, newest = stored_names(folder), _newest(held.checkpoints)
    for local in [each for each in folder.glob("v*") if each not in here.values()]:
        shutil.rmtree(local)
    for name in here.keys() - newest:
        if not ahead or here[name].name in {each.partition("-")[0] for each in newest}:
            shutil.rmtree(here[name])
    for name in sorted(newest):
        if name not in here or (name == max(newest) and _is_damaged(folder, name)):
            _fetch(bucket, name, folder)


def _newest(names: Iterable[str]) -> set[str]:
    """Of two checkpoints of a version, that of the later driver."""
    return set({name.partition("-")[0]: name for name in sorted(names)}.values())


def _is_damaged(folder: Path, name: str) -> bool:
    try:
        Checkpoints(folder, OsFileSystem(), store_key()).load(int(name.partition("-")[0][1:]), {})
    except Unusable:
        return True
    return False


def _fetch(bucket: Bucket, name: str, folder: Path) -> None:
    version = name.partition("-")[0]
    unfinished, fs = folder / f"tmp-{version}", OsFileSystem()
    fs.remove(unfinished)
    fs.mkdir(unfinished)
    for file in (STATE, MANIFEST):
        bucket.fetch(f"{CHECKPOINTS}/{name}/{file}", unfinished / file)
        fs.fsync(unfinished / file)
    fs.remove(folder / version)
    fs.rename(unfinished, folder / version)
    fs.fsync_dir(folder)


def _set_aside(local: Path) -> None:
    """Out of the way of the run, but left for a person to look at."""
    folder = local.parent / SET_ASIDE
    folder.mkdir(exist_ok=True)
    local.rename(folder / f"{local.name}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}")


def look(uri: str) -> Path:
    """A folder on this machine with the small part of every run there: its journal, and the notes beside it. A run
    that is driven on this machine is there as its driver has it. Raises BadInput, StoreAway, JournalDamaged."""
    bucket, folder = Bucket(uri), copies(uri, "seen")
    folder.mkdir(parents=True, exist_ok=True)
    there = bucket.entries()
    runs = {each.name.partition("/")[0] for each in there if "/" in each.name}
    for gone in {each.name for each in folder.iterdir()} - runs:
        _remove(folder / gone)
    for run_id in runs:
        _look_at(bucket.folder(run_id), within(there, run_id), folder / run_id, runs_copy(uri) / run_id)
    return folder


def _look_at(bucket: Bucket, there: list[Entry], seen: Path, driven: Path) -> None:
    if has_driver(driven) or seen.is_symlink():
        _remove(seen)
    if has_driver(driven):
        with suppress(FileExistsError):
            seen.symlink_to(driven)
        return
    small = [each for each in there if not each.name.startswith(f"{CHECKPOINTS}/")]
    state = json.dumps(small)
    if _read(seen / _SEEN) == state.encode():
        return
    seen.mkdir(exist_ok=True)
    for name in {each.name for each in small} & {*NOTES, LEASE}:
        _write(seen / name, bucket.get(name))
    _write(seen / JOURNAL, _journal(bucket, small))
    latest = max((each.time_ns for each in small if each.name.startswith("journal/")), default=0)
    os.utime(seen / JOURNAL, ns=(latest, latest))
    _write(seen / _SEEN, state.encode())


def _remove(seen: Path) -> None:
    seen.unlink() if seen.is_symlink() else OsFileSystem().remove(seen)


def _lease(bucket: Bucket) -> bytes:
    try:
        return bucket.get(LEASE)
    except FileNotFoundError:
        return b""


def _epoch(lease: bytes) -> int:
    try:
        return int(json.loads(lease)["epoch"])
    except (ValueError, KeyError, TypeError):
        return 0


def _read(path: Path) -> bytes:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with naming_full(OsFileSystem(), path, len(data)):
        unfinished.write_bytes(data)
        unfinished.replace(path)
