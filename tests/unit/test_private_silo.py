"""A silo whose data have a budget, behind its one door: what is reserved, what leaves, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.messages import (
    Assess,
    Assessed,
    Evaluated,
    Joined,
    LedgerHead,
    Refused,
    Update,
)
from orchestrator.privacy.accountant import Query, epsilon
from silos.config import SiloConfig
from silos.guard import PolicyGuard
from silos.metrics_rule import MetricsRule
from silos.policy import review
from silos.silo import Silo
from silos.site import Order, Trained
from tests.support.guarded import JOB, MODEL, RUN, Clock, evaluate, join, lines, refusal, train
from tests.support.heads import signed
from tests.support.private import LOUD, RIGHT, Open, Private
from tests.support.quadratic import PlainSite, job_of, problems


@pytest.fixture
def site(tmp_path: Path) -> PlainSite:
    return PlainSite("s0", problems()["s0"], tmp_path, make=Private)


def silo(site: PlainSite, budget: Any = None, rule: MetricsRule | None = None) -> Silo:
    """A new process of the silo."""
    config = SiloConfig.model_validate(
        {"name": "s0", "datasets": {"none": {"path": "x", "budget": budget and {"delta": 1e-5, **budget}}}}
    )
    site.guard = PolicyGuard(config, site.folder / "own", Clock())
    site.metrics_rule = rule or MetricsRule()
    return Silo(site, Clock())


def joined(site: PlainSite, budget: Any = None, rule: MetricsRule | None = None, **header: Any) -> Silo:
    made = silo(site, budget, rule)
    reply = made.handle(join(**header))
    assert isinstance(reply, Joined), reply
    return made


def entered(site: PlainSite) -> list[dict[str, Any]]:
    path = site.folder / "own" / "ledger" / "spent.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def released(silo: Silo, request: Any) -> Any:
    reply = silo.handle(request)
    assert not isinstance(reply, Refused), reply
    return reply


def test_every_training_is_entered_before_it_begins_and_told_with_its_update(site: PlainSite) -> None:
    """JOB has three rounds. Epsilon is that of the ledger."""
    made = silo(site, {"epsilon": 2})
    reply = made.handle(join())
    assert isinstance(reply, Joined) and reply.metrics == "open"
    assert reply.planned["epsilon"] == epsilon([LOUD.query._replace(steps=3)], 1e-5)
    for version in range(2):
        update = released(made, train(version, model_digest=f"m{version}"))
        assert update.privacy["epsilon"] == epsilon([LOUD.query._replace(steps=version + 1)], 1e-5)
        assert update.privacy["epsilon"] <= update.privacy["epsilon_rdp"] and update.privacy["delta"] == 1e-5
        assert update.ledger == LedgerHead(version + 1, entered(site)[-1]["hash"])
    assert [(line["version"], line["run"], line["job"], line["sigma"]) for line in entered(site)] == [
        (version, "run", JOB.digest, 4.0) for version in range(2)
    ]
    heads = [(line["length"], line["head"]) for line in lines(site, "privacy reserved")]
    assert heads == [(n, line["hash"]) for n, line in enumerate(entered(site), 1)]


def test_the_stored_bytes_are_free_and_another_training_is_not(site: PlainSite) -> None:
    made = joined(site, {"epsilon": 3})
    first = released(made, train())
    again = released(made, train(attempt=2))
    assert (
        again.packet["values"].tobytes() == first.packet["values"].tobytes() and again.ledger == first.ledger
    )
    assert len(entered(site)) == len(site.trained) == 1
    released(joined(site, {"epsilon": 3}), train())
    assert len(entered(site)) == len(site.trained) == 2, "a new process has new noise"
    released(made, train(model_digest="other"))
    assert len(entered(site)) == len(site.trained) == 3


def test_another_draw_of_a_training_costs_as_much(site: PlainSite) -> None:
    """Where a sum failed, and another one from the same version takes its place: its noise is new."""
    job = job_of(["s0", "s1"], total=3, combine={"name": "fixed_point_sum"})
    made = silo(site, {"epsilon": 3})
    assert isinstance(made.handle(join(job)), Joined)
    for draw in (0, 1, 1, 2):
        update = released(made, train(draw=draw))
        assert update.ledger.length == len(entered(site)) == len(site.trained) == draw + 1
        assert update.privacy["epsilon"] == epsilon([LOUD.query._replace(steps=draw + 1)], 1e-5)


def test_what_the_budget_does_not_allow_is_neither_done_nor_entered(site: PlainSite) -> None:
    made = joined(site, {"epsilon": 1.75})
    replies = [made.handle(train(model_digest=f"m{n}")) for n in range(5)]
    assert [type(reply) for reply in replies] == [Update] * 3 + [Refused] * 2
    code, reason = refusal(replies[-1])
    assert code == "policy" and "1.698 is spent, 0.05" in reason and "more noise or fewer steps" in reason
    assert len(entered(site)) == len(site.trained) == 3


def test_a_job_that_cannot_stay_within_the_budget_is_refused_before_round_0(site: PlainSite) -> None:
    code, reason = refusal(silo(site, {"epsilon": 1.5}).handle(join()))
    assert code == "policy" and "1.5 at delta 1e-05" in reason and reason.endswith("(the whole job)")
    assert entered(site) == []
    made = joined(site, {"epsilon": 1.75})
    for version in range(2):
        released(made, train(version))
    joined(site, {"epsilon": 1.75})  # what it has had is not planned once more
    code, reason = refusal(silo(site, {"epsilon": 1.75}).handle(join(run_id="again")))
    assert code == "policy" and reason.endswith("(the whole job)"), "as another run of the same job would"


def test_data_with_a_budget_are_not_trained_on_without_noise(site: PlainSite) -> None:
    site.make = Open
    code, reason = refusal(silo(site, {"epsilon": 2}).handle(join()))
    assert (code, reason) == (
        "policy",
        "s0: 'none' has a privacy budget for each record (datasets.none.budget), and this job trains on it without "
        "noise: give privacy: [{name: dp_sgd, ...}]",
    )
    made = joined(site)
    released(made, train())
    assert entered(site) == [] and site.trained == [0]


def test_a_budget_that_came_later_binds_the_run_in_hand(site: PlainSite) -> None:
    site.make = Open
    made = joined(site)
    config = {"name": "s0", "datasets": {"none": {"path": "x", "budget": {"epsilon": 2, "delta": 1e-5}}}}
    site.guard.obey(SiloConfig.model_validate(config))  # type: ignore[attr-defined]
    assert refusal(made.handle(train()))[0] == "policy" and site.trained == []


def test_a_budget_for_patients_wants_patients_protected(site: PlainSite) -> None:
    code, reason = refusal(silo(site, {"epsilon": 2, "unit": "patient", "column": "person"}).handle(join()))
    assert (
        code == "policy"
        and "this job protects a record only: give privacy: [{name: dp_sgd, unit: patient" in reason
    )


def test_noise_on_the_sum_is_entered_for_the_silo(site: PlainSite) -> None:
    """Which is another account than that of its records."""
    steps = [{"name": "clip", "max_norm": 1.0}, {"name": "gaussian", "noise_multiplier": 8.0}]
    job = job_of(["s0", "s1"], total=2, privacy=steps, combine={"name": "mean", "weights": "uniform"})
    made = silo(site, {"epsilon": 2, "unit": "silo"})
    site.make = Open
    planned = made.handle(join(job))
    assert isinstance(planned, Joined) and planned.planned["epsilon"] == epsilon([Query(1.0, 8.0, 2)], 1e-5)
    update = released(made, train())
    assert entered(site)[0]["unit"] == "silo" and update.privacy["epsilon"] == epsilon(
        [Query(1.0, 8.0, 1)], 1e-5
    )


def test_a_driver_that_knows_a_newer_ledger_is_told_that_this_one_is_old(site: PlainSite) -> None:
    made = joined(site, {"epsilon": 9})
    released(made, train())
    path = site.folder / "own" / "ledger" / "spent.jsonl"
    backup = path.read_bytes()
    head = released(made, train(1)).ledger
    path.write_bytes(backup)
    for process in (silo(site, {"epsilon": 9}), made):
        code, reason = refusal(process.handle(join(ledger=head)))
        assert code == "data" and "rolled back: " in reason and "line 2" in reason
    code, reason = refusal(joined(site, {"epsilon": 9}).handle(train(2, ledger=head)))
    assert code == "data" and "the driver was told of line 2" in reason and site.trained == [0, 1]


def test_what_the_driver_has_signed_is_kept(site: PlainSite) -> None:
    made = joined(site, {"epsilon": 9})
    head = released(made, train()).ledger
    assert head is not None
    told = signed(head, "s0")
    code, reason = refusal(made.handle(train(1, ledger=replace(told, signature="c2ln"))))
    assert code == "data" and "does not fit its key" in reason
    released(made, train(1, ledger=told))
    assert entered(site)[1]["seen"] == asdict(told)


def test_a_damaged_ledger_stops_the_work(site: PlainSite) -> None:
    made = joined(site, {"epsilon": 9})
    for version in range(2):
        released(made, train(version))
    path = site.folder / "own" / "ledger" / "spent.jsonl"
    path.write_text(path.read_text().replace('"steps":1', '"steps":0', 1))
    for reply in (made.handle(train(2)), silo(site, {"epsilon": 9}).handle(join())):
        code, reason = refusal(reply)
        assert (
            code == "data"
            and "line 1 is not as it was written; put the newest copy of the file back" in reason
        )
    assert site.trained == [0, 1]


# figures


NOISED = MetricsRule("noised", 40.0)
ASSESS = Assess(**RUN, version=1, model=MODEL, model_digest="m", counted=-1, trainings=1, num_steps=1)


def test_noised_figures_are_charged_to_the_test_rows(site: PlainSite) -> None:
    made = joined(site, {"epsilon": 2}, NOISED)
    update = released(made, train())
    assert update.metrics.keys() == {"accuracy"} and update.metrics["accuracy"] != RIGHT
    assert update.train_metrics == {}
    assert [(line["part"], line["sigma"], line["q"]) for line in entered(site)] == [
        ("train", 4.0, 1.0),
        ("test", 40.0, 1.0),
    ]
    assert update.privacy["epsilon"] == epsilon([LOUD.query], 1e-5), "other records than those trained on"


def test_asking_again_draws_no_noise_for_nothing(site: PlainSite) -> None:
    """The update and the assessment are answered with the same figures; an evaluation is measured anew, and charged."""
    made = joined(site, {"epsilon": 2}, NOISED)
    assert released(made, train()).metrics == released(made, train(attempt=2)).metrics
    assert len(entered(site)) == 2
    evaluated = [released(made, evaluate(1)) for _ in range(2)]
    assert all(isinstance(each, Evaluated) for each in evaluated)
    assert evaluated[0].metrics != evaluated[1].metrics and len(entered(site)) == 4
    assessed = [released(made, ASSESS) for _ in range(2)]
    assert assessed[0] == assessed[1] and len(entered(site)) == 5
    assert [line["part"] for line in entered(site)] == ["train", *["test"] * 4]


def test_with_noise_an_assessment_tells_of_the_received_model_only(site: PlainSite) -> None:
    """The others were made from training rows without any noise; intervals and the like tell of single rows."""
    found = released(joined(site, None, NOISED), ASSESS)
    assert isinstance(found, Assessed) and found.models.keys() == {"global"}
    judged = found.models["global"]
    assert judged.metrics.keys() == {"accuracy"}
    assert (
        judged.intervals == judged.gains == judged.verdicts == {}
        and found.curve == ()
        and found.accepted == 0
    )


def test_a_budget_for_the_test_rows_runs_out_as_well(site: PlainSite) -> None:
    made, once = joined(site, {"epsilon": 2.5}, MetricsRule("noised", 5.0)), Query(1.0, 5.0, 1)
    replies = [made.handle(evaluate(n)) for n in range(12)]
    code, reason = refusal(replies[-1])
    assert code == "policy" and "is spent" in reason
    tests = [once] * len(entered(site))
    assert epsilon(tests, 1e-5) <= 2.5 < epsilon([*tests, once], 1e-5)


@pytest.mark.parametrize("mode", ["none", "summed"])
def test_nothing_leaves_but_as_the_rule_says(site: PlainSite, mode: Any) -> None:
    rule = MetricsRule(mode)
    made = joined(site, None, rule)
    update = released(made, train())
    assert update.metrics == update.train_metrics == {}
    assert released(made, evaluate(1)).metrics == {}
    found = released(made, ASSESS)
    assert found.models == {} and found.curve == () and found.accepted == 0


def test_a_rule_that_changes_during_the_work_holds_for_what_leaves(site: PlainSite) -> None:
    """Figures made under another rule do not leave; an assessment is made anew."""
    made = joined(site)
    assert released(made, ASSESS).models.keys() == {"global", "alone"}
    site.metrics_rule = NOISED
    found = released(made, ASSESS)
    assert found.models.keys() == {"global"} and found.models["global"].metrics["accuracy"] != RIGHT
    trainer = site.trainers[-1]
    plain, site.metrics_rule = trainer.train, MetricsRule()

    def changed(order: Order) -> Trained:
        site.metrics_rule = NOISED
        return plain(order)

    trainer.train = changed
    assert released(made, train()).metrics == {}


def test_a_silo_that_only_sums_wants_a_sum_that_hides_its_terms() -> None:
    config = SiloConfig.model_validate(
        {"name": "s0", "datasets": {"none": {"path": "x"}}, "policy": {"metrics": "summed"}}
    )
    silos = ["s0", "s1", "s2"]
    assert "(policy.metrics: summed)" in str(review(job_of(silos), config))
    assert "use secure_sum" in str(review(job_of(silos, combine={"name": "fixed_point_sum"}), config))
