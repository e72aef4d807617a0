"""The view folds events; what is shown is made of the view."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli import words
from orchestrator.cli.display import JsonLines, Lines, render, sentence, shown
from orchestrator.cli.view import View, progress
from orchestrator.core.events import EVENT, Event
from tests.support import scripted


def event(type_: str, **given: Any) -> Event:
    return EVENT.validate_python({"type": type_, **given})


def folded(*lines: dict[str, Any]) -> View:
    view = View()
    for line in lines:
        view.fold(EVENT.validate_python(line))
    return view


def begun() -> View:
    return folded(scripted.opened(), scripted.joined("cleveland", 199, 104), scripted.joined("va", 85, 45))


def round_opened(version: int, *cohort: str, time: float = 110.0) -> Event:
    return event("round_opened", version=version, cohort=list(cohort), time=time)


def picture(view: View, now: float = 111.0, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render(view, now))
    return console.file.getvalue()


def test_a_new_run_starts_with_silos_that_are_starting() -> None:
    view = folded(scripted.opened())
    assert (view.run_id, view.total, view.metric, view.version, view.round) == (
        "heart-1",
        3,
        "accuracy",
        0,
        0,
    )
    assert {name: silo.state for name, silo in view.silos.items()} == {
        "cleveland": "starting",
        "va": "starting",
    }
    assert view.waits_for() == ["cleveland", "va"]


def test_a_round_from_version_v_makes_the_next_one() -> None:
    view = begun()
    view.fold(round_opened(0, "cleveland"))
    assert (view.round, view.version) == (1, 0)
    assert (view.silos["cleveland"].says, view.silos["va"].says) == ("waiting", "not in this round")


def test_a_silo_is_followed_through_its_work() -> None:
    view = begun()
    view.fold(round_opened(0, "cleveland", "va"))
    view.fold(event("silo_launched", silo="va", version=0, attempt=1))
    assert view.silos["va"].says == "working"
    step = {"silo": "va", "version": 0, "num_steps": 120, "total_steps": 300}
    view.fold(event("silo_progress", phase="evaluate", **step))
    assert view.silos["va"].says == "evaluating"
    view.fold(event("silo_progress", phase="train", **step))
    assert view.silos["va"].says == "training 120/300"
    assert view.waits_for() == ["va"]
    view.fold(event("update_arrived", silo="va", version=0, staleness=0))
    assert (view.silos["va"].state, view.silos["va"].says) == ("delivered", "delivered")
    assert view.waits_for() == []


def test_refusals_and_losses_say_why_and_are_counted() -> None:
    view = begun()
    view.fold(event("update_refused", silo="va", version=0, code="norm", reason="norm 9 is above 3"))
    view.fold(event("silo_down", silo="cleveland", version=0, why="process ended"))
    assert view.silos["va"].says == "refused: norm 9 is above 3"
    assert view.silos["cleveland"].says == "lost: process ended"
    assert (view.num_refused, view.num_lost) == (1, 1)
    view.fold(round_opened(1, "cleveland", "va"))
    assert (view.silos["va"].state, view.silos["cleveland"].state) == ("ready", "lost")
    view.fold(EVENT.validate_python(scripted.joined("cleveland", 199, 104)))
    assert view.silos["cleveland"].state == "ready"


def test_the_next_round_may_be_opened_before_the_version_is_durable() -> None:
    view = begun()
    view.fold(round_opened(0, "cleveland", "va"))
    view.fold(round_opened(1, "cleveland", "va", time=112.0))
    view.fold(event("waiting", version=1, silos=["va"], why="they have not joined", until_s=60))
    view.fold(EVENT.validate_python(scripted.closed(1, scripted.figures(0, 0.5))))
    assert (view.version, view.round, view.round_since) == (1, 2, 112.0)
    assert view.waits_for() == ["va"]


def test_late_work_goes_on_into_the_next_round() -> None:
    view = begun()
    view.fold(event("silo_launched", silo="va", version=0, attempt=2))
    view.fold(round_opened(1, "cleveland", "va"))
    assert view.silos["va"].says == "working, attempt 2"
    view.fold(event("update_arrived", silo="va", version=0, staleness=1))
    assert view.silos["va"].says == "delivered, 1 version(s) late"


def test_metrics_trend_by_what_is_better() -> None:
    view = folded(*scripted.whole_run())
    assert view.judged_by == ["loss", "accuracy"]
    assert view.series("accuracy") == [0.5, 0.7, 0.8, 0.75]
    assert (view.trend("accuracy"), view.trend("loss")) == ("worse", "worse")
    assert view.best == 2
    assert begun().trend("loss") == "same"


def test_time_left_is_the_median_of_the_last_rounds() -> None:
    view = folded(*scripted.whole_run()[:5])
    view.round_seconds = [4.0, 2.0, 3.0]
    assert view.seconds_left(now=200.0) == 6.0
    view.fold(round_opened(1, "va", time=200.0))
    assert view.seconds_left(now=201.0) == 5.0
    assert begun().seconds_left(now=0.0) is None
    assert folded(*scripted.whole_run()).seconds_left(now=0.0) is None


def test_a_run_opened_again_goes_on_from_its_checkpoint() -> None:
    view = folded(*scripted.whole_run()[:8])
    assert (view.version, view.resumed_from, view.silos["va"].state) == (1, 1, "starting")
    assert sorted(view.figures) == [0]
    view.forget()
    assert (view.version, view.silos, view.num_refused) == (0, {}, 0)


def test_progress_without_steps_is_the_phase_alone() -> None:
    step = {"silo": "va", "version": 0, "num_steps": 0, "total_steps": 0}
    assert progress(event("silo_progress", phase="load", **step)) == "loading data"
    assert progress(event("silo_progress", phase="train", **step)) == "training"
    assert progress(event("silo_progress", phase="sealing", **step)) == "sealing"


def test_a_line_for_each_round_and_for_what_is_out_of_the_ordinary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view, show = View(), Lines()
    for line in scripted.whole_run():
        one = EVENT.validate_python(line)
        view.fold(one)
        show(line, one, view)
    assert capsys.readouterr().out.splitlines() == [
        "run heart-1: heart-disease, 2 silos, 3 rounds",
        "cleveland joined: 199 train, 104 test rows, cpu, on n1",
        "va joined: 85 train, 45 test rows, cpu, on n1",
        "round 1/3: 2 updates in 0.50 s; version 0: loss 0.5  accuracy 0.5",
        "va refused in round 1 (nonfinite): NaN in params",
        "va lost in round 1: process ended",
        "run heart-1: heart-disease, 2 silos, 3 rounds, goes on from version 1",
        "cleveland joined: 199 train, 104 test rows, cpu, on n1",
        "va joined: 85 train, 45 test rows, cpu, on n1",
        "round 2/3: 1 updates in 0.50 s; version 1: loss 0.3  accuracy 0.7",
        "round 3/3: 2 updates in 0.50 s; version 2: loss 0.2  accuracy 0.8",
    ]


def test_waiting_says_for_whom_why_and_how_long() -> None:
    waiting = event("waiting", version=1, silos=["va"], why="the round\nneeds it", until_s=600)
    assert sentence(waiting, begun()) == "waiting for va: the round needs it; gives up in 10 min 00 s"
    assert sentence(event("update_arrived", silo="va", version=0, staleness=0), begun()) == ""
    why = "the round needs it; va is closed until Mon 20:00 (Europe/Zurich)"
    closed = event("waiting", version=1, silos=["va"], why=why, until_s=None)
    assert sentence(closed, begun()) == f"waiting for va: {why}", "as long as it takes"


def test_the_mode_that_auto_chose_is_told_with_its_reason() -> None:
    chosen = event("mode_chosen", version=3, mode="semi_sync", reason="va takes 9 times as long", seconds={})
    assert sentence(chosen, begun()) == "goes on in mode semi_sync: va takes 9 times as long"


def test_a_silo_that_is_closed_says_until_when() -> None:
    view, closed = begun(), "va is closed until\nMon 20:00 (Europe/Zurich)"
    busy = event("silo_busy", silo="va", reason=closed)
    view.fold(busy)
    assert view.silos["va"].state == "starting" and "Mon 20:00" in view.silos["va"].says
    assert sentence(busy, view) == "va will join later: va is closed until Mon 20:00 (Europe/Zurich)"
    view.fold(round_opened(1, "cleveland", "va"))
    assert "Mon 20:00" in view.silos["va"].says, "until it joins"


def test_json_lines_are_the_events_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    show = JsonLines()
    for line in scripted.whole_run():
        show(line, EVENT.validate_python(line), View())
    show.tell("a word to people")
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == scripted.whole_run()
    assert err == "a word to people\n"


def test_the_picture_shows_rounds_silos_metrics_and_whom_it_waits_for() -> None:
    view = folded(*scripted.whole_run()[:-3])
    view.fold(round_opened(2, "cleveland", "va", time=110.0))
    step = {"silo": "cleveland", "version": 2, "num_steps": 120, "total_steps": 300}
    view.fold(event("silo_progress", phase="train", **step))
    view.fold(event("waiting", version=2, silos=["va"], why="the round needs it", until_s=60))
    text = picture(view)
    for part in (
        "heart-disease",
        "heart-1",
        "round 3 of 3",
        "training 120/300",
        "waits for va: the round needs it",
    ):
        assert part in text
    assert "199" in text
    assert "1 refused, 1 lost so far" in text
    assert "accuracy 0.7" in text


def test_the_picture_is_drawn_before_anything_is_known() -> None:
    assert "starting" in picture(View())


def test_reasons_are_no_markup() -> None:
    view = begun()
    view.fold(event("update_refused", silo="va", version=0, code="norm", reason="[red]9[/red] > [3]"))
    assert "[red]9[/red] > [3]" in picture(view)


def test_of_very_many_silos_those_worth_a_look_are_listed() -> None:
    names = [f"s{index:03d}" for index in range(200)]
    view = folded(scripted.opened(job={**scripted.JOB, "silos": names}))
    for name in names:
        view.fold(EVENT.validate_python(scripted.joined(name, 10, 5)))
    view.fold(event("silo_down", silo="s150", version=0, why="process ended"))
    assert [name for name, _ in shown(view)][:2] == ["s150", "s000"]
    text = picture(view)
    assert "s150" in text
    assert "and 176 more silos" in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "0.12 s"), (12.3, "12 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7860, "2 h 11 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_sizes_and_sparklines() -> None:
    assert [words.size(each) for each in (12, 3.4e6, 2e13)] == ["12 B", "3.4 MB", "20 TB"]
    assert words.sparkline([0, 7 / 8, 1]) == "▁██"
    assert words.sparkline([]) == ""
    assert words.sparkline([2.0, 2.0]) == "▁▁"
    assert words.some(["a", "b"], 1) == "a and 1 more"
