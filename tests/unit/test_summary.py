"""The summary against a journal made by hand."""

import json
from pathlib import Path

import pytest

from orchestrator.core.events import parse
from orchestrator.journal import JournalDamaged
from orchestrator.summary import read_summary, summarise, write_summary
from tests.support import scripted


@pytest.fixture
def summary() -> dict:
    return summarise(parse(scripted.whole_run()))


def test_says_who_and_how_it_ended(summary: dict) -> None:
    assert (summary["run_id"], summary["name"], summary["status"]) == ("heart-1", "heart-disease", "done")
    assert summary["reason"] == "all rounds"
    assert summary["job_digest"] == "d" * 64
    assert summary["parameters_digest"] == "p" * 64
    assert summary["total_rounds"] == 3
    assert (summary["started"], summary["ended"]) == (100.0, 120.0)


def test_figures_stand_with_the_version_that_they_are_of_not_with_the_round_that_brought_them(
    summary: dict,
) -> None:
    accuracy = [each["metrics"]["global"]["accuracy"] for each in summary["versions"]]
    assert summary["initial"]["metrics"]["global"]["accuracy"] == 0.5
    assert [each["version"] for each in summary["versions"]] == [1, 2, 3]
    assert accuracy == [0.7, 0.8, 0.75]
    assert summary["versions"][0]["metrics"]["silos"] == {"cleveland": {"loss": 0.25, "accuracy": 0.75}}
    assert summary["versions"][0]["missing"] == ["va"]


def test_contributors_stand_with_the_version_that_they_made(summary: dict) -> None:
    assert [[each["silo"] for each in version["contributors"]] for version in summary["versions"]] == [
        ["cleveland", "va"],
        ["cleveland"],
        ["cleveland", "va"],
    ]
    first = summary["versions"][0]["contributors"][0]
    assert first == {
        "silo": "cleveland",
        "weight": 0.7,
        "staleness": 0,
        "base_version": 0,
        "num_examples": 10,
        "num_steps": 5,
        "norm": 0.5,
        "privacy": {},
    }
    assert (summary["versions"][2]["bytes_up"], summary["versions"][2]["bytes_down"]) == (300, 600)
    assert summary["versions"][1]["seconds"] == {"wait": 0.4, "round": 0.5}


def test_incidents_best_and_silos(summary: dict) -> None:
    assert summary["refused"] == [
        {"version": 1, "silo": "va", "code": "nonfinite", "reason": "NaN in params"}
    ]
    assert summary["lost"] == [{"version": 1, "silo": "va", "why": "process ended", "time": 111.6}]
    assert summary["best"] == {"version": 2, "metric": "accuracy", "value": 0.8}
    assert summary["never_contributed"] == []
    va = summary["silos"]["va"]
    assert va["num_examples"] == {"train": 85, "test": 45}
    assert va["fingerprint"] == "f-va"
    assert (va["first"]["accuracy"], va["last"]["accuracy"]) == (0.4, 0.72)


def test_a_crash_is_counted_with_the_round_that_was_in_hand(summary: dict) -> None:
    assert (summary["resumed"], summary["redone_rounds"]) == (1, 1)


def test_a_crash_after_the_last_round_has_cost_none() -> None:
    lines = scripted.whole_run()
    summary = summarise(parse([*lines[:-1], scripted.opened(resumed_from=3), lines[-1]]))
    assert (summary["resumed"], summary["redone_rounds"]) == (2, 1)


def test_a_run_stopped_and_resumed_has_redone_nothing() -> None:
    lines = scripted.whole_run()
    lines[7:7] = [scripted.ended("stopped")]
    summary = summarise(parse(lines))
    assert (summary["resumed"], summary["redone_rounds"], summary["status"]) == (1, 0, "done")


def test_rounds_behind_the_checkpoint_that_was_gone_back_to_no_longer_count() -> None:
    lines = scripted.whole_run()[:-2]
    again = scripted.closed(
        2, scripted.figures(1, 0.6, cleveland=0.6, va=0.6), scripted.contributor("va", 2, 1.0)
    )
    summary = summarise(
        parse([*lines, {"type": "rewound", "version": 1}, scripted.opened(resumed_from=1), again])
    )
    assert [each["version"] for each in summary["versions"]] == [1, 2]
    assert [each["silo"] for each in summary["versions"][1]["contributors"]] == ["va"]
    assert summary["versions"][0]["metrics"]["global"]["accuracy"] == 0.6
    assert summary["versions"][1]["metrics"]["global"] == {}
    assert summary["best"] is None
    # rounds 2 and 3 were recorded and fell; before, the first crash had cost round 2 (done again since)
    assert (summary["resumed"], summary["redone_rounds"], summary["status"]) == (2, 3, "unfinished")


def test_what_mode_auto_came_to_stands_there_as_long_as_it_holds() -> None:
    lines = scripted.whole_run()[:-2]
    assert summarise(parse(lines))["mode"] is None
    seconds = {"cleveland": 1.0, "va": 9.0}
    chosen = {
        "type": "mode_chosen",
        "version": 2,
        "mode": "semi_sync",
        "reason": "va is slow",
        "seconds": seconds,
    }
    mode = {"version": 2, "mode": "semi_sync", "reason": "va is slow", "seconds": seconds}
    assert summarise(parse([*lines, chosen]))["mode"] == mode
    assert summarise(parse([*lines, chosen, scripted.opened(resumed_from=2)]))["mode"] == mode
    assert summarise(parse([*lines, chosen, scripted.opened(resumed_from=1)]))["mode"] is None


def test_an_unfinished_run_tells_what_it_has() -> None:
    summary = summarise(parse(scripted.whole_run()[:5]))
    assert (summary["status"], summary["parameters_digest"], summary["best"]) == ("unfinished", None, None)
    assert summary["never_contributed"] == []
    assert summarise(parse(scripted.whole_run()[:4]))["never_contributed"] == ["cleveland", "va"]
    assert summarise([])["status"] == "unfinished"


def test_the_best_of_an_unfinished_run_is_the_last_one_marked() -> None:
    assert summarise(parse(scripted.whole_run()[:-1]))["best"] == {
        "version": 2,
        "metric": "accuracy",
        "value": 0.8,
    }


def test_written_as_one_file_in_place_of_an_older_one(tmp_path: Path) -> None:
    run_dir = scripted.write_journal(tmp_path / "heart-1", scripted.whole_run())
    (run_dir / "summary.json").write_text("an older one")
    written = write_summary(run_dir)
    assert json.loads((run_dir / "summary.json").read_text()) == written == read_summary(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["journal.jsonl", "summary.json"]


def test_a_damaged_journal_is_no_summary(tmp_path: Path) -> None:
    run_dir = scripted.write_journal(tmp_path / "heart-1", scripted.whole_run())
    journal = run_dir / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"nonfinite", b"nonfinitf"))
    with pytest.raises(JournalDamaged):
        read_summary(run_dir)
