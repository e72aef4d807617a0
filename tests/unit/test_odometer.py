"""The silo's odometer: what data have lost over all jobs, and what a budget still allows."""

import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import LedgerHead
from orchestrator.privacy.accountant import Query, epsilon
from silos.config import Budget
from silos.odometer import Account, Odometer, OverBudget, Spent
from silos.spending import Spend, of_training
from tests.support.heads import signed

A, B, C = "a" * 64, "b" * 64, "c" * 64
LOUD = Spend(Query(1.0, 4.0, 1))
"""Epsilon 0.92 at delta 1e-5, by itself."""


def heart(data: str = A, epsilon: float = 2.0, name: str = "heart", **budget: Any) -> Account:
    return Account(name, data, Budget(epsilon=epsilon, delta=1e-5, **budget))


def spent(
    odometer: Odometer, account: Account, *spends: Spend, job: str = "job", run: str = "run", version: int = 0
) -> Spent:
    return odometer.reserve(account, spends or (LOUD,), job, run, version)


@pytest.fixture
def odometer(tmp_path: Path) -> Odometer:
    return Odometer(tmp_path, "s0", lambda: 1.8e9)


def test_a_budget_admits_six_rounds_and_refuses_the_seventh(odometer: Odometer, tmp_path: Path) -> None:
    """Figures of the prototype (notes 4.5)."""
    batches, account = Spend(Query(64 / 2000, 1.2, 30)), heart()
    for version in range(5):
        odometer.ledger.path.parent.mkdir(exist_ok=True)
        with odometer.ledger.writing() as writing:
            writing.append([odometer._line(account, _charge(batches, account), "run", version, None)])
    sixth = spent(Odometer(tmp_path, "s0"), account, batches, version=5)
    assert sixth.epsilon == pytest.approx(1.9916, abs=1e-3) and sixth.head.length == 6
    assert sixth.epsilon < sixth.epsilon_rdp < 2.4
    with pytest.raises(OverBudget) as refused:
        spent(odometer, account, batches, job="another", run="another")
    assert re.fullmatch(
        r"s0: the privacy budget of 'heart' \(datasets\.heart\.budget\) is epsilon 2 at delta 1e-05: 1\.99\d is spent, "
        r"0\.008\d* is left, and this would come to 2\.14 \(epsilon 0\.968\d? by itself\): more noise or fewer steps",
        str(refused.value),
    )
    assert len(odometer.ledger.entries()) == 6


def _charge(spend: Spend, account: Account) -> Any:
    from silos.spending import Charge

    return Charge(spend, "job", account.data)


def test_all_jobs_spend_of_one_budget_and_each_is_told_its_own_part(odometer: Odometer) -> None:
    first = spent(odometer, heart(), job="one")
    second = spent(odometer, heart(), job="two")
    assert first.epsilon == first.epsilon_job == second.epsilon_job == epsilon([LOUD.query], 1e-5)
    assert second.epsilon == epsilon([LOUD.query, LOUD.query], 1e-5)
    with pytest.raises(OverBudget, match=r"heart.* epsilon 1 at delta .*1\.3\d* is spent, 0 is left"):
        spent(odometer, heart(epsilon=1.0))
    lungs = spent(odometer, heart(data=C, name="lungs"))
    assert lungs.epsilon == first.epsilon, "other data have a budget of their own"
    assert lungs.figures.keys() == {"noise_multiplier", "epsilon", "epsilon_rdp", "epsilon_job", "delta"}


def test_a_head_cannot_be_found_by_trying_numbers_of_rows(tmp_path: Path) -> None:
    """All that a line says is known to the driver, but for q, steps and the millisecond."""
    heads = {spent(Odometer(tmp_path / name, "s0", lambda: 1.8e9), heart()).head.hash for name in "ab"}
    salts = [Odometer(tmp_path / name, "s0").ledger.entries()[0].line.salt for name in "ab"]
    assert len(heads) == 2 and salts[0] != salts[1] and {len(bytes.fromhex(each)) for each in salts} == {16}


def test_without_a_budget_losses_are_entered_and_nothing_is_refused(odometer: Odometer) -> None:
    for _ in range(3):
        found = spent(odometer, Account("heart", A), Spend(Query(1.0, 0.5, 1)))
    assert found.epsilon > 15 and found.delta == 1e-5
    with pytest.raises(OverBudget, match="is spent, 0 is left"):
        spent(odometer, heart())


def test_figures_are_at_the_budgets_delta(odometer: Odometer) -> None:
    """Whatever delta the job states; without a budget, at that."""
    for budget, delta in ((heart().budget, 1e-5), (None, 1e-3)):
        account = Account("heart", A, budget, job_delta=1e-3)
        had = [each.spend.query for each in odometer.had(account)]
        found = spent(odometer, account)
        assert (found.delta, found.epsilon) == (delta, epsilon([*had, LOUD.query], delta))


def test_training_and_test_rows_are_other_records(odometer: Odometer) -> None:
    """The larger loss of the two counts."""
    spent(odometer, heart(), LOUD)
    both = spent(odometer, heart(), LOUD, LOUD._replace(part="test"))
    assert both.epsilon == epsilon([LOUD.query, LOUD.query], 1e-5)
    test = spent(odometer, heart(), LOUD._replace(part="test"))
    assert test.epsilon == both.epsilon


def test_a_patient_may_have_records_in_both_parts(odometer: Odometer) -> None:
    patient = LOUD._replace(unit="patient")
    found = spent(odometer, heart(unit="patient", column="person"), patient, patient._replace(part="test"))
    assert found.epsilon == epsilon([LOUD.query, LOUD.query], 1e-5)


def test_losses_of_records_patients_and_silos_are_not_added_up(odometer: Odometer) -> None:
    for unit in ("record", "patient", "silo"):
        found = spent(odometer, Account("heart", A), LOUD._replace(unit=unit))
        assert found.epsilon == epsilon([LOUD.query], 1e-5)
    silo = Spend(Query(1.0, 4.5, 1), unit="silo")
    both = spent(odometer, heart(epsilon=1.5), LOUD, silo, silo)
    assert both.noise_multiplier == LOUD.query.sigma, "of what epsilon is of"
    assert both.epsilon == epsilon([LOUD.query] * 2, 1e-5), "only the budget's own unit counts"
    assert of_training(odometer.had(heart()), "record") == [LOUD.query] * 2


def test_changed_files_go_on_with_the_same_budget(odometer: Odometer) -> None:
    spent(odometer, heart(A))
    assert spent(odometer, heart(B)).epsilon == epsilon([LOUD.query] * 2, 1e-5)
    with pytest.raises(OverBudget):
        spent(odometer, heart(C, epsilon=1.4), LOUD)
    back = spent(odometer, heart(A, epsilon=9))
    assert back.epsilon == epsilon([LOUD.query] * 3, 1e-5), "and so do the old ones, put back"


def test_a_record_may_have_changed_parts_with_the_files(odometer: Odometer) -> None:
    spent(odometer, heart(A), LOUD)
    found = spent(odometer, heart(B), LOUD._replace(part="test"))
    assert found.epsilon == epsilon([LOUD.query] * 2, 1e-5)


def test_the_same_files_under_another_name_are_the_same_records(odometer: Odometer) -> None:
    spent(odometer, heart(A))
    assert spent(odometer, heart(A, name="hearts")).epsilon == epsilon([LOUD.query] * 2, 1e-5)
    assert spent(odometer, heart(B, name="hearts", epsilon=9)).epsilon == epsilon([LOUD.query] * 3, 1e-5)


def test_only_the_owner_can_say_that_all_rows_are_new(odometer: Odometer) -> None:
    alone, two = epsilon([LOUD.query], 1e-5), epsilon([LOUD.query] * 2, 1e-5)
    spent(odometer, heart(A))
    assert spent(odometer, heart(B, new_rows=(B[:12],))).epsilon == alone
    assert spent(odometer, heart(B)).epsilon == two, "for good, and from there on it adds up"
    again = spent(odometer, heart(A, new_rows=(A,), epsilon=9))
    assert again.epsilon == two, "rows that were asked before are not new, whatever is said"
    assert spent(odometer, heart(C, epsilon=9)).epsilon == epsilon([LOUD.query] * 3, 1e-5)
    marked = [entry.line.new_rows for entry in odometer.ledger.entries()]
    assert marked == [False, True, False, True, False]


def test_nothing_is_entered_when_one_of_several_is_refused(odometer: Odometer) -> None:
    with pytest.raises(OverBudget):
        spent(odometer, heart(), LOUD, Spend(Query(1.0, 0.1, 1), part="test"))
    assert odometer.ledger.entries() == []


def test_a_whole_job_is_judged_before_it_begins(odometer: Odometer) -> None:
    """And a run that goes on, by what it has not had yet; another run of the job asks for all of it anew."""
    plan = [Spend(Query(1.0, 4.0, 3)), Spend(Query(1.0, 8.0, 4), part="test")]
    planned = odometer.planned(heart(), plan, "job", "run")
    assert planned.epsilon == epsilon([plan[0].query], 1e-5) and planned.head == LedgerHead(0, "0" * 64)
    spent(odometer, heart(), LOUD, LOUD)
    assert odometer.planned(heart(), plan, "job", "run").epsilon == planned.epsilon
    for other in (("another", "another"), ("job", "once more"), ("another", "run")):
        found = odometer.planned(heart(epsilon=9), plan, *other)
        assert found.epsilon == epsilon([LOUD.query] * 5, 1e-5)
        with pytest.raises(OverBudget, match=r"this would come to 2\.2"):
            odometer.planned(heart(), plan, *other)
    assert len(odometer.ledger.entries()) == 2, "a plan is no spending"


def test_a_restored_backup_is_noticed(odometer: Odometer, tmp_path: Path) -> None:
    """By this process, and by every driver that was told of a newer line."""
    spent(odometer, heart())
    backup = odometer.ledger.path.read_bytes()
    head = spent(odometer, heart()).head
    odometer.ledger.path.write_bytes(backup)
    with pytest.raises(
        BadInput, match=r"rolled back: this process wrote line 2 .* and it has 1; put the newest copy"
    ):
        spent(odometer, heart())
    fresh = Odometer(tmp_path, "s0")
    fresh.check(None)
    for check in (fresh.check, lambda seen: fresh.reserve(heart(), [LOUD], "job", "run", 1, seen)):
        with pytest.raises(BadInput, match=r"the driver was told of line 2 \(.*\), and it has 1") as refused:
            check(head)
        assert (
            str(tmp_path) not in refused.value.public
            and "the owners of driver and silo" in refused.value.public
        )
    odometer.ledger.path.unlink()
    with pytest.raises(BadInput, match="and it has 0"):
        fresh.check(head)


def test_a_backup_that_went_on_otherwise_is_noticed(odometer: Odometer, tmp_path: Path) -> None:
    spent(odometer, heart())
    backup = odometer.ledger.path.read_bytes()
    head = spent(odometer, heart()).head
    odometer.ledger.path.write_bytes(backup)
    other = Odometer(tmp_path, "s0")
    spent(other, heart(), Spend(Query(1.0, 40.0, 1)))
    with pytest.raises(BadInput, match="and another one is there"):
        other.check(head)


def test_what_the_driver_has_signed_is_in_the_next_line(odometer: Odometer) -> None:
    head = spent(odometer, heart()).head
    told = signed(head, "s0")
    odometer.reserve(heart(), [Spend(Query(1.0, 40.0, 1))], "job", "run", 1, told)
    assert odometer.ledger.entries()[1].line.seen == told
    assert json.loads(odometer.ledger.path.read_text().splitlines()[1])["seen"]["signature"] == told.signature


def test_a_head_with_a_signature_that_is_none_is_refused(odometer: Odometer) -> None:
    """It would lie in the ledger for good, and no check of it would ever pass."""
    head = spent(odometer, heart()).head
    for told in (
        signed(head, "s1"),
        replace(head, key="a2V5", signature="c2ln"),
        replace(head, key=signed(head, "s0").key),
        replace(head, signature="x" * 9999),
    ):
        with pytest.raises(BadInput, match="the driver's signature under the head") as refused:
            odometer.reserve(heart(), [LOUD], "job", "run", 1, told)
        assert "ledger/" not in refused.value.public
    assert len(odometer.ledger.entries()) == 1


def test_jobs_at_once_spend_no_more_than_the_budget(tmp_path: Path) -> None:
    """Threads here, each with a ledger of its own as processes have; `tests/property/test_odometer.py` kills such."""
    admitted: list[float] = []
    three = epsilon([LOUD.query] * 3, 1e-5)

    def job(number: int) -> None:
        odometer = Odometer(tmp_path, "s0")
        for _ in range(4):
            try:
                admitted.append(spent(odometer, heart(epsilon=three), job=f"job {number}").epsilon)
            except OverBudget:
                return

    threads = [threading.Thread(target=job, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(admitted) == [epsilon([LOUD.query] * n, 1e-5) for n in (1, 2, 3)]
    assert len(Odometer(tmp_path, "s0").ledger.entries()) == 3
