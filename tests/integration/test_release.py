"""The vote on a release, end to end: an overfitted model is held back, a fair one is let go.

Versions are judged by how confident they are, so that the best one is that which has been trained most."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core import events
from orchestrator.core.faults import FaultInjected, arm
from orchestrator.core.messages import Attack, Attacked
from orchestrator.transport.local import LocalChannel
from silos.config import Policy
from tests.support.federation import Ended, LossyChannel, Unheard, federate, journal
from tests.support.noisy_digits import NoisyDigits
from tests.support.torch_site import TorchSite, makers, torch_job

EAGER = {"epochs": 10, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.002}}
FAIR = {"epochs": 1, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.05}}
SECTIONS = {"report": {"silos": False}, "stop": {"metric": "confidence"}, "rounds": {"total": 4}}
RELEASE = {"attacks": ["membership", "canary"], "canaries": 20}


def sites(folder: Path, names: str = "abc", **given: Any) -> dict[str, TorchSite]:
    return {name: TorchSite(name, folder, NoisyDigits(number), **given) for number, name in enumerate(names)}


def hard_to_learn(folder: Path) -> dict[str, TorchSite]:
    """Few rows each, most of them with random labels, and a wide network: all that can be learnt is the rows."""
    tasks = [NoisyDigits(number, rows=60, noise=0.9, hidden=512) for number in range(3)]
    return {name: TorchSite(name, folder, task) for name, task in zip("abc", tasks, strict=True)}


def run(folder: Path, local: Any = FAIR, release: Any = RELEASE, of: Any = None, **given: Any) -> Ended:
    of = of or sites(folder / "silos")
    sections = {**SECTIONS, "release": release}
    return federate(torch_job("".join(of), local=local, **sections), makers(of), folder, limit_s=120, **given)


def voted(ended: Ended) -> events.ReleaseVoted:
    (event,) = ended.of(events.ReleaseVoted)
    return event


def test_a_fair_model_passes(tmp_path: Path) -> None:
    ended = run(tmp_path)
    outcome, closed = voted(ended), ended.of(events.RunClosed)[0]
    assert outcome.passed and outcome.votes == {"a": "pass", "b": "pass", "c": "pass"} and not outcome.missing
    assert outcome.version == closed.best_version and outcome.needed == 3
    kinds = [event.type for event in ended.events if event.durable]
    assert kinds[-5:] == ["silo_attacked"] * 3 + ["release_voted", "run_closed"]
    for each in ended.of(events.SiloAttacked):
        assert each.verdicts == {"membership": "pass", "canary": "pass"}
        assert each.scores["auc"] < 0.6 and each.scores["exposure"] < 3
    joined = {event.silo: event.num_examples["train"] for event in ended.of(events.SiloJoined)}
    assert joined == {"a": 320, "b": 320, "c": 320}, "the canaries are among the rows"


def test_an_overfitted_model_is_held_back(tmp_path: Path) -> None:
    ended = run(tmp_path, EAGER, of=hard_to_learn(tmp_path / "silos"))
    outcome = voted(ended)
    assert not outcome.passed and outcome.votes == {"a": "fail", "b": "fail", "c": "fail"}
    for each in ended.of(events.SiloAttacked):
        assert each.verdicts["membership"] == "fail" and each.scores["auc"] >= 0.65
    assert ended.outcome.status == "done", "the run is none the worse for it"


def test_one_veto_holds_it_back(tmp_path: Path) -> None:
    """The model has silo a's rows by heart, and hardly any of b's and c's."""
    of = hard_to_learn(tmp_path / "silos")
    heavy = {"combine": {"weights": {"a": 100, "b": 1, "c": 1}}}
    given = {"attacks": ["membership"], "quorum": 2}
    plain = federated(tmp_path / "1", of, given, heavy)
    assert voted(plain).votes == {"a": "fail", "b": "pass", "c": "pass"} and voted(plain).passed
    ended = federated(tmp_path / "2", of, {**given, "veto": ["a"]}, heavy)
    assert voted(ended).vetoed == ["a"] and not voted(ended).passed


def federated(folder: Path, of: dict[str, TorchSite], release: Any, more: Any) -> Ended:
    sections = {**SECTIONS, "release": release, **more}
    return federate(torch_job("abc", local=EAGER, **sections), makers(of), folder, limit_s=120)


@pytest.mark.parametrize("how", ["before", "reply"])
def test_a_lost_silo_has_not_voted(tmp_path: Path, how: str) -> None:
    ended = run(tmp_path, channel=lambda makers: LossyChannel(makers, {("b", "Attack", 1): how}))
    outcome = voted(ended)
    assert outcome.votes == {"a": "pass", "c": "pass"} and outcome.missing == {"b": f"lost: planted: {how}"}
    assert not outcome.passed and ended.outcome.status == "done"


def test_a_policy_against_attacks_is_no_vote_and_one_for_votes_tells_no_figure(tmp_path: Path) -> None:
    of = sites(tmp_path / "silos")
    of["b"].policy = Policy(attacks="vote")
    of["c"].policy = Policy(attacks="none")
    ended = run(tmp_path, release={**RELEASE, "quorum": 2}, of=of)
    outcome = voted(ended)
    assert outcome.passed and outcome.votes == {"a": "pass", "b": "pass"}
    assert outcome.missing == {"c": "refused: c makes no attacks (policy.attacks)"}
    told = {each.silo: each.scores for each in ended.of(events.SiloAttacked)}
    assert told.keys() == {"a", "b"} and told["a"] and not told["b"]
    joined = {event.silo: event.num_examples["train"] for event in ended.of(events.SiloJoined)}
    assert joined["c"] == 300, "it plants no canaries either"


def test_a_driver_that_died_asks_only_those_that_it_has_not_heard(tmp_path: Path) -> None:
    of = sites(tmp_path / "silos")
    arm("silo.attacked:2:raise")
    try:
        with pytest.raises(FaultInjected):
            run(tmp_path, of=of, channel=partial(Unheard, kind=Attack))
    finally:
        arm(None)
    before = {event.silo for event in journal(tmp_path) if isinstance(event, events.SiloAttacked)}
    assert len(before) == 2
    again = run(tmp_path, of=of, channel=LossyChannel)
    assert {silo for silo, kind in again.driver.channel.asked if kind == "Attack"} == set("abc") - before
    assert voted(again).votes == {"a": "pass", "b": "pass", "c": "pass"}


class Lying(LocalChannel):
    """One silo's answer is nonsense."""

    async def call(self, silo: str, request: Any) -> Any:
        reply = await super().call(silo, request)
        if silo == "b" and isinstance(reply, Attacked):
            return Attacked(
                **{each: getattr(reply, each) for each in Attacked.__slots__ if each != "scores"},
                scores={"auc": float("nan")},
            )
        return reply


def test_a_nonsensical_answer_is_no_vote(tmp_path: Path) -> None:
    outcome = voted(run(tmp_path, channel=Lying))
    assert outcome.missing == {"b": "its answer holds NaN or infinity"} and "b" not in outcome.votes


def test_without_a_release_section_nobody_is_asked(tmp_path: Path) -> None:
    ended = run(tmp_path, release=None, channel=LossyChannel)
    assert not any(kind == "Attack" for _, kind in ended.driver.channel.asked) and not ended.of(
        events.ReleaseVoted
    )
