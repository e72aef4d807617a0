"""The run directory on a real disk: damage, leases, a full disk, retention, and those who follow."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from orchestrator.checkpoints import MANIFEST, STATE
from orchestrator.disk import OsFileSystem
from orchestrator.store import (
    DiskFull,
    JournalDamaged,
    LeaseHeld,
    LeaseLost,
    NothingUsable,
    Store,
    checkpoint_name,
    read_journal,
)

META = {"job_digest": "abc", "versions": {"numpy": "2"}}


def state_of(version: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(version)
    return {"params": rng.standard_normal(1000, np.float32), "momentum": rng.standard_normal(7, np.float32)}


def closed(version: int) -> dict[str, Any]:
    return {"type": "round_closed", "version": version, "seq": -1, "time": 0.0}


def opened(root: Path, **options: Any) -> Store:
    store = Store(root, **options)
    store.acquire("test")
    store.recover()
    return store


def filled(root: Path, versions: Iterable[int] = range(3), **options: Any) -> Store:
    store = opened(root, **options)
    for version in versions:
        store.commit(version, state_of(version), closed(version), META)
    return store


def reopened(store: Store) -> Store:
    store.release()
    again = Store(store.root)
    again.acquire("test")
    return again


def file_of(store: Store, version: int, name: str = STATE) -> Path:
    return store.root / "checkpoints" / checkpoint_name(version) / name


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x10
    path.write_bytes(data)


def names(store: Store) -> list[str]:
    return sorted(os.listdir(store.root / "checkpoints"))


def journal(store: Store) -> Path:
    return store.root / "journal.jsonl"


# Commit and recover.


def test_a_new_run_has_nothing_to_recover(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs" / "one")
    assert store.acquire("test") == 1
    assert store.recover() is None
    assert list(store.events()) == []


def test_what_was_committed_is_recovered_bit_for_bit(tmp_path: Path) -> None:
    store = filled(tmp_path, clock=lambda: 12.5)
    found = reopened(store).recover()
    assert found is not None
    assert (found.version, found.meta, found.skipped) == (2, META, ())
    assert found.event == {"type": "round_closed", "version": 2, "seq": -1, "time": 12.5}
    assert {name: vector.tobytes() for name, vector in found.state.items()} == {
        name: vector.tobytes() for name, vector in state_of(2).items()
    }


def test_events_are_stamped_and_in_order(tmp_path: Path) -> None:
    ticks = iter(range(100))
    store = opened(tmp_path, clock=lambda: float(next(ticks)))
    assert [store.append({"type": "note"}), store.append({"type": "note"}, durable=True)] == [0, 1]
    store.commit(0, state_of(0), closed(0), META)
    events = dict(store.events())
    assert [events[i]["seq"] for i in range(3)] == [0, 1, 2]
    assert events[0]["time"] < events[1]["time"] < events[2]["time"]
    assert [seq for seq, _ in store.events(after=1)] == [2]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"params": np.zeros(0, np.float32)},
        {"b": np.arange(3, dtype=np.float32), "a": np.array([np.nan, -0.0, np.inf], np.float32)},
        {"strided": np.arange(20, dtype=np.float32)[::3]},
    ],
    ids=["none", "empty", "two", "strided"],
)
def test_the_file_is_the_one_that_the_library_writes(tmp_path: Path, state: dict[str, Any]) -> None:
    store = opened(tmp_path)
    store.commit(0, state, closed(0), META)
    dense = {name: np.ascontiguousarray(vector) for name, vector in state.items()}
    assert file_of(store, 0).read_bytes() == safetensors.numpy.save(dense)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 2), np.float32), np.zeros(2, ">f4")])
def test_only_float32_vectors_are_kept(tmp_path: Path, bad: NDArray[Any]) -> None:
    store = opened(tmp_path)
    with pytest.raises(ValueError, match="params is"):
        store.commit(0, {"params": bad}, closed(0), META)
    assert names(store) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32(1), {1, 2}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, bad: Any) -> None:
    store = opened(tmp_path)
    with pytest.raises(ValueError, match="event note cannot be recorded"):
        store.append({"type": "note", "loss": bad})
    with pytest.raises(ValueError, match="cannot be recorded"):
        store.commit(0, state_of(0), {**closed(0), "loss": bad}, META)
    assert names(store) == [] and journal(store).read_bytes() == b""


def test_what_is_recorded_with_a_state_may_be_any_json(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(0, {}, {"type": "r"}, {"by_size": {10: 1e-7, 9: None}, "name": "Zürich\n"})
    found = reopened(store).recover()
    assert found is not None
    assert found.meta == {"by_size": {"10": 1e-7, "9": None}, "name": "Zürich\n"}


def test_a_version_is_committed_once(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for version in (1, 2):
        with pytest.raises(ValueError, match="cannot follow 2"):
            store.commit(version, state_of(9), closed(version), META)


def test_a_commit_needs_the_lease_and_a_recovery(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(LeaseLost):
        store.commit(0, state_of(0), closed(0), META)
    with pytest.raises(LeaseLost):
        store.append({"type": "note"})
    store.acquire("test")
    with pytest.raises(ValueError, match="recover"):
        store.commit(0, state_of(0), closed(0), META)


def test_a_checkpoint_without_its_line_gets_it(tmp_path: Path) -> None:
    store = filled(tmp_path)
    whole = journal(store).read_bytes()
    journal(store).write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    again = reopened(store)
    assert again.recover().version == 2  # type: ignore[union-attr]
    events = [event for _, event in again.events()]
    assert [event["version"] for event in events] == [0, 1, 2]
    assert [event["seq"] for event in events] == [0, 1, 2]


def test_appending_while_a_commit_runs(tmp_path: Path) -> None:
    store = opened(tmp_path)

    def notes() -> None:
        for _ in range(50):
            store.append({"type": "note"})

    threads = [threading.Thread(target=notes) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(5):
        store.commit(version, state_of(version), closed(version), META)
    for thread in threads:
        thread.join()
    events, _ = read_journal(journal(store))
    assert [event["seq"] for event in events] == list(range(155))
    assert [event["version"] for event in events if event["type"] == "round_closed"] == list(range(5))


# Damage.


def _bit_flip(store: Store) -> None:
    flip(file_of(store, 2), 3000)


def _header_flip(store: Store) -> None:
    flip(file_of(store, 2), 12)


def _truncated(store: Store) -> None:
    os.truncate(file_of(store, 2), 3000)


def _empty(store: Store) -> None:
    os.truncate(file_of(store, 2), 0)


def _no_state(store: Store) -> None:
    file_of(store, 2).unlink()


def _no_manifest(store: Store) -> None:
    file_of(store, 2, MANIFEST).unlink()


def _manifest_flip(store: Store) -> None:
    flip(file_of(store, 2, MANIFEST), 60)


def _manifest_empty(store: Store) -> None:
    os.truncate(file_of(store, 2, MANIFEST), 0)


def _not_a_folder(store: Store) -> None:
    folder = file_of(store, 2).parent
    OsFileSystem().remove(folder)
    folder.write_text("hello")


def _another_version(store: Store) -> None:
    folder = file_of(store, 2).parent
    OsFileSystem().remove(folder)
    os.rename(file_of(store, 0).parent, folder)


DAMAGE = {
    _bit_flip: "does not match its SHA-256",
    _header_flip: "does not match its SHA-256",
    _truncated: "has 3,000 bytes instead of",
    _empty: "has 0 bytes instead of",
    _no_state: "state.safetensors is missing",
    _no_manifest: "MANIFEST.json is missing",
    _manifest_flip: "MANIFEST.json is damaged",
    _manifest_empty: "MANIFEST.json is damaged",
    _not_a_folder: "cannot be read",
    _another_version: "version 0 under another name",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path, damage: Any) -> None:
    store = filled(tmp_path)
    damage(store)
    again = reopened(store)
    found = again.recover()
    assert found is not None and found.version == 1
    [(name, why)] = found.skipped
    assert name == "v000002" and DAMAGE[damage] in why
    assert "skipped-v000002" in names(again) and "v000002" not in names(again)
    rewound = [event for _, event in again.events()][-1]
    assert (rewound["type"], rewound["version"], rewound["skipped"]) == ("rewound", 1, [f"{name}: {why}"])
    again.commit(2, state_of(22), closed(2), META)
    last = reopened(again).recover()
    assert last is not None and (last.version, last.skipped) == (2, ())
    assert last.state["params"].tobytes() == state_of(22)["params"].tobytes()


def test_a_rewind_is_said_once(tmp_path: Path) -> None:
    store = filled(tmp_path)
    _bit_flip(store)
    for _ in range(3):
        store = reopened(store)
        store.recover()
    assert [event["type"] for _, event in store.events()].count("rewound") == 1


def test_what_was_set_aside_goes_when_the_run_is_well_past_it(tmp_path: Path) -> None:
    store = filled(tmp_path)
    _bit_flip(store)
    store = reopened(store)
    store.recover()
    for version in range(2, 6):
        assert "skipped-v000002" in names(store)
        store.commit(version, state_of(version), closed(version), META)
    assert names(store) == ["v000003", "v000004", "v000005"]


def test_nothing_usable_is_never_a_fresh_start(tmp_path: Path) -> None:
    store = filled(tmp_path, versions=[0])
    flip(file_of(store, 0), 3000)
    again = reopened(store)
    with pytest.raises(NothingUsable, match=r"v000000: .* SHA-256"):
        again.recover()
    OsFileSystem().remove(file_of(store, 0).parent)
    with pytest.raises(NothingUsable, match="the journal has version 0"):
        again.recover()


def test_a_foreign_checkpoint_is_visible_and_can_be_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, versions=[0, 1])
    store.commit(2, state_of(2), closed(2), {"job_digest": "other"})
    again = reopened(store)
    assert again.newest().meta["job_digest"] == "other"  # type: ignore[union-attr]
    found = again.recover(expect={"job_digest": "abc"})
    assert found is not None and found.version == 1
    assert found.skipped == (("v000002", "job_digest is other, this run's is abc"),)


class BadSector(OsFileSystem):
    """One file cannot be read."""

    def __init__(self, path: Path, code: int) -> None:
        self.path, self.code = path, code

    def read(self, path: Path, offset: int = 0) -> bytes:
        if path == self.path:
            raise OSError(self.code, os.strerror(self.code), str(path))
        return super().read(path, offset)


def test_an_unreadable_sector_is_damage_but_a_missing_permission_is_not(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.release()
    for code in (errno.EACCES, errno.EIO):
        again = Store(tmp_path, BadSector(file_of(store, 2), code))
        again.acquire("test")
        if code == errno.EACCES:
            with pytest.raises(PermissionError):
                again.recover()
        else:
            assert again.recover().version == 1  # type: ignore[union-attr]
        again.release()


@pytest.mark.parametrize("cut", [1, 10, 150])
def test_a_torn_tail_is_cut_off_by_the_owner(tmp_path: Path, cut: int) -> None:
    store = filled(tmp_path)
    size = journal(store).stat().st_size
    store.append({"type": "note", "text": "x" * 200})
    os.truncate(journal(store), journal(store).stat().st_size - cut)
    assert len(list(Store(tmp_path).events())) == 3
    assert journal(store).stat().st_size > size
    again = reopened(store)
    assert journal(store).stat().st_size == size
    assert again.append({"type": "note"}) == 3


def test_damage_before_a_durable_line_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    flip(journal(store), 100)
    for read in (lambda: list(store.events()), lambda: read_journal(journal(store)), lambda: reopened(store)):
        with pytest.raises(JournalDamaged, match="line 1 is damaged"):
            read()


def test_a_lost_line_in_the_middle_is_damage(tmp_path: Path) -> None:
    store = filled(tmp_path)
    lines = journal(store).read_bytes().splitlines(keepends=True)
    journal(store).write_bytes(lines[0] + lines[2])
    store = filled_further(store)
    with pytest.raises(JournalDamaged, match="line 2 is damaged"):
        read_journal(journal(store))


def filled_further(store: Store) -> Store:
    store.commit(3, state_of(3), closed(3), META)
    return store


def test_a_journal_shorter_than_its_checkpoint_knows_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    journal(store).unlink()
    with pytest.raises(JournalDamaged, match="has 0 lines, but had 2 when v000002"):
        reopened(store).recover()


# The lease.

HOLDER = """
import sys, time
from pathlib import Path
from orchestrator.store import Store
print(Store(Path(sys.argv[1])).acquire("driver of hospital"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of ``tmp_path`` with epoch 1."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.wait()


def test_a_live_driver_keeps_others_out_and_a_killed_one_does_not(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(LeaseHeld) as refusal:
        Store(tmp_path).acquire("second")
    line = str(refusal.value)
    assert "driver of hospital" in line and f"pid {holder.pid}" in line and "since 20" in line
    assert "\n" not in line
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert Store(tmp_path).acquire("second") == 2


def test_a_second_driver_in_the_same_process_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.acquire("first")
    with pytest.raises(LeaseHeld, match="first"):
        Store(tmp_path).acquire("second")
    store.release()
    assert Store(tmp_path).acquire("second") == 2


def test_the_epoch_rises_even_if_the_lease_file_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for epoch in (1, 2, 3):
        store.release()
        assert store.acquire("test") == epoch
    store.append({"type": "note"})
    for damage in (b"", b"{}", b"[]", b'{"epoch":"7"}', b"\xff\xfe"):
        (tmp_path / "lease.json").write_bytes(damage)
        again = reopened(store)
        assert again.epoch == 4
        again.release()


def test_a_driver_that_was_taken_over_commits_no_more(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "lock").unlink()
    other = Store(tmp_path)
    other.acquire("other")
    with pytest.raises(LeaseLost, match="taken over by other"):
        store.commit(3, state_of(3), closed(3), META)


def test_a_refused_journal_leaves_no_lease(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.release()
    flip(journal(store), 100)
    for _ in range(2):
        with pytest.raises(JournalDamaged):
            Store(tmp_path).acquire("test")


# Retention and a full disk.


def test_the_newest_and_the_pinned_stay(tmp_path: Path) -> None:
    store = opened(tmp_path, keep=2)
    for version in range(6):
        store.commit(version, state_of(version), closed(version), META)
        if version == 1:
            store.pins = {1}
    assert names(store) == ["v000001", "v000004", "v000005"]
    store.pins = set()
    store.commit(6, state_of(6), closed(6), META)
    assert names(store) == ["v000005", "v000006"]


def test_left_over_work_is_swept(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "checkpoints" / "tmp-v000003").mkdir()
    reopened(store).recover()
    assert names(store) == ["v000000", "v000001", "v000002"]


class SmallDisk(OsFileSystem):
    """A disk with room for so many bytes of checkpoints and journal."""

    def __init__(self, root: Path, capacity: int) -> None:
        self.root, self.capacity = root, capacity

    def free_bytes(self, path: Path) -> int:
        used = sum(file.stat().st_size for file in self.root.rglob("*") if file.is_file())
        return max(self.capacity - used, 0)

    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None:
        super().write(path, [])
        for chunk in chunks:
            self.append(path, bytes(chunk))

    def append(self, path: Path, data: bytes) -> None:
        room = self.free_bytes(path)
        super().append(path, data[:room])
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_the_oldest_checkpoint(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path, 10**9)
    store = filled(tmp_path, fs=disk)
    disk.capacity -= disk.free_bytes(tmp_path) - 1000
    store.commit(3, state_of(3), closed(3), META)
    assert names(store) == ["v000001", "v000002", "v000003"]


def test_a_disk_that_stays_full_says_so_and_loses_nothing(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path, 10**9)
    store = filled(tmp_path, fs=disk)
    before = journal(store).read_bytes()
    disk.capacity = 1000
    for _ in range(4):
        with pytest.raises(DiskFull, match=r"disk full: 4,\d\d\d bytes needed, 0 free.*v000003") as full:
            store.commit(3, state_of(3), closed(3), META)
        assert isinstance(full.value, OSError) and full.value.errno == errno.ENOSPC
        assert "\n" not in str(full.value)
    assert names(store) == ["v000002"]
    assert journal(store).read_bytes() == before
    disk.capacity = 10**9
    store.commit(3, state_of(3), closed(3), META)
    assert reopened(store).recover().version == 3  # type: ignore[union-attr]


def test_pins_outlive_a_full_disk(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path, 10**9)
    store = filled(tmp_path, fs=disk)
    store.pins, disk.capacity = {0}, 1000
    for _ in range(3):
        with pytest.raises(DiskFull):
            store.commit(3, state_of(3), closed(3), META)
    assert names(store) == ["v000000", "v000002"]


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path, 10**9)
    store = filled(tmp_path, fs=disk)
    before = journal(store).read_bytes()
    disk.capacity -= disk.free_bytes(tmp_path) - 20
    with pytest.raises(DiskFull, match="journal"):
        store.append({"type": "note"})
    assert journal(store).read_bytes() == before
    disk.capacity = 10**9
    assert store.append({"type": "note"}) == 3


# Those who follow.


def test_a_follower_sees_each_event_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal.jsonl") == ([], 0)
    store = opened(tmp_path / "run")
    for note in range(3):
        store.append({"type": "note", "note": note})
    data, copy = journal(store).read_bytes(), tmp_path / "copy"
    seen, offset = [], 0
    for size in range(len(data) + 1):
        copy.write_bytes(data[:size])
        events, offset = read_journal(copy, offset)
        seen += [event["note"] for event in events]
        assert offset <= size
    assert seen == [0, 1, 2] and offset == len(data)
    assert read_journal(copy, offset) == ([], offset)


def test_a_follower_is_told_of_damage_and_of_a_lost_place(tmp_path: Path) -> None:
    store = filled(tmp_path)
    lines = journal(store).read_bytes().splitlines(keepends=True)
    size = sum(map(len, lines))
    for lost in (3, size + 1):
        with pytest.raises(JournalDamaged, match="not the end of a line"):
            read_journal(journal(store), lost)
    store.append({"type": "note"})
    flip(journal(store), len(lines[0]) + 60)
    with pytest.raises(JournalDamaged, match="line 2 is damaged"):
        read_journal(journal(store), len(lines[0]))


def test_a_hole_in_what_was_never_durable_is_no_damage(tmp_path: Path) -> None:
    store = filled(tmp_path, versions=[0, 1])
    end = journal(store).stat().st_size
    for _ in range(3):
        store.append({"type": "note"})
    flip(journal(store), end + 60)
    assert read_journal(journal(store), end) == ([], end)
    assert len(read_journal(journal(store))[0]) == 2
    assert reopened(store).append({"type": "note"}) == 2


def test_a_line_is_plain_json(tmp_path: Path) -> None:
    store = filled(tmp_path, versions=[0], clock=lambda: 2.0)
    [line] = journal(store).read_text().splitlines()
    assert json.loads(line) == {
        "crc": line[8:16],
        "commit": 0,
        "epoch": 1,
        "prev": "",
        "synced": 0,
        "event": {"type": "round_closed", "version": 0, "seq": 0, "time": 2.0},
    }
