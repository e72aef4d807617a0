"""Following a run: nothing is missed, nothing is told twice, history is not told again."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import follow as following
from orchestrator.cli.follow import follow
from orchestrator.summary import summarise
from tests.support import scripted


@dataclass
class Pieces:
    """A run whose events come in given pieces; ``restart`` counts them afresh before that piece."""

    pieces: list[list[dict[str, Any]]]
    restart: int | None = None
    run_id: str = "heart-1"
    run_dir: Path = Path("nowhere")
    told: list[dict[str, Any]] = field(default_factory=list)
    turn: int = 0

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        if self.turn < len(self.pieces):
            if self.turn == self.restart:
                self.told = []
            self.told = self.told + self.pieces[self.turn]
            self.turn += 1
        return self.told[after:], len(self.told)

    def outcome(self) -> scripted.Outcome | None:
        return scripted.Outcome("done", 0) if self.turn == len(self.pieces) else None

    def stop(self, now: bool = False) -> None:
        raise AssertionError("nobody asked")

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE_S", 0.0)


def told(capsys: pytest.CaptureFixture[str], run: Pieces, since: float | None = None) -> list[str]:
    follow(run, True, lambda show: None, since)
    return [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()]


def test_every_event_is_told_once_however_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    lines = scripted.whole_run()[7:]
    whole = [line["type"] for line in lines]
    assert told(capsys, Pieces([lines])) == whole
    assert told(capsys, Pieces([[line] for line in lines])) == whole
    assert told(capsys, Pieces([lines[:2], [], lines[2:5], lines[5:], []])) == whole


def test_a_watcher_hears_of_the_present_opening(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, Pieces([scripted.whole_run()])) == [line["type"] for line in scripted.whole_run()[7:]]


def test_whoever_started_it_hears_of_what_came_since(capsys: pytest.CaptureFixture[str]) -> None:
    """The history may come alone, before the driver has opened the run."""
    lines = scripted.as_told(scripted.whole_run())
    run = Pieces([lines[:7], lines[7:]])
    assert told(capsys, run, since=time.time()) == [line["type"] for line in lines[7:]]


def test_history_is_in_the_summary_all_the_same() -> None:
    lines = scripted.as_told(scripted.whole_run())
    followed = follow(Pieces([lines[:7], lines[7:]]), True, lambda show: None, since=time.time())
    summary = summarise(followed.durable)
    assert [each["version"] for each in summary["versions"]] == [1, 2, 3]
    assert summary["resumed"] == 1
    assert summary["ended"] > time.time() - 60, "what comes without a time happened when it came"


def test_a_driver_started_anew_counts_afresh_and_nothing_is_counted_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = scripted.whole_run()
    launched = [{"type": "silo_launched", "silo": "va", "version": 0, "attempt": 1}] * 20
    run = Pieces([[*lines[:7], *launched], lines[:9], lines[9:]], restart=1)
    followed = follow(run, True, lambda show: None)
    out = capsys.readouterr().out
    assert out.count('"resumed_from":1') == out.count("run_closed") == 1
    summary = summarise(followed.durable)
    assert (summary["resumed"], len(summary["versions"]), len(summary["lost"])) == (1, 3, 1)


def test_signal_handlers_are_put_back() -> None:
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    follow(Pieces([scripted.whole_run()]), True, lambda show: None)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
