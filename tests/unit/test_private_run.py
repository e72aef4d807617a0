"""Runs over silos whose data have budgets: epsilon on record, heads that the driver signs, and one that went back."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core import events
from orchestrator.driver import Driver
from orchestrator.heads import FILE
from orchestrator.keys import Signer
from orchestrator.privacy.accountant import epsilon
from orchestrator.summary import summarise
from silos.config import SiloConfig
from silos.guard import PolicyGuard
from silos.ledger import Ledger
from silos.metrics_rule import MetricsRule
from silos.silo import Silo
from silos.statement import countersigned
from tests.support.federation import Ended, federate
from tests.support.private import LOUD, Private
from tests.support.quadratic import PlainSite, job_of, problems, sites

ACCURACY = {"stop": {"metric": "accuracy"}}
JOB = job_of(problems(), total=2, **ACCURACY)


class Places:
    """Four silos with budgets, and a driver with a key."""

    def __init__(self, folder: Path, rule: MetricsRule | None = None) -> None:
        self.folder, self.rule = folder, rule or MetricsRule()
        self.key = Ed25519PrivateKey.generate()

    def site(self, name: str) -> PlainSite:
        made = sites(problems(), self.folder / "silos")[name]
        made.make, made.metrics_rule = Private, self.rule
        config = SiloConfig.model_validate(
            {"name": name, "datasets": {"none": {"path": "x", "budget": {"epsilon": 5, "delta": 1e-5}}}}
        )
        made.guard = PolicyGuard(config, self.own(name))
        return made

    def own(self, name: str) -> Path:
        return self.folder / "silos" / "own" / name

    def run(self, run_id: str, job: Any = JOB, signed: bool = True) -> Ended:
        makers = {name: (lambda name=name: Silo(self.site(name))) for name in problems()}
        return federate(job, makers, self.folder, run_id=run_id, signer=Signer(self.key) if signed else None)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_epsilon_is_in_the_record_and_the_driver_signs_what_it_was_told(places: Places) -> None:
    ended = places.run("r1")
    assert ended.outcome.exit_code == 0
    for version, closed in enumerate(ended.rounds, 1):
        for each in closed.contributors:
            assert each.privacy["epsilon"] == epsilon([LOUD.query] * version, 1e-5)
    joined = ended.of(events.SiloJoined)
    assert {each.planned["epsilon"] for each in joined} == {epsilon([LOUD.query] * 2, 1e-5)}
    assert {each.metrics for each in joined} == {"open"}
    entries = Ledger(places.own("s0")).entries()
    assert [entry.line.seen is None for entry in entries] == [True, False]
    assert countersigned(entries, "s0", Path("ledger")) == 1
    assert (places.folder / "runs" / FILE).exists()
    again = places.run("r2", job_of(problems(), total=2, seed=1, **ACCURACY))
    assert again.outcome.exit_code == 0
    entries = Ledger(places.own("s0")).entries()
    assert [entry.line.seen.length if entry.line.seen else 0 for entry in entries] == [0, 1, 2, 3]
    assert countersigned(entries, "s0", Path("ledger")) == 3


def test_a_silo_whose_ledger_was_put_back_takes_no_part_in_the_next_run(places: Places) -> None:
    places.run("r1", job_of(problems(), total=1, **ACCURACY))
    ledger = Ledger(places.own("s0"))
    backup = ledger.path.read_bytes()
    places.run("r2", job_of(problems(), total=1, seed=1, **ACCURACY))
    ledger.path.write_bytes(backup)
    ended = places.run("r3", job_of(problems(), total=1, seed=2, rounds={"min_updates": 3}, **ACCURACY))
    (declined,) = ended.of(events.SiloDeclined)
    assert declined.silo == "s0" and declined.code == "data"
    assert "the privacy ledger was rolled back: the driver was told of line 2" in declined.reason
    assert ended.outcome.exit_code == 0 and ended.contributors == [["s1", "s2", "s3"]]
    assert len(ledger.entries()) == 1


def test_a_silo_that_shows_another_ledger_of_the_same_length_is_not_counted(places: Places) -> None:
    """The driver has no copy; but that is not the ledger that it knows."""
    places.run("r1", job_of(problems(), total=1, **ACCURACY), signed=False)
    Ledger(places.own("s0")).path.unlink()

    def forget(driver: Driver, *_: Any) -> None:
        """The silo is not told, and makes a first line anew."""
        driver.attempt.ledgers.told = lambda silo: None  # type: ignore[method-assign]
        driver.attempt.enrolment.ledger_of = driver.attempt.ledgers.told

    makers = {name: (lambda name=name: Silo(places.site(name))) for name in problems()}
    job = job_of(problems(), total=1, seed=1, rounds={"min_updates": 3}, **ACCURACY)
    ended = federate(job, makers, places.folder, run_id="r2", during=forget)
    assert ("s0", 0, "ledger") in ended.refusals and ended.contributors == [["s1", "s2", "s3"]]


def test_a_damaged_registry_ends_the_run_with_its_remedy(places: Places) -> None:
    places.run("r1", job_of(problems(), total=1, **ACCURACY))
    (places.folder / "runs" / FILE).write_text("{")
    ended = places.run("r2", job_of(problems(), total=1, seed=1, **ACCURACY))
    assert ended.outcome.exit_code == 2 and "put back a copy of it" in ended.outcome.reason


def test_the_report_says_whether_metrics_are_within_the_guarantee(places: Places) -> None:
    from tracking.report import private

    (table,) = private(summarise(places.run("r1").events))
    assert table[0][-1] == "metrics on its rows" and {row[-1] for row in table[1:]} == {
        "outside the guarantee"
    }
    noised = Places(places.folder / "noised", MetricsRule("noised", 40.0))
    ended = noised.run("r1")
    (table,) = private(summarise(ended.events))
    assert {row[-1] for row in table[1:]} == {"noised, in the budget"}
    assert ended.rounds[0].evaluated.overall.keys() == {"accuracy"}


@pytest.mark.parametrize(("combine", "code"), [("mean", 2), ("fixed_point_sum", 2), ("secure_sum", 0)])
def test_figures_that_leave_in_sums_only_need_one_that_hides_its_terms(
    places: Places, combine: str, code: int
) -> None:
    places.rule = MetricsRule("summed")
    stop = {"metric": "loss", "patience": 1}
    job = job_of(problems(), total=2, stop=stop, combine={"name": combine}, rounds={"min_updates": 3})
    ended = places.run("r1", job)
    assert ended.outcome.exit_code == code, ended.outcome
    assert code == 0 or "(policy.metrics in silo.yaml: summed; summed ones" in ended.outcome.reason


def test_a_job_that_stops_by_figures_wants_some(places: Places) -> None:
    places.rule = MetricsRule("none")
    job = job_of(problems(), total=2, stop={"metric": "accuracy", "patience": 1})
    ended = places.run("r1", job)
    assert ended.outcome.exit_code == 2
    assert ended.outcome.reason == (
        "stop.patience: the silos let no figure out by which the run could stop (policy.metrics in silo.yaml: none; "
        "summed ones need a sealed sum in which 3 silos have them so); leave it out, and all 2 rounds are run"
    )
    assert not Ledger(places.own("s0")).entries(), "before round 0"
    ended = places.run("r2")
    assert (
        ended.outcome.exit_code == 0 and len(ended.rounds) == 2 and ended.rounds[-1].evaluated.overall == {}
    )
