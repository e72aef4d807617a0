"""The report at the end of a run: in the journal before its end, asked for once, never the run's undoing."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core import events
from orchestrator.core.faults import FaultInjected, arm
from orchestrator.core.messages import Assess
from orchestrator.summary import summarise
from tests.support.federation import Ended, LossyChannel, Unheard, federate, journal
from tests.support.torch_site import blob_sites, makers, torch_job

REPORT = {"adapt": [1, 3]}


def run(folder: Path, sites: Any = None, names: str = "abc", **given: Any) -> Ended:
    sections = {"report": {**REPORT, **given.pop("report", {})}, **given.pop("sections", {})}
    job = torch_job(names, **sections)
    return federate(job, makers(sites or blob_sites(folder / "silos", names)), folder, **given)


def types(history: list[events.Event]) -> list[str]:
    return [event.type for event in history if event.durable]


def test_every_silo_is_assessed_before_the_run_is_closed(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert types(ended.events)[-5:] == ["silo_assessed"] * 3 + ["run_assessed", "run_closed"]
    each = {event.silo: event for event in ended.of(events.SiloAssessed)}
    verdict = ended.of(events.RunAssessed)[0]
    best = ended.of(events.RunClosed)[0].best_version
    assert set(each) == set("abc") and verdict.version == best == each["a"].version
    assert all((one.num_steps, one.run_steps) == (6, 6) for one in each.values())
    measured = {
        closed.evaluated.version: closed.evaluated
        for closed in [*ended.of(events.RoundClosed), *ended.of(events.VersionEvaluated)]
    }
    for silo, one in each.items():
        assert one.models["global"].metrics == pytest.approx(measured[best].silos[silo])
    assert verdict.do_no_harm == (not verdict.harmed) and verdict.unknown == []
    report = summarise(journal(tmp_path))["report"]
    assert list(report["silos"]) == ["a", "b", "c"] and report["do_no_harm"] == verdict.do_no_harm


def test_a_job_may_do_without(tmp_path: Path) -> None:
    ended = run(tmp_path, report={"silos": False})
    assert not ended.of(events.SiloAssessed) and not ended.of(events.RunAssessed)
    assert summarise(journal(tmp_path))["report"] is None


def test_a_driver_that_died_asks_only_those_that_it_has_not_heard(tmp_path: Path) -> None:
    sites = blob_sites(tmp_path / "silos")
    arm("silo.assessed:2:raise")
    try:
        with pytest.raises(FaultInjected):
            run(tmp_path, sites, channel=partial(Unheard, kind=Assess))
    finally:
        arm(None)
    before = [event.silo for event in journal(tmp_path) if isinstance(event, events.SiloAssessed)]
    assert len(before) == 2
    again = run(tmp_path, sites, channel=LossyChannel)
    asked = again.driver.channel.asked
    assert {silo for silo, kind in asked if kind == "Assess"} == set("abc") - set(before)
    assert not any(kind == "Train" for _, kind in asked)
    verdict = again.of(events.RunAssessed)[0]
    assert again.outcome.status == "done" and verdict.unknown == []
    assert set(verdict.benefit) == set("abc")


@pytest.mark.parametrize("how", ["before", "reply"])
def test_a_silo_lost_in_it_is_told_and_the_run_is_done(tmp_path: Path, how: str) -> None:
    ended = run(tmp_path, channel=lambda makers: LossyChannel(makers, {("b", "Assess", 1): how}))
    assert ended.outcome.status == "done"
    assert [(event.silo, event.why) for event in ended.of(events.SiloDown)] == [
        ("b", f"not assessed: planted: {how}")
    ]
    verdict = ended.of(events.RunAssessed)[0]
    assert verdict.unknown == ["b"] and verdict.do_no_harm is False and not verdict.blocked


def test_silos_held_out_join_and_never_train(tmp_path: Path) -> None:
    ended = run(tmp_path, names="abcd", sections={"held_out": ["d"]})
    assert ended.outcome.status == "done"
    assert ended.contributors == [["a", "b", "c"]] * 2
    assert all("d" not in closed.evaluated.silos for closed in ended.rounds)
    assert "d" not in ended.of(events.VersionEvaluated)[0].evaluated.silos
    assert ended.of(events.RunClosed)[0].never_contributed == []
    held = next(event for event in ended.of(events.SiloAssessed) if event.silo == "d")
    assert held.held_out and held.num_steps == 6 and [point.steps for point in held.curve] == [0, 1, 3]
    verdict = ended.of(events.RunAssessed)[0]
    assert "d" not in verdict.benefit and "d" not in {one.worst_silo for one in verdict.spreads.values()}
    assert {"global", "after 0 steps", "after 3 steps"} <= verdict.held_out.keys()
    assert run(tmp_path / "without", names="abc").digest == ended.digest


def test_with_private_layers_the_last_version_is_assessed(tmp_path: Path) -> None:
    ended = run(tmp_path, sections={"private": ["head.*"], "rounds": {"total": 4}})
    assert {event.version for event in ended.of(events.SiloAssessed)} == {4}
