"""The silo's privacy ledger as a file: nothing can be changed unnoticed, and a torn end is no damage."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import LedgerHead
from silos.ledger import Ledger, Line, contains, head_of


def line(version: int = 0, **changes: Any) -> Line:
    known: dict[str, Any] = {
        "previous": "",
        "salt": "",
        "at": "2026-06-01T10:00:00.000+00:00",
        "dataset": "heart",
        "data": "f" * 64,
        "new_rows": False,
        "job": "j" * 64,
        "run": "run",
        "version": version,
        "unit": "record",
        "part": "train",
        "q": 0.032,
        "sigma": 1.2,
        "steps": 30,
        "seen": LedgerHead(0, "0" * 64, "a2V5", "c2ln"),
    }
    return Line(**{**known, **changes})


def written(folder: Path, num: int = 4) -> Ledger:
    ledger = Ledger(folder)
    for version in range(num):
        with ledger.writing() as writing:
            writing.append([line(version)])
    return ledger


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    ledger = written(tmp_path)
    with ledger.writing() as writing:
        writing.append([line(4), line(4, part="test")])
    entries = ledger.entries()
    assert [entry.line.version for entry in entries] == [0, 1, 2, 3, 4, 4]
    assert [entry.line.previous for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]
    assert head_of(entries) == LedgerHead(6, entries[-1].hash)
    assert (
        oct(ledger.path.stat().st_mode)[-3:] == "600" and oct(ledger.path.parent.stat().st_mode)[-3:] == "700"
    )


def test_a_silo_that_never_spent_has_no_lines_and_an_empty_head(tmp_path: Path) -> None:
    assert Ledger(tmp_path).entries() == [] and not list(tmp_path.iterdir())
    assert contains([], LedgerHead(0, "anything"))


EDITS: dict[str, Any] = {
    "salt": "ab",
    "at": "2026-06-01T10:00:00.001+00:00",
    "dataset": "lungs",
    "data": "e" * 64,
    "new_rows": True,
    "job": "k" * 64,
    "run": "other",
    "version": 9,
    "unit": "silo",
    "part": "test",
    "q": 0.031,
    "sigma": 12.0,
    "steps": 3,
    "previous": "1" * 64,
    "seen": None,
}


@pytest.mark.parametrize("field", Line.model_fields)
@pytest.mark.parametrize("rehashed", [False, True])
def test_no_field_can_be_edited(tmp_path: Path, field: str, rehashed: bool) -> None:
    """Not even by somebody who puts the right hash in that line: the next one names the old one."""
    ledger = written(tmp_path)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    edited = {**json.loads(lines[1]), field: EDITS[field]}
    del edited["hash"]
    if rehashed:
        from silos.ledger import _written

        lines[1] = _written(Line.model_validate_json(json.dumps(edited)))[1]
    else:
        rest = json.dumps(edited, separators=(",", ":"))[1:]
        lines[1] = lines[1][:74] + b"," + rest.encode() + b"\n"
        assert lines[1].startswith(b'{"hash":"')
    ledger.path.write_bytes(b"".join(lines))
    number = 3 if rehashed and field != "previous" else 2
    with pytest.raises(
        BadInput, match=rf"spent\.jsonl: line {number} .*put the newest copy of the file back"
    ) as failed:
        ledger.entries()
    assert str(tmp_path) not in failed.value.public and f"line {number}" in failed.value.public
    with pytest.raises(BadInput, match=f"line {number} "), ledger.writing():
        raise AssertionError("not opened for writing")


@pytest.mark.parametrize("how", ["dropped", "swapped", "twice", "blank", "not utf-8", "a key twice"])
def test_no_line_can_be_dropped_moved_or_added(tmp_path: Path, how: str) -> None:
    ledger = written(tmp_path)
    a, b, c, d = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(
        b"".join(
            {
                "dropped": [a, c, d],
                "swapped": [a, c, b, d],
                "twice": [a, b, b, c, d],
                "blank": [a, b, b"\n", c, d],
                "not utf-8": [a, b, b"\xff\xfe\n", c, d],
                "a key twice": [a, b, c.replace(b'"q":', b'"steps":1,"q":'), d],
            }[how]
        )
    )
    with pytest.raises(BadInput, match=r"line [23] "):
        ledger.entries()


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_line_is_dropped(tmp_path: Path, kept: int) -> None:
    """It was never acknowledged. The next line takes its place."""
    ledger = written(tmp_path)
    whole = ledger.path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    ledger.path.write_bytes(whole[: -len(last)] + last[:kept])
    assert len(ledger.entries()) == 3
    with ledger.writing() as writing:
        assert len(writing.entries) == 3
        writing.append([line(9)])
    assert [entry.line.version for entry in ledger.entries()] == [0, 1, 2, 9]


def test_a_hole_that_a_power_cut_leaves_is_a_torn_line(tmp_path: Path) -> None:
    """A block that never reached the disk reads as zeros; in an older line it is damage."""
    ledger = written(tmp_path)
    *before, last = ledger.path.read_bytes().splitlines(keepends=True)
    holed = last[:100] + b"\0" * 100 + last[200:]
    ledger.path.write_bytes(b"".join([*before, holed]))
    assert len(ledger.entries()) == 3
    ledger.path.write_bytes(b"".join([*before, holed, last]))
    with pytest.raises(BadInput, match="line 4 is not as it was written"):
        ledger.entries()


def test_a_power_cut_can_tear_the_last_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a file reach the disk in any order: of two lines that are not durable the first one may have the hole,
    which could not be told from damage."""
    ledger, done = written(tmp_path), []
    write, fsync = os.write, os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *given: (done.append(given[1].count(b"\n")), write(*given))[1])
        patch.setattr(os, "fsync", lambda *given: (done.append("durable"), fsync(*given))[1])
        with ledger.writing() as writing:
            writing.append([line(4), line(4, part="test")])
    assert done == [1, "durable", 1, "durable"]


def test_a_new_ledger_is_durable_by_its_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("silos.ledger.sync_folder", synced.append)
    written(tmp_path)
    assert synced == [tmp_path / "ledger", tmp_path]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_what_the_disk_does_not_take_is_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    ledger = written(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with (
            pytest.raises(BadInput, match="No space left on device: what cannot be entered"),
            ledger.writing() as writing,
        ):
            writing.append([line(9)])
    assert [entry.line.version for entry in ledger.entries()] == [0, 1, 2, 3]


def test_a_link_in_the_ledgers_place_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "other")
    (tmp_path / "own" / "ledger").mkdir(parents=True)
    (tmp_path / "own" / "ledger" / "spent.jsonl").symlink_to(tmp_path / "other" / "ledger" / "spent.jsonl")
    with pytest.raises(BadInput), Ledger(tmp_path / "own").writing():
        raise AssertionError("not opened")
