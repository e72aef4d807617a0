"""A run directory in which somebody put what no driver writes: it is told with its place, and nothing breaks."""

import copy
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import launching
from orchestrator.chain import Chain
from orchestrator.core import events
from orchestrator.store import COUNTERSIGNS, Store
from orchestrator.verdict import Report
from orchestrator.verifying import verify
from tests.support import quadratic
from tests.support.federation import journal, run_quadratic
from tests.support.rewritten import DRIVER, Line, lines, rewritten, write

SILOS = ["s0", "s1", "s2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_quadratic(quadratic.job_of(SILOS, total=3), quadratic.problems(3), folder, signer=DRIVER)
    return folder / "runs" / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy, without what the silos signed at the end."""
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / COUNTERSIGNS).unlink()
    return tmp_path / "run"


def report(run: Path) -> Report:
    return verify(Store(run))


def wrong(run: Path, what: str) -> str:
    return " ".join(next(check.wrong for check in report(run).checks if check.what == what))


def summed(body: bytes) -> bytes:
    return b'{"crc":"%08x",%s' % (zlib.crc32(body), body)


@pytest.mark.parametrize(
    "body",
    [
        b'"epoch":1}',
        b'"commit":null,"epoch":1,"event":[],"prev":"","synced":0}',
        b'"commit":null,"epoch":1,"event":{"type":"waiting"},"prev":"","synced":0}',
        b'"commit":null,"epoch":1,"event":{"seq":4,"type":[]},"prev":"","synced":0}',
        b'"commit":null,"epoch":1,"event":{"seq":4},"prev":7,"synced":0}',
        b'"commit":null,"epoch":1,"event":{"seq":4},"more":1,"prev":"","synced":0}',
        b'"event":' + b"[" * 100_000 + b"}",
    ],
)
def test_a_line_of_another_make(run: Path, body: bytes) -> None:
    raw = lines(run)
    write(run, [*raw[:4], summed(body), *raw[5:]])
    assert "line 5 is damaged" in wrong(run, "journal")


def test_a_line_without_a_type(run: Path) -> None:
    raw = lines(run)
    write(run, [*raw, summed(b'"commit":null,"epoch":1,"event":{"seq":%d},"prev":"","synced":0}' % len(raw))])
    assert f"line {len(raw) + 1} is no event" in wrong(run, "journal")


def test_a_job_file_that_is_none(run: Path) -> None:
    (run / "job.json").write_text("{}")
    assert "job.json is another job" in wrong(run, "job")


def added(run: Path, event: dict[str, Any], commit: int | None = None) -> None:
    """A line more at the end, by the driver."""
    raw = lines(run)
    last = json.loads(raw[-1])
    new = {**copy.deepcopy(last), "event": event, "commit": commit}

    def same(place: int, line: Line) -> Line:
        return line

    write(run, rewritten([*raw, json.dumps(new).encode()], same, sign=True))


def closed(run: Path) -> dict[str, Any]:
    (event,) = (
        each for _, each in Store(run).events() if each["type"] == "round_closed" and each["version"] == 3
    )
    return dict(event)


def test_a_version_of_nobodys_updates_after_the_end(run: Path) -> None:
    """A driver cannot put a model of its own behind what the silos made."""
    before = len(lines(run))
    added(run, {**closed(run), "version": 4, "contributors": []}, commit=4)
    found = wrong(run, "rounds")
    assert f"line {before + 1}: the run was not open" in found
    assert f"line {before + 1}: version 4 is made of nobody's update" in found


def test_a_version_that_stands_there_twice(run: Path) -> None:
    added(run, closed(run), commit=3)
    assert "version 3 follows version 3" in wrong(run, "rounds")


@pytest.mark.parametrize(
    ("base", "said"),
    [(1, "its work on version 1 is in version 2 already"), (3, "its work on version 3 is in version 3")],
)
def test_work_that_counts_twice_or_before_it_was_done(run: Path, base: int, said: str) -> None:
    """A driver that asks a silo twice has two receipts, and the silo's rows would count twice."""

    def change(place: int, line: Line) -> Line:
        if line["event"]["type"] == "round_closed" and line["event"]["version"] == 3:
            line["event"]["contributors"][0]["base_version"] = base
        return line

    write(run, rewritten(lines(run), change, sign=True))
    assert said in wrong(run, "receipts")


def test_a_driver_that_leaves_its_key_behind(run: Path) -> None:
    (opened,) = (each for _, each in Store(run).events() if each["type"] == "run_opened")
    before = len(lines(run))
    added(run, {**opened, "driver_key": "", "resumed_from": 3})
    assert f"line {before + 1}: a driver without a key went on here" in wrong(run, "driver's signatures")


def edited(run: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """The newest checkpoint, sealed again."""
    store = Store(run)
    store._checkpoints.root.joinpath("notes").mkdir()
    store._checkpoints.root.joinpath("vault").mkdir()
    state, record = store._checkpoints.load(3, {})
    plain = {name: record[name] for name in ("event", "meta", "epoch", "journal_lines", "journal_head")}
    change(state, plain)
    store._checkpoints.save(3, state, plain)


def test_a_checkpoint_of_another_make(run: Path) -> None:
    def without(state: dict[str, Any], record: dict[str, Any]) -> None:
        state["weights"] = state.pop("params")

    edited(run, without)
    assert "the checkpoint of version 3 is" in wrong(run, "models")


def test_a_checkpoint_whose_record_is_another(run: Path) -> None:
    edited(run, lambda state, record: record.pop("meta"))
    assert "the checkpoint of version 3 is damaged" in wrong(run, "models")


def test_a_checkpoint_with_one_number_changed(run: Path) -> None:
    def change(state: dict[str, Any], record: dict[str, Any]) -> None:
        state["params"] = state["params"] + np.float32(1e-6)

    edited(run, change)
    assert "another model" in wrong(run, "models")


def test_who_has_signed_how_much_is_said(run: Path) -> None:
    """Where one silo signed more than the others, and where nobody signed the end."""
    num_lines = len(lines(run))
    most = max(report(run).countersigned.values())
    assert report(run).verdict.endswith(
        f"{num_lines} lines, {most} of them signed by 3 silos; for the others only the driver stands"
    )
    found = Report(countersigned={"a": 3, "b": 9, "c": 3}, num_lines=9, versions=1)
    assert found.verdict.endswith("9 lines, 3 of them signed by 3 silos, 9 by 1")


def test_a_version_that_was_made_anew_may_be_another_model(tmp_path: Path) -> None:
    """The newest checkpoint was damaged, and the noise drawn again: silos had both models, and nobody lied."""
    noise = [{"name": "clip", "max_norm": 1.0}, {"name": "gaussian", "noise_multiplier": 1.0}]
    job = quadratic.job_of(SILOS, total=2, privacy=noise, combine={"weights": "uniform"})
    for attempt in range(2):
        run_quadratic(job, quadratic.problems(3), tmp_path, signer=DRIVER)
        if not attempt:
            (file,) = (tmp_path / "runs/run/checkpoints/v000002").glob("*.safetensors")
            file.write_bytes(file.read_bytes()[:-1])
    assert any(isinstance(event, events.Rewound) for event in journal(tmp_path))
    found = report(tmp_path / "runs" / "run")
    assert found.fine, found.verdict


def test_a_silo_that_was_told_of_others_than_contributed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once ``s2`` is in the model the driver goes on to say that it is not."""
    monkeypatch.setattr(
        launching, "sorted", lambda silos: [each for each in sorted(silos) if each != "s2"], raising=False
    )
    run_quadratic(quadratic.job_of(SILOS, total=3), quadratic.problems(3), tmp_path, signer=DRIVER)
    monkeypatch.undo()
    found = report(tmp_path / "runs" / "run")
    (receipts,) = (check for check in found.checks if check.what == "receipts")
    assert len(receipts.wrong) == 6, "three silos each in the two rounds that began from such a model"
    assert all("told of other contributors" in each for each in receipts.wrong)


def test_a_run_that_goes_on_meanwhile_is_no_lie(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal was read in the middle of a line, and before the checkpoints."""
    whole, first = (run / "journal.jsonl").read_bytes(), Chain.of
    (run / "journal.jsonl").write_bytes(whole[: len(whole) // 2])
    assert not report(run).fine, "nobody goes on with it"
    reads = []

    def read(path: Path) -> Chain:
        reads.append(path)
        found = first(path)
        path.write_bytes(whole)
        return found

    monkeypatch.setattr(Chain, "of", read)
    assert report(run).fine and len(reads) == 2
