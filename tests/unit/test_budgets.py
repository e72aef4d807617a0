"""How much a job may have of a silo: by the job, over its runs and the silo's processes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core.messages import Assess, Assessed, Evaluated, Joined, Leave, Refused, Update
from silos.job_counts import JobCounts
from silos.silo import Silo
from tests.support.guarded import JOB, MODEL, RUN, Clock, evaluate, guarded, join, lines, refusal, train
from tests.support.quadratic import PlainSite, job_of, problems


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path: Path) -> PlainSite:
    return PlainSite("s0", problems()["s0"], tmp_path)


def entry(site: PlainSite) -> Path:
    return site.folder / "own" / "jobs" / f"{JOB.digest}.json"


def joined(site: PlainSite, clock: Clock, run_id: str = "run", **policy: Any) -> Silo:
    """A new process of the silo."""
    silo = guarded(site, clock, **policy)
    assert isinstance(silo.handle(join(run_id=run_id)), Joined)
    return silo


def test_the_time_budget_outlives_the_process_and_the_run(site: PlainSite, clock: Clock) -> None:
    silo = joined(site, clock, max_hours=2)
    clock.set(1, 13)
    silo.handle(Leave(**RUN, finished=True))
    silo = joined(site, clock, max_hours=2)
    clock.set(1, 14)
    code, reason = refusal(silo.handle(train()))
    assert code == "policy" and "2 hours" in reason and "2026-06-01 10:00 UTC" in reason
    for run_id in ("run", "other"):
        assert refusal(guarded(site, clock, max_hours=2).handle(join(run_id=run_id)))[0] == "policy"
    another = job_of(["s0", "s1"], total=3, seed=1)
    assert isinstance(guarded(site, clock, max_hours=2).handle(join(another)), Joined)
    assert not site.trained


def test_hours_count_from_the_first_join_also_where_the_limit_came_later(
    site: PlainSite, clock: Clock
) -> None:
    joined(site, clock)
    clock.set(1, 15)
    assert refusal(guarded(site, clock, max_hours=2).handle(join()))[0] == "policy"


@pytest.mark.parametrize("text", ["[1]", "", '{"first_join": "x"}'])
def test_a_ledger_that_is_broken_refuses(site: PlainSite, clock: Clock, text: str) -> None:
    entry(site).parent.mkdir(parents=True)
    entry(site).write_text(text)
    code, reason = refusal(guarded(site, clock, max_hours=2).handle(join()))
    assert code == "data" and "remove it to begin anew" in reason


def test_no_more_trainings_than_the_policy_allows(site: PlainSite, clock: Clock) -> None:
    """Whatever version the driver claims to train, and whichever run."""
    silo = joined(site, clock, max_rounds=3)
    replies = [silo.handle(train(model_digest=f"m{i}")) for i in range(50)]
    assert [type(reply) for reply in replies] == [Update] * 3 + [Refused] * 47
    assert refusal(replies[-1]) == (
        "policy",
        "s0 allows 3 trainings of a job (policy.max_rounds), and this one has had them",
    )
    for run_id in ("run", "other"):
        silo = joined(site, clock, run_id, max_rounds=3)
        assert refusal(silo.handle(train(run_id=run_id, model_digest="new")))[0] == "policy"
    assert len(site.trained) == 3 and entry(site).stat().st_size < 500


def test_another_model_is_another_training_whatever_it_is_called(site: PlainSite, clock: Clock) -> None:
    """A process that has forgotten its update looks at what it is given."""
    replies = []
    for value in range(3):
        model = {"params": np.full(5, value, np.float32)}
        replies.append(joined(site, clock, max_rounds=2).handle(train(model=model)))
    assert [type(reply) for reply in replies] == [Update, Update, Refused]


def test_other_private_state_is_another_training(site: PlainSite, clock: Clock) -> None:
    """The driver says from which of its updates a silo's control variate goes on."""
    job = job_of(["s0", "s1"], total=2, strategy={"name": "scaffold"})
    model, replies = {**MODEL, "control": np.full(5, 0.1, np.float32)}, []
    for version, counted in ((0, -1), (1, 0), (1, -1)):
        silo = guarded(site, clock, max_rounds=2)
        assert isinstance(silo.handle(join(job)), Joined)
        replies.append(silo.handle(train(version, counted=counted, model=model)))
    assert [type(reply) for reply in replies] == [Update, Update, Refused]


def test_the_same_training_again_is_free(site: PlainSite, clock: Clock) -> None:
    """A driver that resumes, another process of the silo: the same bits, which tell nothing new."""
    silo = joined(site, clock, max_rounds=2)
    first = silo.handle(train())
    assert isinstance(silo.handle(train(1)), Update)
    for _ in range(3):
        silo = joined(site, clock, max_rounds=2)
        again = silo.handle(train(attempt=2))
        assert (
            isinstance(again, Update) and again.packet["values"].tobytes() == first.packet["values"].tobytes()
        )
    assert isinstance(silo.handle(train(1)), Update)
    assert refusal(silo.handle(train(2)))[0] == "policy"


def test_a_training_counts_before_it_begins(
    site: PlainSite, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed amid a training has had it; and what cannot be recorded does not begin."""
    silo = joined(site, clock, max_rounds=1)
    trainer = site.trainers[-1]
    monkeypatch.setattr(trainer, "train", lambda order: 1 / 0)
    assert refusal(silo.handle(train()))[0] == "failed"
    assert refusal(joined(site, clock, max_rounds=1).handle(train(model_digest="other")))[0] == "policy"
    another = job_of(["s0", "s1"], total=1, seed=1)
    silo = guarded(site, clock, max_rounds=1)
    assert isinstance(silo.handle(join(another, run_id="another")), Joined)
    monkeypatch.setattr(os, "fsync", _no_space)
    code, reason = refusal(silo.handle(train(run_id="another")))
    assert code == "data" and "cannot be written" in reason and site.trained == []


def _no_space(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_evaluations_are_counted_as_well(site: PlainSite, clock: Clock) -> None:
    silo = joined(site, clock, max_rounds=3)
    replies = [silo.handle(evaluate(0, model={"params": np.full(5, i, np.float32)})) for i in range(9)]
    assert [type(reply) for reply in replies] == [Evaluated] * 4 + [Refused] * 5
    assert "allows 4 evaluations" in refusal(replies[-1])[1]
    silo = joined(site, clock, "other", max_rounds=3)
    assert isinstance(
        silo.handle(evaluate(0, run_id="other", model={"params": np.full(5, 2, np.float32)})), Evaluated
    )
    assert isinstance(silo.handle(train(run_id="other")), Update), "trainings are counted by themselves"
    assert len(lines(site, "evaluated")) == 5


def test_without_a_limit_nothing_is_counted(site: PlainSite, clock: Clock) -> None:
    silo = joined(site, clock)
    assert all(isinstance(silo.handle(train(model_digest=f"m{i}")), Update) for i in range(10))
    assert MODEL["params"].tolist() == [1] * 5


def test_a_torn_write_leaves_the_entry_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = JobCounts(tmp_path, lambda: 5.0)
    ledger.join("job")
    assert ledger.begin("job", "trained", "a", 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_space)
        with pytest.raises(ValueError, match="cannot be written"):
            ledger.begin("job", "trained", "b", 2)
    ledger = JobCounts(tmp_path, lambda: 9.0)
    assert ledger.first_join("job") == 5.0 and ledger.begin("job", "trained", "b", 2)
    assert not ledger.begin("job", "trained", "c", 2) and ledger.begin("job", "trained", "a", 2)


def test_an_assessment_counts_as_an_evaluation(site: PlainSite, clock: Clock) -> None:
    """Of the last version and of the best one: two, and both again are free."""
    assess = Assess(**RUN, version=1, model=MODEL, model_digest="m", counted=-1, trainings=1, num_steps=1)
    silo = joined(site, clock, max_rounds=1)
    assert isinstance(silo.handle(evaluate(1)), Evaluated)
    assert isinstance(silo.handle(assess), Assessed)
    assert isinstance(joined(site, clock, max_rounds=1).handle(assess), Assessed)
    assert refusal(silo.handle(replace(assess, model_digest="n")))[0] == "policy"
    assert isinstance(silo.handle(evaluate(1)), Evaluated)
    assert [line["event"] for line in lines(site)].count("assessed") == 2
    wide = joined(site, clock, max_rounds=1, max_evaluations=3)
    assert isinstance(wide.handle(replace(assess, model_digest="n")), Assessed)
