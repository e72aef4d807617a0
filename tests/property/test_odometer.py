"""A budget is never overspent, and what was drawn was entered before: killed at every step, at once, restored."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import LedgerHead
from orchestrator.privacy.accountant import Query, epsilon
from silos.config import Budget
from silos.ledger import Ledger, head_of
from silos.odometer import Account, Odometer, OverBudget
from silos.spending import Spend
from tests.support.scratch import scratch
from tests.support.spender import EPSILON, QUERY

COMMAND = [sys.executable, "-m", "tests.support.spender"]
POINTS = ("ledger.opened", "ledger.written", "ledger.durable", "silo.trained", "silo.replied")


def fits(times: int) -> bool:
    return epsilon([QUERY._replace(steps=times)], 1e-5) <= EPSILON


ALL = next(times for times in range(1000) if not fits(times + 1))
"""Trainings that the budget allows."""


def said(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_at_every_step(tmp_path: Path) -> None:
    """By SIGKILL, as it opens the ledger, has written, has synced, has trained, has replied."""
    faults = [*(f"{point}:1" for point in POINTS), "silo.trained:3"]
    results = said(str(tmp_path), "killed", *faults)
    assert [each["fault"] for each in results] == faults
    for each in results:
        then = each["then"]
        assert each["killed"] == -signal.SIGKILL and each["again"] == 0, each
        assert then["drawn"] <= then["entered"] <= then["drawn"] + 1, each
        assert each["drawn"] <= each["entered"] == ALL, each
    lost = {each["fault"]: each["entered"] - each["drawn"] for each in results}
    assert lost["ledger.opened:1"] == 0 and lost["ledger.durable:1"] == 1 and lost["silo.trained:3"] == 0


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Once it has said a random number of trainings; then another process goes on with the same job."""
    results = said(str(tmp_path), "moments", "6")
    assert [each["end"] for each in results] == [-signal.SIGKILL] * 6
    assert all(each["drawn"] <= each["entered"] <= ALL for each in results)
    assert results[-1]["drawn"] >= 6


def test_processes_at_once_share_one_budget(tmp_path: Path) -> None:
    (result,) = said(str(tmp_path), "at-once", "4")
    assert result == {"ends": [0] * 4, "entered": ALL, "drawn": ALL}
    jobs = {entry.line.job for entry in Ledger(tmp_path / "own").entries()}
    assert len(jobs) > 1, "all of them took part"


SIGMAS = (4.0, 8.0)
BUDGET = 2.0


class Spending(RuleBasedStateMachine):
    """Reservations, crashes that tear the last line, silos that start anew, and backups that are put back."""

    @initialize()
    def start(self) -> None:
        self.place = scratch()
        self.folder = self.place.__enter__()
        self.odometer = Odometer(self.folder, "s0")
        self.acknowledged: list[Query] = []
        self.known = LedgerHead(0, "")
        """That the driver was told of."""
        self.backups: list[tuple[int, bytes]] = []
        self.restored = False

    @rule(sigma=st.sampled_from(SIGMAS), steps=st.integers(1, 3), files=st.sampled_from("ab"))
    def reserve(self, sigma: float, steps: int, files: str) -> None:
        query = Query(1.0, sigma, steps)
        account = Account("heart", files * 64, Budget(epsilon=BUDGET, delta=1e-5))
        try:
            spent = self.odometer.reserve(account, [Spend(query)], "job", "run", 0, self.known)
        except OverBudget:
            assert not self.restored and epsilon([*self._entered(), query], 1e-5) > BUDGET
        except BadInput as refused:
            assert self.restored and "rolled back" in str(refused)
        else:
            assert not self.restored, "an old copy of the ledger was spent from"
            self.acknowledged.append(query)
            self.known = spent.head
            assert spent.epsilon == epsilon(self._entered(), 1e-5)

    @rule()
    def crash(self) -> None:
        self.odometer = Odometer(self.folder, "s0")

    @precondition(lambda self: self.acknowledged and not self.restored)
    @rule(part=st.floats(0.01, 0.99))
    def tear(self, part: float) -> None:
        """A line that was being written when the power went."""
        path = self.odometer.ledger.path
        last = path.read_bytes().splitlines(keepends=True)[-1]
        with path.open("ab") as file:
            file.write(last[: max(1, int(len(last) * part))])
        self.crash()

    @precondition(lambda self: not self.restored)
    @rule()
    def back_up(self) -> None:
        path = self.odometer.ledger.path
        if path.exists():
            self.backups.append((len(self.acknowledged), path.read_bytes()))

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        num, copy = data.draw(st.sampled_from(self.backups))
        newest = max(self.backups)[0]
        if not self.restored:
            self.backups.append((len(self.acknowledged), self.odometer.ledger.path.read_bytes()))
            newest = len(self.acknowledged)
        self.odometer.ledger.path.write_bytes(copy)
        self.restored = num < newest
        self.crash()

    def _entered(self) -> list[Query]:
        lines = [entry.line for entry in self.odometer.ledger.entries()]
        return [Query(line.q, line.sigma, line.steps) for line in lines]

    @invariant()
    def never_overspent(self) -> None:
        if not hasattr(self, "odometer"):
            return
        assert epsilon(self.acknowledged, 1e-5) <= BUDGET
        if not self.restored:
            assert self._entered() == self.acknowledged
            assert head_of(self.odometer.ledger.entries()).length == len(self.acknowledged)

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.place.__exit__(None, None, None)


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("bug", ["not entered", "not synced with the head"])
def test_the_machine_finds_a_planted_bug(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    """A reservation that is only checked; a ledger that does not ask whether it was rolled back."""
    if bug == "not entered":
        monkeypatch.setattr("silos.ledger.Writing.append", lambda self, lines: None)
    else:
        monkeypatch.setattr(Odometer, "_check", lambda self, entries, seen: None)
    case = Spending.TestCase()
    case.settings = settings(
        max_examples=60, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate]
    )
    with pytest.raises(AssertionError):
        case.runTest()
