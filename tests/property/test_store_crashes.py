"""Whatever instant the power goes: what was acknowledged is there, whole, once, and in order."""

import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from orchestrator import checkpoints, journal
from orchestrator.checkpoints import Checkpoints
from orchestrator.journal import Head, Journal, JournalDamaged, digest_of
from orchestrator.store import NothingUsable, Recovered, Store, checkpoint_name, read_journal
from tests.property.crash_fs import Crash, CrashFileSystem

ROOT = Path("/runs/one")
META = {"job_digest": "d"}

steps = st.none() | st.integers(0, 24)
"""After how many I/O steps to strike; a commit has about twenty."""
seeds = st.integers(0, 2**32 - 1)


def state_of(seed: int) -> dict[str, NDArray[np.float32]]:
    """Vectors of arbitrary bits, NaNs among them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, 11, dtype=np.uint32)
    return {"params": bits[:7].view(np.float32), "momentum": bits[7:].view(np.float32)}


def bits_of(state: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    return {name: vector.tobytes() for name, vector in state.items()}


class Run:
    """A driver on a crashing disk, and beside it what the run must look like."""

    def __init__(self, fs: CrashFileSystem, store: type[Store], keep: int) -> None:
        self.fs = fs
        self.make: Callable[[], Store] = lambda: store(ROOT, fs, keep, clock=lambda: 1.5)
        self.rounds: list[tuple[int, int]] = []
        """Version and seed of every round that counts."""
        self.attempts: list[tuple[int, int]] = []
        """Rounds after those whose commit was interrupted; one of them may count."""
        self.heads: set[Head] = set()
        """Shown to others, who will look for them in the journal."""
        self.acked: set[int] = set()
        self.refused: set[int] = set()
        self.notes = self.rewinds = self.epoch = 0
        self.rotten = False
        """Whether the newest checkpoint was damaged since the last start."""
        self.start()

    @property
    def version(self) -> int:
        return self.rounds[-1][0] if self.rounds else -1

    def start(self) -> Recovered | None:
        self.store = self.make()
        epoch = self.store.acquire("test")
        assert epoch > self.epoch
        self.epoch = epoch
        return self.store.recover()

    def restart(self, seed: int, power_cut: bool, again: int | None = None) -> None:
        """The driver dies and is started again; recovery is itself interrupted after ``again`` steps."""
        chance = random.Random(seed)
        self.fs.restart(chance, power_cut)
        if again is not None:
            self.fs.arm(again)
            try:
                self.start()
            except Crash:
                self.fs.restart(chance, power_cut)
        self.fs.arm(None)
        self.store.release()
        self.check(self.start())

    def check(self, found: Recovered | None) -> None:
        """The version is the last that counts, or one attempted; its bits are those that were committed."""
        if found is not None and (found.version, found.event["seed"]) in self.attempts:
            self.rounds.append((found.version, found.event["seed"]))
        self.attempts.clear()
        assert found is None or not found.skipped or self.rotten
        self.rotten = False
        assert (found.version if found else -1) == self.version
        if found is not None:
            assert bits_of(found.state) == bits_of(state_of(self.rounds[-1][1]))
            assert found.meta == META
        self.check_journal()

    def check_journal(self) -> None:
        """Each round once and in order; every acknowledged note; nothing taken back, unless a disk rotted."""
        events = [event for _, event in self.store.events()]
        assert events == read_journal(ROOT / "journal.jsonl", fs=self.fs)[0]
        self.check_heads()
        rounds: list[tuple[int, int]] = []
        for event in events:
            if event["type"] == "rewound":
                rounds = [one for one in rounds if one[0] <= event["version"]]
            elif event["type"] == "round_closed":
                rounds.append((event["version"], event["seed"]))
        assert rounds == self.rounds
        assert sum(event["type"] == "rewound" for event in events) == self.rewinds
        notes = [event["note"] for event in events if event["type"] == "note"]
        assert notes == sorted(set(notes)) and self.acked <= set(notes) and not self.refused & set(notes)

    def check_heads(self) -> None:
        """Whoever has seen a head finds it on the chain."""
        lines = self.fs.read(ROOT / "journal.jsonl").split(b"\n")
        self.heads.add(self.store.head)
        for head in self.heads - {Head()}:
            assert head.length < len(lines) and digest_of(lines[head.length - 1]) == head.digest

    def commit(self, seed: int) -> None:
        """One round; on Crash or OSError it stays an attempt."""
        version = self.version + 1
        self.attempts.append((version, seed))
        event = {"type": "round_closed", "version": version, "seed": seed}
        self.store.commit(version, state_of(seed), event, META)
        self.rounds.append((version, seed))
        self.attempts.clear()

    def append_all(self, notes: int, durable: bool) -> None:
        """So many notes that may be lost, and perhaps one that may not."""
        for last in [False] * notes + [True] * durable:
            self.append(durable=last)

    def append(self, durable: bool) -> None:
        self.notes += 1
        try:
            self.store.append({"type": "note", "note": self.notes}, durable)
        except OSError:
            self.refused.add(self.notes)
            raise
        if durable:
            self.acked.add(self.notes)


class StoreMachine(RuleBasedStateMachine):
    fs: type[CrashFileSystem] = CrashFileSystem
    store: type[Store] = Store

    @initialize(keep=st.integers(1, 3))
    def open(self, keep: int) -> None:
        self.run = Run(self.fs(), self.store, keep)

    @rule(seed=seeds, at=steps, power_cut=st.booleans(), again=steps)
    def commit(self, seed: int, at: int | None, power_cut: bool, again: int | None) -> None:
        self.struck(lambda: self.run.commit(seed), at, (seed, power_cut, again))

    @rule(notes=st.integers(0, 6), durable=st.booleans(), at=st.none() | st.integers(0, 14), seed=seeds)
    def append(self, notes: int, durable: bool, at: int | None, seed: int) -> None:
        self.struck(lambda: self.run.append_all(notes, durable), at, (seed, True, None))

    @rule(seed=seeds, power_cut=st.booleans(), again=steps)
    def restart(self, seed: int, power_cut: bool, again: int | None) -> None:
        """Without a power cut now, one comes right after recovery: what that believed must be durable."""
        self.run.restart(seed, power_cut, again)
        self.run.restart(seed, power_cut=True)

    @rule(seed=seeds, at=st.integers(0, 24), note=st.booleans())
    def fail_once(self, seed: int, at: int, note: bool) -> None:
        self.run.fs.arm(at, OSError)
        with suppress(OSError):
            self.run.append(durable=True) if note else self.run.commit(seed)
        self.run.fs.arm(None)

    @rule(seed=seeds, room=st.integers(0, 3000), note=st.booleans())
    def fill_the_disk(self, seed: int, room: int, note: bool) -> None:
        run = self.run
        run.fs.capacity = run.fs.used_bytes() + room
        try:
            run.append(durable=True) if note else run.commit(seed)
        except OSError:
            assert run.version in (-1, *run.store._checkpoints.versions())
        run.fs.capacity = 2**62

    @rule(seed=seeds, bit=st.integers(0, 8000), manifest=st.booleans())
    def rot(self, seed: int, bit: int, manifest: bool) -> None:
        """The newest checkpoint is damaged; the one before it is used, and if there is none, none."""
        run = self.run
        versions = run.store._checkpoints.versions()
        if not versions:
            return
        name = checkpoints.MANIFEST if manifest else checkpoints.STATE
        path = ROOT / "checkpoints" / checkpoint_name(versions[-1]) / name
        run.fs.flip(path, bit)
        if len(versions) == 1:
            run.fs.restart(random.Random(seed), power_cut=False)
            assert self.nothing_usable()
            run.fs.flip(path, bit)
        else:
            run.rotten = True
            run.rewinds += versions[-2] < run.version
            run.rounds = [one for one in run.rounds if one[0] <= versions[-2]]
        run.restart(seed, power_cut=False)

    def nothing_usable(self) -> bool:
        try:
            self.run.start()
        except NothingUsable:
            return True
        return False

    def struck(
        self, act: Callable[[], object], at: int | None, restart: tuple[int, bool, int | None]
    ) -> None:
        self.run.fs.arm(at)
        try:
            act()
        except Crash:
            self.run.restart(*restart)
        self.run.fs.arm(None)

    @invariant()
    def journal_is_right(self) -> None:
        if hasattr(self, "run"):
            self.run.check_journal()


QUICK = settings(
    max_examples=200,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("number", [QUICK.max_examples, pytest.param(600, marks=pytest.mark.slow)])
def test_no_crash_loses_or_repeats_a_round(number: int) -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(QUICK, max_examples=number))


@pytest.mark.parametrize("power_cut", [True, False])
def test_every_step_of_a_short_run(power_cut: bool) -> None:
    for keep in (1, 2):
        for at in range(1000):
            if not any([_interrupted(keep, at, seed, power_cut) for seed in range(6)]):
                break
        else:
            raise AssertionError("the script never ends")


def _interrupted(keep: int, at: int, seed: int, power_cut: bool) -> bool:
    """A script of three rounds that dies after ``at`` steps; false when it ends before."""
    run = Run(CrashFileSystem(), Store, keep)
    run.fs.arm(at)
    try:
        for one in range(3):
            run.append(durable=False)
            run.append(durable=one == 1)
            run.commit(seed + one)
    except Crash:
        run.restart(seed, power_cut)
        run.commit(seed + 7)
        run.restart(seed, power_cut=True)
        return True
    return False


# A test of the tests: each of these bugs must be found.

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTED: dict[str, Plant] = {}


def planted(plant: Plant) -> Plant:
    PLANTED[plant.__name__] = plant
    return plant


@planted
def files_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CrashFileSystem, "fsync", lambda self, path: None)


@planted
def folders_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CrashFileSystem, "fsync_dir", lambda self, path: None)


@planted
def journal_lines_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    write = Journal.write
    patch.setattr(Journal, "write", lambda self, event, commit=None, **_: write(self, event, commit))


@planted
def heads_are_shown_before_they_are_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "head", property(lambda self: Head(self._last, self._count)))


@planted
def checksums_are_not_verified(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoints, "_check_file", lambda data, entry: None)


@planted
def checkpoints_are_written_in_place(patch: pytest.MonkeyPatch) -> None:
    def save(self: Checkpoints, version: int, state: checkpoints.State, record: Mapping[str, Any]) -> None:
        folder, header = self.root / checkpoint_name(version), checkpoints._header(state)
        self._fs.remove(folder)
        self._fs.mkdir(folder)
        sha256 = self._write(folder / checkpoints.STATE, (header, *checkpoints._chunks(state)))
        size = len(self._fs.read(folder / checkpoints.STATE))
        files = {checkpoints.STATE: {"bytes": size, "sha256": sha256}}
        manifest = {**record, "version": version, "files": files}
        self._write(folder / checkpoints.MANIFEST, [checkpoints._sealed(manifest)])
        self._fs.fsync_dir(folder)

    patch.setattr(Checkpoints, "save", save)


@planted
def old_ones_are_deleted_first(patch: pytest.MonkeyPatch) -> None:
    commit = Store.commit

    def eager(self: Store, *args: Any) -> None:
        for version in self._checkpoints.versions()[: -self._keep + 1 or None]:
            self._checkpoints.delete(version)
        commit(self, *args)

    patch.setattr(Store, "commit", eager)


@planted
def the_journal_line_comes_first(patch: pytest.MonkeyPatch) -> None:
    save = Checkpoints.save

    def line_first(self: Store, version: int, state: Any, event: Mapping[str, Any], meta: Any) -> None:
        event = self._journal.stamp(event)
        self._journal.write(event, commit=version, durable=True)
        save(self._checkpoints, version, state, {"event": event, "meta": meta, "journal_lines": 0})
        self._retain()

    patch.setattr(Store, "commit", line_first)


@planted
def the_round_of_a_found_checkpoint_is_not_journaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_agree", lambda self, found: None)


@planted
def names_found_are_taken_for_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checkpoints, "settle", lambda self: None)


@planted
def torn_tails_are_not_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "_cut", lambda self: None)


@planted
def holes_are_taken_for_damage(patch: pytest.MonkeyPatch) -> None:
    def strict(line: object, torn: int | None, path: Path) -> None:
        if line is not None:
            raise JournalDamaged

    patch.setattr(journal, "_check_torn", strict)


@planted
def failed_lines_are_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "_whole_or_nothing", lambda self: nullcontext())


@planted
def the_epoch_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_write_lease", lambda self, owner: None)


@planted
def a_full_disk_takes_the_last_checkpoint(patch: pytest.MonkeyPatch) -> None:
    def greedy(self: Store, version: int) -> bool:
        for old in set(self._checkpoints.versions()) - {version}:
            self._checkpoints.delete(old)
        return True

    patch.setattr(Store, "_make_room", greedy)


_LONG = {"holes_are_taken_for_damage", "names_found_are_taken_for_durable"}
"""Take the search longest to find: seconds, or minutes, as the draws fall."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _LONG else name for name in PLANTED]
)
def test_planted_bugs_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)
    with pytest.raises((AssertionError, NothingUsable, JournalDamaged)):
        run_state_machine_as_test(
            StoreMachine, settings=settings(QUICK, max_examples=20_000, phases=[Phase.generate])
        )
