"""The vote on a release as evidence: what silos signed of it, and a driver that writes down something else."""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core import events
from orchestrator.core.messages import Attack, Attacked
from orchestrator.store import COUNTERSIGNS, Store
from orchestrator.transport.local import LocalChannel
from orchestrator.verdict import Report
from orchestrator.verifying import verify
from silos.silo import Silo
from silos.site import Findings, Order
from tests.support import quadratic
from tests.support.federation import Ended, federate
from tests.support.rewritten import DRIVER, Line, lines, rewritten, write

SECTIONS = {"release": {"quorum": 2, "veto": ["s0"]}, "stop": {"metric": "loss"}}


@dataclass
class Voter(quadratic.PlainSite):
    """``s0`` finds that the model says too much."""

    def attack(self, trainer: Any, order: Order) -> Findings:
        verdict: Any = "fail" if self.name == "s0" else "pass"
        seconds = {"membership": 0.1}
        return Findings(
            verdicts={"membership": verdict}, scores={"auc": 0.75}, why={}, num_rows=100, seconds=seconds
        )

    def tell(self, found: Findings) -> Findings:
        return found


def ran(folder: Path, **options: Any) -> Ended:
    job = quadratic.job_of(["s0", "s1", "s2"], total=3, **SECTIONS)
    sites = {name: Voter(name, each, folder / "silos") for name, each in quadratic.problems(3).items()}
    makers = {name: lambda site=site: Silo(site) for name, site in sites.items()}
    return federate(job, makers, folder, signer=DRIVER, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voted")
    assert ran(folder).of(events.ReleaseVoted)[0].vetoed == ["s0"]
    return folder / "runs" / "run"


def report(run: Path) -> Report:
    return verify(Store(run))


def tampered(made: Path, folder: Path, kind: str, change: Callable[[Line], Line | None]) -> Report:
    """Numbers, links and signatures are the driver's own again, and what the silos signed at the end is gone."""
    run = folder / "run"
    shutil.copytree(made, run)
    (run / COUNTERSIGNS).unlink()

    def put(place: int, line: Line) -> Line | None:
        return change(line) if line["event"]["type"] == kind else line

    write(run, rewritten(lines(run), put, sign=True))
    return report(run)


def test_a_vote_is_signed_for(made: Path) -> None:
    found = report(made)
    assert found.fine, found.verdict
    said = {check.what: check.found for check in found.checks}["release"]
    assert said == "version 3 held back (2 of 3 silos voted pass, 2 are needed; fail: s0; veto: s0)"
    history = [event for _, event in Store(made).events()]
    before = [event["type"] for event in history].index("silo_attacked")
    heads = {e["receipt"]["head_length"] for e in history if e["type"] == "silo_attacked"}
    assert heads == {before}, "whoever votes signs all that was written before"


def test_a_veto_that_the_driver_turns_into_a_pass(made: Path, tmp_path: Path) -> None:
    def turn(line: Line) -> Line:
        if line["event"]["silo"] == "s0":
            line["event"] |= {"vote": "pass", "verdicts": {"membership": "pass"}}
        return line

    found = tampered(made, tmp_path, "silo_attacked", turn)
    assert any("s0: its receipt is about another vote" in each for each in wrong(found, "receipts"))


def test_an_outcome_that_the_votes_do_not_have(made: Path, tmp_path: Path) -> None:
    def let_go(line: Line) -> Line:
        line["event"] |= {"passed": True, "vetoed": []}
        return line

    found = tampered(made, tmp_path, "release_voted", let_go)
    assert "the votes come to something else" in wrong(found, "release")[0]


def test_a_vote_that_is_left_out_of_the_count(made: Path, tmp_path: Path) -> None:
    def forget(line: Line) -> Line:
        del line["event"]["votes"]["s0"]
        line["event"] |= {"passed": True, "vetoed": [], "missing": {"s0": "not online"}}
        return line

    assert wrong(tampered(made, tmp_path, "release_voted", forget), "release")


def test_a_vote_on_another_version(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (run / COUNTERSIGNS).unlink()

    def put(place: int, line: Line) -> Line:
        if line["event"]["type"] in ("silo_attacked", "release_voted"):
            line["event"]["lineage"] = "0" * 64
        return line

    write(run, rewritten(lines(run), put, sign=True))
    assert "the vote was on another version 3" in wrong(report(run), "release")[0]


def on(made: Path, folder: Path, version: int, change: Callable[[Line], None]) -> list[str]:
    """What is wrong when the driver, from the start, has written down the silos' votes as on this version."""
    run = folder / "run"
    shutil.copytree(made, run)
    (run / COUNTERSIGNS).unlink()

    def put(place: int, line: Line) -> Line:
        if line["event"]["type"] == "release_voted":
            line["event"]["version"] = version
        if line["event"]["type"] in ("silo_attacked", "release_voted"):
            change(line["event"])
        return line

    write(run, rewritten(lines(run), put, sign=True))
    return wrong(report(run), "release")


def test_votes_on_one_version_let_no_other_go(made: Path, tmp_path: Path) -> None:
    """The silos were asked about version 3, and would not have let version 2 go."""
    lineage = next(
        e["lineage"] for _, e in Store(made).events() if e["type"] == "round_closed" and e["version"] == 2
    )

    def named(event: Line) -> None:
        event["lineage"] = lineage

    assert "the votes come to something else" in on(made, tmp_path, 2, named)[0]


def test_a_vote_says_which_model_it_is_on(made: Path, tmp_path: Path) -> None:
    def nameless(event: Line) -> None:
        event["lineage"] = ""

    assert "the vote was on another version 3" in on(made, tmp_path, 3, nameless)[0]


def test_a_vote_without_a_receipt(made: Path, tmp_path: Path) -> None:
    def strip(line: Line) -> Line:
        line["event"]["receipt"] = None
        return line

    found = tampered(made, tmp_path, "silo_attacked", strip)
    assert any("its vote counts without a receipt" in each for each in wrong(found, "receipts"))


def wrong(found: Report, what: str) -> list[str]:
    return next(check.wrong for check in found.checks if check.what == what)


class Harmless(LocalChannel):
    """Gives one silo another model to attack than the one that is to be released, by its name."""

    async def call(self, silo: str, request: Any) -> Any:
        if silo == "s0" and isinstance(request, Attack):
            zeros = {name: np.zeros_like(part) for name, part in request.model.items()}
            request = replace(request, model=zeros)
        return await super().call(silo, request)


def test_a_silo_that_was_given_another_model_has_not_voted(tmp_path: Path) -> None:
    ended = ran(tmp_path, channel=Harmless)
    (outcome,) = ended.of(events.ReleaseVoted)
    assert outcome.missing == {"s0": "its receipt is about another model or vote"}


class Changed(LocalChannel):
    """A vote is another one on its way."""

    async def call(self, silo: str, request: Any) -> Any:
        reply = await super().call(silo, request)
        return replace(reply, vote="pass") if isinstance(reply, Attacked) else reply


def test_a_vote_that_was_changed_on_its_way_is_none(tmp_path: Path) -> None:
    ended = ran(tmp_path, channel=Changed)
    (outcome,) = ended.of(events.ReleaseVoted)
    assert outcome.missing.keys() == {"s0"} and outcome.votes == {"s1": "pass", "s2": "pass"}


def test_a_silo_attacks_what_it_is_given(tmp_path: Path) -> None:
    """Not what the driver calls it: another model by the same name is attacked anew."""
    job = quadratic.job_of(["s0"], total=1, release={})
    site = Voter("s0", quadratic.problems(1)["s0"], tmp_path)
    seen: list[float] = []

    def attack(trainer: Any, order: Order) -> Findings:
        seen.append(float(order.received["params"][0]))
        return Voter.attack(site, trainer, order)

    site.attack = attack  # type: ignore[method-assign]
    channel = LocalChannel({"s0": lambda: Silo(site)})

    async def ask() -> list[Any]:
        from orchestrator.core.messages import Join

        header = {"run_id": "run", "epoch": 1}
        await channel.call("s0", Join(**header, job=job.model_dump_json(), job_digest=job.digest))
        about = {**header, "version": 1, "model_digest": "m", "counted": -1, "trainings": 1, "num_steps": 1}
        models = [{"params": np.full(5, value, np.float32)} for value in (0, 1, 1)]
        return [
            await channel.call("s0", Attack(**about, model=each, head="0" * 64, head_length=1))
            for each in models
        ]

    replies = asyncio.run(ask())
    channel.close()
    assert seen == [0.0, 1.0]
    assert len({each.receipt.received for each in replies}) == 2
    assert json.dumps(replies[1].scores) == json.dumps(replies[2].scores)
