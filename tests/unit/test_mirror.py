"""A run directory in a store: whatever instant the driver dies, a new machine goes on from the store alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator import bucket as buckets
from orchestrator.bucket import Bucket, checked, child, copies, shown
from orchestrator.checkpoints import STATE, checkpoint_name
from orchestrator.cli.main import app
from orchestrator.core.errors import BadInput
from orchestrator.disk import StoreAway
from orchestrator.mirror import PIECE_BYTES, Mirror
from orchestrator.pulled import SET_ASIDE, look, open_mirror, pull, runs_copy
from orchestrator.starting import START
from orchestrator.store import LeaseLost, Recovered, Store, read_journal

META = {"job_digest": "abc"}
RUN = "run-1"
ROUNDS = 4
T = TypeVar("T")


def state_of(seed: int) -> dict[str, np.ndarray]:
    return {"params": np.random.default_rng(seed).standard_normal(50, np.float32)}


class Crash(BaseException):
    """The process ends here; no handler for errors may catch it."""


class Dying(Bucket):
    """Dies with the n-th change of the store, before it is there or right after."""

    def __init__(self, uri: str, last: int, after: bool, error: type[BaseException] = Crash) -> None:
        super().__init__(uri)
        self.changes, self._last, self._after, self._error = 0, last, after, error

    def put(self, name: str, data: bytes) -> None:
        self._change(lambda: super(Dying, self).put(name, data))

    def put_file(self, name: str, path: Path) -> None:
        self._change(lambda: super(Dying, self).put_file(name, path))

    def remove(self, name: str) -> None:
        self._change(lambda: super(Dying, self).remove(name))

    def remove_folder(self, name: str) -> None:
        self._change(lambda: super(Dying, self).remove_folder(name))

    def _change(self, change: Callable[[], None]) -> None:
        self.changes += 1
        if self.changes != self._last:
            return change()
        if self._after:
            change()
        raise self._error() if self._error is Crash else StoreAway("there", "a test")


class Machine:
    """A machine with a disk of its own, and a driver."""

    def __init__(self, folder: Path, uri: str, bucket: Bucket | None = None, **options: Any) -> None:
        bucket = bucket or Bucket(child(uri, RUN))
        self.local = folder / RUN
        self.store = Store(self.local, Mirror(self.local, bucket, pull(bucket, self.local)), **options)

    def start(self) -> Recovered | None:
        self.store.acquire("test")
        return self.store.recover()

    def commit(self, version: int, seed: int | None = None) -> None:
        self.store.append({"type": "note", "of": version})
        event = {"type": "round_closed", "version": version}
        self.store.commit(version, state_of(version if seed is None else seed), event, META)

    @property
    def versions(self) -> list[int]:
        return [e["version"] for _, e in self.store.events() if e["type"] == "round_closed"]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def objects(uri: str) -> list[str]:
    return [each.name for each in Bucket(uri).entries()]


def fresh(tmp_path: Path, uri: str) -> tuple[Machine, Recovered | None]:
    """A machine that has seen nothing."""
    machine = Machine(tmp_path / f"machine-{len(list(tmp_path.iterdir()))}", uri)
    return machine, machine.start()


def test_a_new_machine_goes_on_from_the_store(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    assert first.start() is None
    for version in range(ROUNDS):
        first.commit(version)
    second, found = fresh(tmp_path, uri)
    assert found is not None and (found.version, found.skipped) == (ROUNDS - 1, ())
    assert np.array_equal(found.state["params"], state_of(ROUNDS - 1)["params"])
    assert second.versions == list(range(ROUNDS))
    assert second.store.epoch == 2
    second.commit(ROUNDS)
    assert second.versions == list(range(ROUNDS + 1))


def test_what_a_run_started_from_goes_along(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    first.local.mkdir(parents=True, exist_ok=True)
    (first.local / START).write_bytes(b"weights")
    first.start()
    second, _ = fresh(tmp_path, uri)
    assert (second.local / START).read_bytes() == b"weights"
    assert objects(uri).count(f"{RUN}/{START}") == 1


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_crash_loses_an_acknowledged_round(tmp_path: Path, uri: str, after: bool) -> None:
    for last in range(1, 200):
        root = tmp_path / f"{last}"
        uri, acked, ended = f"file://{root}/store", -1, True
        try:
            machine = Machine(root / "a", uri, Dying(child(uri, RUN), last, after), keep=2)
            machine.start()
            for version in range(ROUNDS):
                machine.commit(version)
                acked = version
        except Crash:
            ended = False
        for _ in range(2):  # the second finds what the first made of it
            machine, found = fresh(root, uri)
            at = -1 if found is None else found.version
            assert acked <= at <= acked + 1, last
            assert found is None or not found.skipped, last
            assert machine.versions == list(range(at + 1)), last
            assert found is None or np.array_equal(found.state["params"], state_of(at)["params"])
            acked = at
        machine.commit(acked + 1, seed=99)
        assert fresh(root, uri)[0].versions == list(range(acked + 2)), last
        shutil.rmtree(root)
        if ended:
            assert last > 15
            return
    raise AssertionError("the script never ends")


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_same_machine_goes_on_whatever_the_store_had(tmp_path: Path, uri: str, after: bool) -> None:
    for last in range(1, 200):
        root = tmp_path / f"{last}"
        uri, acked = f"file://{root}/store", -1
        try:
            machine = Machine(root / "a", uri, dying := Dying(child(uri, RUN), last, after), keep=2)
            machine.start()
            for version in range(ROUNDS):
                machine.commit(version)
                acked = version
        except Crash:
            pass
        machine.store.release()
        again = Machine(root / "a", uri)
        found = again.start()
        at = -1 if found is None else found.version
        assert acked <= at <= acked + 1 and not (root / "a" / SET_ASIDE).exists()
        again.commit(at + 1)
        other, found = fresh(root, uri)
        assert found is not None and found.version == at + 1 and other.versions == again.versions
        shutil.rmtree(root)
        if dying.changes < last:
            return
    raise AssertionError("the script never ends")


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_commit_that_the_store_did_not_take_is_made_again(tmp_path: Path, uri: str, after: bool) -> None:
    for last in range(6, 200):
        root = tmp_path / f"{last}"
        uri = f"file://{root}/store"
        machine = Machine(root / "a", uri, dying := Dying(child(uri, RUN), last, after, StoreAway), keep=2)
        machine.start()
        refused = 0
        for version in range(ROUNDS):
            while True:
                try:
                    machine.commit(version)
                    break
                except StoreAway:
                    refused += 1
        assert machine.versions == list(range(ROUNDS)) and refused <= 1
        other, found = fresh(root, uri)
        assert found is not None and (found.version, found.skipped) == (ROUNDS - 1, ())
        assert other.versions == list(range(ROUNDS))
        shutil.rmtree(root)
        if dying.changes < last:
            return
    raise AssertionError("the script never ends")


def test_old_checkpoints_leave_the_store_too(tmp_path: Path, uri: str) -> None:
    machine = Machine(tmp_path / "a", uri, keep=2)
    machine.start()
    for version in range(6):
        machine.commit(version)
    folders = {name.split("/")[2] for name in objects(uri) if "/checkpoints/" in name}
    assert sorted(name.partition("-")[0] for name in folders) == ["v000004", "v000005"]


def test_the_journal_grows_by_pieces(tmp_path: Path, uri: str) -> None:
    machine = Machine(tmp_path / "a", uri)
    machine.start()
    for number in range(40):
        machine.store.append({"type": "note", "text": "x" * 10_000, "n": number}, durable=True)
    pieces = [each for each in Bucket(child(uri, RUN)).entries() if each.name.startswith("journal/")]
    assert 3 <= len(pieces) <= 4 and max(each.size for each in pieces) < PIECE_BYTES + 11_000
    other, _ = fresh(tmp_path, uri)
    assert [event["n"] for _, event in other.store.events()] == list(range(40))


def test_a_line_that_is_not_durable_waits_for_the_next_that_is(tmp_path: Path, uri: str) -> None:
    machine = Machine(tmp_path / "a", uri)
    machine.start()
    before = [each.size for each in Bucket(uri).entries()]
    machine.store.append({"type": "note"})
    assert [each.size for each in Bucket(uri).entries()] == before
    machine.store.append({"type": "note"}, durable=True)
    assert len(list(fresh(tmp_path, uri)[0].store.events())) == 2


def test_the_driver_that_came_later_has_the_run(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    first.start()
    first.commit(0)
    second, _ = fresh(tmp_path, uri)
    second.commit(1)
    with pytest.raises(LeaseLost, match="taken over by test"):
        first.commit(1)
    first.store.append({"type": "late"}, durable=True)  # needs no lease; it lies beside the run
    second.commit(2)
    third, found = fresh(tmp_path, uri)
    assert found is not None and third.versions == [0, 1, 2]
    assert "late" not in {event["type"] for _, event in third.store.events()}


def test_two_that_come_at_once_with_one_epoch(tmp_path: Path, uri: str) -> None:
    first, second = Machine(tmp_path / "a", uri), Machine(tmp_path / "b", uri)
    first.start()
    lease = Path(uri.removeprefix("file://")) / RUN / "lease.json"
    mine = lease.read_bytes()
    lease.unlink()
    second.store._clock = lambda: 5.0
    second.start()
    assert second.store.epoch == first.store.epoch
    with pytest.raises(LeaseLost):
        first.commit(0)
    assert mine != lease.read_bytes()
    second.commit(0)


def test_a_run_that_was_taken_out_of_the_store_is_not_gone_on_with(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    first.start()
    shutil.rmtree(uri.removeprefix("file://"))
    with pytest.raises(StoreAway, match="lease"):
        first.commit(0)


def test_what_another_machine_went_on_from_is_set_aside(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    first.start()
    first.commit(0)
    first.store.append({"type": "note", "text": "the store never had it"})
    first.store.release()
    second, _ = fresh(tmp_path, uri)
    second.commit(1)
    again = Machine(tmp_path / "a", uri)
    found = again.start()
    assert found is not None and found.version == 1
    assert "text" not in str(list(again.store.events()))
    (aside,) = (tmp_path / "a" / SET_ASIDE).iterdir()
    assert "the store never had it" in (aside / "journal.jsonl").read_text()


def test_a_damaged_copy_is_brought_anew(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    first.start()
    first.commit(0)
    first.commit(1)
    first.store.release()
    state = first.local / "checkpoints" / checkpoint_name(1) / STATE
    state.write_bytes(state.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    found = Machine(tmp_path / "a", uri).start()
    assert found is not None and (found.version, found.skipped) == (1, ())


def test_a_missing_piece_is_named(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    first.start()
    first.store.append({"type": "note", "text": "x" * PIECE_BYTES}, durable=True)
    first.store.append({"type": "note"}, durable=True)
    pieces = sorted((Path(uri.removeprefix("file://")) / RUN / "journal").iterdir())
    assert len(pieces) == 2
    pieces[0].unlink()
    with pytest.raises(Exception, match=f"a piece before {pieces[1].name} is missing"):
        Machine(tmp_path / "b", uri)


def test_those_who_look_get_the_journal_and_no_checkpoints(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SILORAY_CACHE", str(tmp_path / "cache"))
    machine = Machine(tmp_path / "a", uri)
    (machine.local / "command.json").write_text("{}")
    machine.start()
    machine.commit(0)
    seen = look(uri) / RUN
    assert sorted(each.name for each in seen.iterdir()) == [
        ".seen",
        "command.json",
        "journal.jsonl",
        "lease.json",
    ]
    assert len(read_journal(seen / "journal.jsonl")[0]) == 2
    machine.commit(1)
    assert len(read_journal(look(uri) / RUN / "journal.jsonl")[0]) == 4
    shutil.rmtree(uri.removeprefix("file://"))
    assert list(look(uri).iterdir()) == []


def test_a_run_that_is_driven_here_is_looked_at_here(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SILORAY_CACHE", str(tmp_path / "cache"))
    local = runs_copy(uri) / RUN
    store = Store(local, open_mirror(child(uri, RUN), local))
    store.acquire("test")
    store.append({"type": "note"})
    assert len(read_journal(look(uri) / RUN / "journal.jsonl")[0]) == 1
    store.release()
    assert read_journal(look(uri) / RUN / "journal.jsonl")[0] == []


def test_what_is_not_there_yet_is_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SILORAY_CACHE", str(tmp_path / "cache"))
    assert list(look(f"file://{tmp_path}/nothing").iterdir()) == []


@pytest.mark.parametrize("bad", ["foo://x/y", "s3://", "file:///proc/nowhere", "s3://buck et/x"])
def test_what_cannot_be_used_is_one_line(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "PAUSES_S", ())
    with pytest.raises(BadInput, match="cannot be") as told:
        Bucket(bad).check()
    assert "\n" not in str(told.value)


def test_no_password_is_taken_or_told() -> None:
    uri = "s3://key:secret@bucket/runs?scheme=http"
    with pytest.raises(BadInput) as told:
        checked(uri)
    assert "secret" not in str(told.value) and "s3://bucket/runs" in str(told.value)
    assert shown(uri) == "s3://bucket/runs"
    assert checked("gs://anonymous@bucket/runs") == "gs://anonymous@bucket/runs"


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SILORAY_CACHE", "/c")
    assert child("s3://b/runs/?scheme=http", "r") == "s3://b/runs/r?scheme=http"
    assert copies("s3://b/runs?endpoint_override=h:1", "runs") == Path("/c/runs/s3@h:1/b/runs")
    assert copies("file:///x/../y", "seen") == Path("/c/seen/file/x/y")


def test_an_attempt_that_fails_is_made_again(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "PAUSES_S", (0.0, 0.0))
    bucket, failures = Bucket(uri), [OSError("gone"), OSError("still gone")]

    def attempt() -> int:
        if failures:
            raise failures.pop()
        return 7

    assert bucket._tried("x", attempt) == 7
    failures += [OSError("a\n  b")] * 3
    with pytest.raises(StoreAway, match="the store does not answer: a b"):
        bucket._tried("x", attempt)
    assert json.dumps(str(StoreAway("s3://b/x", "why"))) == '"the store does not answer: why: s3://b/x"'


class Unplugged(Bucket):
    """Dies with the n-th reading of the store."""

    def __init__(self, uri: str, last: int) -> None:
        super().__init__(uri)
        self.reads, self._last = 0, last

    def get(self, name: str) -> bytes:
        self._read()
        return super().get(name)

    def fetch(self, name: str, path: Path) -> None:
        self._read()
        path.write_bytes(b"half of it")
        super().fetch(name, path)

    def _read(self) -> None:
        self.reads += 1
        if self.reads == self._last:
            raise Crash


def test_a_machine_that_dies_while_it_brings_the_run_brings_it_again(tmp_path: Path, uri: str) -> None:
    first = Machine(tmp_path / "a", uri)
    first.start()
    for version in range(ROUNDS):
        first.commit(version)
    for last in range(1, 100):
        bucket, local = Unplugged(child(uri, RUN), last), tmp_path / f"{last}" / RUN
        try:
            pull(bucket, local)
        except Crash:
            held = pull(Bucket(child(uri, RUN)), local)
            assert len(held.checkpoints) == 3
            found = Store(local).newest()
            assert found is not None and (found.version, found.skipped) == (ROUNDS - 1, ())
            assert len(read_journal(local / "journal.jsonl")[0]) == 2 * ROUNDS
        else:
            assert last > 6
            return
    raise AssertionError("the script never ends")


def test_list_and_show_take_a_uri(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SILORAY_CACHE", str(tmp_path / "cache"))
    machine = Machine(tmp_path / "a", uri)
    machine.start()
    machine.store.append({"type": "note"}, durable=True)
    listed = CliRunner().invoke(app, ["list", "--json", "--runs-dir", uri])
    assert [row["run_id"] for row in json.loads(listed.stdout)] == [RUN]
    empty = CliRunner().invoke(app, ["list", "--runs-dir", f"file://{tmp_path}/nothing"])
    assert empty.stdout == f"file://{tmp_path}/nothing: no runs here\n"
    for bad in ("s3://key:secret@bucket/runs", str(machine.local / "journal.jsonl")):
        refused = CliRunner().invoke(app, ["show", "last", "--runs-dir", bad])
        assert refused.exit_code == 2 and "secret" not in refused.output
