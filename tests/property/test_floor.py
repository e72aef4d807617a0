"""No average is of fewer silos than the job says, whoever is refused, declines, is lost or is counted twice."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.core import events
from orchestrator.core.messages import Reply, Request, Update
from orchestrator.driver import Driver
from orchestrator.transport.local import LocalChannel
from tests.property.test_driver import BENDS
from tests.support.federation import Bent, Ended, LossyChannel, federate
from tests.support.quadratic import job_of, problems, silo_makers, sites

AT_ARRIVAL, IN_THE_FOLD = BENDS["weight -1"][1], BENDS["nan"][1]

Bends = Mapping[str, Mapping[int, Callable[[Update], Reply]]]


def bent_run(folder: Path, bends: Bends, num_silos: int = 4, **given: Any) -> Ended:
    makers: dict[str, Any] = dict(silo_makers(sites(problems(num_silos), folder / "silos")))
    for silo, bend in bends.items():
        makers[silo] = lambda honest=makers[silo], bend=bend: Bent(honest(), bend)
    during = given.pop("during", lambda *_: None)
    job = job_of([f"s{i}" for i in range(num_silos)], total=4, rounds=given)
    return federate(job, makers, folder, during=during)


def check_ended_short(ended: Ended, lacking: str, *names: str) -> None:
    """The run failed, can go on, and says how many silos are missing and what became of each."""
    assert (ended.outcome.status, ended.outcome.exit_code) == ("failed", 4)
    assert f"{lacking} silos that an average needs are lacking (rounds.min_updates)" in ended.outcome.reason
    assert all(name in ended.outcome.reason for name in names), ended.outcome.reason


def test_three_refused_silos_leave_no_average_of_one(tmp_path: Path) -> None:
    ended = bent_run(tmp_path, {name: {1: AT_ARRIVAL} for name in ("s1", "s2", "s3")}, min_updates=3)
    check_ended_short(ended, "2 of the 3", "s1: weight: ", "s2: weight: ", "s3: weight: ")
    assert [len(names) for names in ended.contributors] == [4]


def test_nor_do_silos_that_are_refused_while_folding(tmp_path: Path) -> None:
    """The fold ends with the second: what the third sent is not read any more."""
    ended = bent_run(tmp_path, {name: {1: IN_THE_FOLD} for name in ("s1", "s2", "s3")}, min_updates=3)
    check_ended_short(ended, "1 of the 3", "s1: nonfinite: ", "s2: nonfinite: ")
    assert [len(names) for names in ended.contributors] == [4]


def test_one_refused_silo_is_left_out(tmp_path: Path) -> None:
    ended = bent_run(tmp_path, {"s1": {1: IN_THE_FOLD}}, min_updates=3)
    assert ended.outcome.status == "done" and [len(names) for names in ended.contributors] == [4, 3, 4, 4]


def test_a_synchronous_round_is_of_three_quarters_at_least(tmp_path: Path) -> None:
    """Without ``min_updates``: one of four may be refused, two may not."""
    one = bent_run(tmp_path / "one", {"s1": {1: AT_ARRIVAL}})
    assert one.outcome.status == "done" and [len(names) for names in one.contributors] == [4, 3, 4, 4]
    two = bent_run(tmp_path / "two", {"s1": {1: AT_ARRIVAL}, "s2": {1: IN_THE_FOLD}})
    check_ended_short(two, "1 of the 3", "s1: weight: ", "s2: nonfinite: ")


def test_a_run_that_ended_short_goes_on(tmp_path: Path) -> None:
    """With the same command, once the silos send what the gate lets pass."""
    site_of = sites(problems(), tmp_path / "silos")
    honest = silo_makers(site_of)
    bad = {name: lambda make=make: Bent(make(), {1: IN_THE_FOLD}) for name, make in honest.items()}
    job = job_of(honest, total=4, rounds={"min_updates": 3})
    assert federate(job, {**bad, "s0": honest["s0"]}, tmp_path).outcome.exit_code == 4
    ended = federate(job, honest, tmp_path)
    assert ended.outcome.status == "done" and [len(names) for names in ended.contributors] == [4, 4, 4]


class OtherData:
    """Came back with other data."""

    def __init__(self, silo: Any) -> None:
        self.silo = silo

    def handle(self, request: Request) -> Reply:
        reply = self.silo.handle(request)
        return replace(reply, fingerprint="other") if hasattr(reply, "fingerprint") else reply


def test_silos_that_decline_later_leave_no_average_of_two(tmp_path: Path) -> None:
    """They are not drawn any more, so that all who are drawn deliver: that must not do."""
    honest = silo_makers(sites(problems(), tmp_path / "silos"))
    starts: list[str] = []

    def starting(name: str) -> Callable[[], Any]:
        def start() -> Any:
            starts.append(name)
            return honest[name]() if starts.count(name) == 1 else OtherData(honest[name]())

        return start

    makers = {**honest, "s1": starting("s1"), "s2": starting("s2")}
    lose = {("s1", "Train", 2): "before", ("s2", "Train", 3): "before"}
    job = job_of(honest, total=6, rounds={"min_updates": 3})
    ended = federate(job, makers, tmp_path, channel=lambda start: LossyChannel(start, lose))
    assert ended.outcome.exit_code == 2, "a person has to mend the data"
    assert "1 of the 3 silos" in ended.outcome.reason
    assert all(f"{name}: data: its data changed" in ended.outcome.reason for name in ("s1", "s2"))
    assert [len(names) for names in ended.contributors] == [4, 3]


def test_two_updates_of_one_silo_are_no_average_of_two(tmp_path: Path) -> None:
    """Buffered: s0 is late with version 0, then quick with version 1, while the others are refused."""
    opened = threading.Event()

    def held(update: Update) -> Reply:
        assert opened.wait(10)
        return update

    def during(driver: Driver, channel: LocalChannel, event: Any) -> None:
        if isinstance(event, events.RoundOpened) and event.version == 1:
            opened.set()

    bad = dict.fromkeys(range(1, 9), AT_ARRIVAL)
    bends = {"s0": {0: held}, "s1": bad, "s2": bad}
    ended = bent_run(tmp_path, bends, num_silos=3, during=during, mode="async", buffer=2, min_updates=2)
    check_ended_short(ended, "1 of the 2", "s1: weight: ", "s2: weight: ")
    arrived = [(event.silo, event.version) for event in ended.of(events.UpdateArrived)]
    assert {("s0", 0), ("s0", 1)} <= set(arrived) and ended.contributors == [["s1", "s2"]]
