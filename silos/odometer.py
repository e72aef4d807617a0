"""The silo's odometer: how much privacy its data have lost over all jobs, and whether a budget allows more.

Every training, and every release of noised figures, is reserved before it begins: entered in the ledger, durable, and
only then done. A crash leaves it spent. What is spent is computed from the ledger's lines each time (`silos.spending`).
"""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import LedgerHead
from orchestrator.privacy.accountant import epsilon_rdp
from silos.config import Budget
from silos.ledger import Entry, Ledger, Line, Unit, contains, head_of, signed
from silos.spending import Charge, Spend, left_of, lineage, loss

DELTA = 1e-5
"""At which figures are given for data without a budget, and jobs without a delta."""


RESERVED = "privacy reserved"
"""Event in the audit file, with the ledger's head after it."""


class OverBudget(Exception):
    """The owner's budget does not allow it: one sentence, with figures that follow from the number of rows."""

    def __init__(self, text: str, public: str) -> None:
        """``public``: the same without these figures."""
        super().__init__(text)
        self.public = public


@dataclass(frozen=True, slots=True)
class Account:
    """What is charged: a data set as it is now, under the owner's rules as they are now."""

    dataset: str
    data: str
    """Fingerprint of its files."""
    budget: Budget | None = None
    job_delta: float = DELTA
    """At which figures are given for data without a budget."""

    @property
    def delta(self) -> float:
        return self.job_delta if self.budget is None else self.budget.delta

    @property
    def new_rows(self) -> bool:
        """Whether the owner says that none of these rows was in the data set before."""
        given = () if self.budget is None else self.budget.new_rows
        return any(self.data.startswith(each) for each in given)


@dataclass(frozen=True, slots=True)
class Spent:
    """What the data have lost by now, in the unit of what was charged."""

    epsilon: float
    """Over all jobs, by privacy loss distributions."""
    epsilon_rdp: float
    """The same by Rényi's bound."""
    epsilon_job: float
    """To this job alone."""
    delta: float
    noise_multiplier: float | None
    """Of what was charged last on training rows."""
    head: LedgerHead
    """Of the ledger, with this in it once it is reserved."""
    of_rows: bool
    """Whether the number of training rows can be computed from these figures: it is in the sampling rate."""

    @property
    def figures(self) -> dict[str, float]:
        """For the driver."""
        noise = {} if self.noise_multiplier is None else {"noise_multiplier": self.noise_multiplier}
        return {
            **noise,
            "epsilon": self.epsilon,
            "epsilon_rdp": self.epsilon_rdp,
            "epsilon_job": self.epsilon_job,
            "delta": self.delta,
        }


class Odometer:
    """Of one silo. Methods raise `BadInput` where the ledger is damaged, was rolled back or cannot be written."""

    def __init__(self, folder: Path, silo: str, clock: Callable[[], float] = time.time) -> None:
        self.ledger, self._silo, self._clock = Ledger(folder), silo, clock
        self._newest = LedgerHead(0, "")
        """That this process has seen."""

    def reserve(
        self,
        account: Account,
        spends: Sequence[Spend],
        job_digest: str,
        run_id: str,
        version: int,
        seen: LedgerHead | None = None,
    ) -> Spent:
        """Enter all of these together, if the budget allows them. ``seen``: the newest head that the driver knows.
        Raises `OverBudget`, and then nothing is entered."""
        asked = [Charge(each, job_digest, account.data) for each in spends]
        with self.ledger.writing() as writing:
            self._check(writing.entries, seen)
            before = self._charges(account, [entry.line for entry in writing.entries])
            self._allow(account, before, asked)
            writing.append([self._line(account, each, run_id, version, seen) for each in asked])
            self._newest = head_of(writing.entries)
        return _spent(account, [*before, *asked], job_digest, spends[0].unit, self._newest)

    def planned(self, account: Account, plan: Sequence[Spend], job_digest: str, run_id: str) -> Spent:
        """What will be spent when all of a run's work is done: ``plan`` less what this run of the job has had. Raises
        `OverBudget` where that is more than the budget."""
        entries = self.ledger.entries()
        before = self._charges(account, [entry.line for entry in entries])
        own = [each for each in before if (each.job, each.run) == (job_digest, run_id)]
        asked = [Charge(each, job_digest, account.data) for each in left_of(plan, own)]
        self._allow(account, before, asked)
        return _spent(account, [*before, *asked], job_digest, plan[0].unit, head_of(entries))

    def had(self, account: Account) -> list[Charge]:
        """What was asked of these records, from the first on."""
        return self._charges(account, [entry.line for entry in self.ledger.entries()])

    def check(self, seen: LedgerHead | None) -> None:
        """Raises `BadInput` unless the ledger holds all that this driver, and this process, know to have been in it."""
        self._check(self.ledger.entries(), seen)

    def _check(self, entries: Sequence[Entry], seen: LedgerHead | None) -> None:
        if seen is not None and (seen.key or seen.signature) and not signed(seen, self._silo):
            what = "the driver's signature under the head of the privacy ledger does not fit its key"
            raise BadInput(f"{self.ledger.path}: {what}", what)
        for head, whose in ((self._newest, "this process wrote"), (seen, "the driver was told of")):
            if head is None or contains(entries, head):
                continue
            what = f"the privacy ledger was rolled back: {whose} line {head.length} ({head.hash[:12]})"
            now = f"and it has {len(entries)}" if head.length > len(entries) else "and another one is there"
            remedy = "put the newest copy back; without one, the owners of driver and silo must agree to begin anew"
            raise BadInput(f"{self.ledger.path}: {what}, {now}; {remedy}", f"{what}, {now}; {remedy}")

    def _charges(self, account: Account, lines: Iterable[Line]) -> list[Charge]:
        return lineage(lines, account.dataset, account.data, account.new_rows)

    def _allow(self, account: Account, before: Sequence[Charge], asked: Sequence[Charge]) -> None:
        budget, name = account.budget, account.dataset
        if budget is None:
            return
        whose = f"{self._silo}: the privacy budget of '{name}' (datasets.{name}.budget)"
        limit = f"{whose} is epsilon {budget.epsilon:g} at delta {budget.delta:g}"
        after = loss([*before, *asked], budget.unit, budget.delta)
        if after <= budget.epsilon:
            return
        spent, cost = loss(before, budget.unit, budget.delta), loss(asked, budget.unit, budget.delta)
        raise OverBudget(
            f"{limit}: {spent:.4g} is spent, {max(0.0, budget.epsilon - spent):.4g} is left, and this would come to "
            f"{after:.4g} (epsilon {cost:.4g} by itself): more noise or fewer steps",
            f"{limit}, and this would come to more: more noise or fewer steps",
        )

    def _line(
        self, account: Account, charge: Charge, run_id: str, version: int, seen: LedgerHead | None
    ) -> Line:
        spend = charge.spend
        return Line(
            previous="",
            salt=secrets.token_hex(16),
            at=datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds"),
            dataset=account.dataset,
            data=account.data,
            new_rows=account.new_rows,
            job=charge.job,
            run=run_id,
            version=version,
            unit=spend.unit,
            part=spend.part,
            q=float(spend.query.q),
            sigma=float(spend.query.sigma),
            steps=spend.query.steps,
            seen=seen,
        )


def _spent(account: Account, charges: Sequence[Charge], job: str, unit: Unit, head: LedgerHead) -> Spent:
    own = [each for each in charges if each.job == job]
    trained = [each for each in charges if (each.spend.unit, each.spend.part) == (unit, "train")]
    noise = [each.spend.query.sigma for each in trained if each.job == job]
    return Spent(
        noise_multiplier=noise[-1] if noise else None,
        epsilon=loss(charges, unit, account.delta),
        epsilon_rdp=loss(charges, unit, account.delta, epsilon_rdp),
        epsilon_job=loss(own, unit, account.delta),
        delta=account.delta,
        head=head,
        of_rows=unit != "silo" and bool(trained),
    )
