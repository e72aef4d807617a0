"""The privacy ledger for its owner: each data set's account by unit and job, and whether its witnesses agree."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import LedgerHead
from orchestrator.privacy.accountant import epsilon_rdp
from silos.audit import Audit
from silos.config import Budget
from silos.ledger import Entry, Line, Part, Unit, contains, signed
from silos.odometer import RESERVED, Account
from silos.spending import Charge, lineage, loss


class JobTotal(BaseModel, frozen=True):
    """What one job took from one part of the rows."""

    job: str
    part: Part
    epsilon: float
    epsilon_rdp: float
    lines: int
    steps: int
    first: str
    last: str


class UnitTotal(BaseModel, frozen=True):
    """The account of records, of patients or of the silo."""

    unit: Unit
    epsilon: float
    epsilon_rdp: float
    lines: int
    jobs: list[JobTotal]


class Statement(BaseModel, frozen=True):
    """Of one data set."""

    dataset: str
    data: str
    """Fingerprint of its files, now or when they were last charged; empty where it is not known."""
    delta: float
    budget: Budget | None
    left: float | None
    """Of the budget's epsilon; None without one."""
    totals: list[UnitTotal]


def statements(entries: Iterable[Entry], accounts: Iterable[Account]) -> list[Statement]:
    """Of these data sets, as far as they have a budget or a line, and of those that only the ledger knows. One without
    a fingerprint is taken to be as it was when it was charged last."""
    lines = [entry.line for entry in entries]
    known = {each.dataset: each for each in accounts}
    last = {line.dataset: line.data for line in lines}
    names = sorted({name for name, each in known.items() if each.budget is not None} | last.keys())
    found = (known.get(name, Account(name, "")) for name in names)
    return [_statement(lines, replace(each, data=each.data or last.get(each.dataset, ""))) for each in found]


def _statement(lines: Sequence[Line], account: Account) -> Statement:
    charges = lineage(lines, account.dataset, account.data, account.new_rows)
    units: list[Unit] = [unit for unit in ("record", "patient", "silo") if _of(charges, unit)]
    budget = account.budget
    return Statement(
        dataset=account.dataset,
        data=account.data,
        delta=account.delta,
        budget=budget,
        left=None if budget is None else max(0.0, budget.epsilon - loss(charges, budget.unit, budget.delta)),
        totals=[_unit(_of(charges, unit), unit, account.delta) for unit in units],
    )


def _of(charges: Iterable[Charge], unit: Unit) -> list[Charge]:
    return [each for each in charges if each.spend.unit == unit]


def _unit(charges: Sequence[Charge], unit: Unit, delta: float) -> UnitTotal:
    kinds = dict.fromkeys((each.job, each.spend.part) for each in charges)
    return UnitTotal(
        unit=unit,
        epsilon=loss(charges, unit, delta),
        epsilon_rdp=loss(charges, unit, delta, epsilon_rdp),
        lines=len(charges),
        jobs=[
            _job([each for each in charges if (each.job, each.spend.part) == kind], delta) for kind in kinds
        ],
    )


def _job(charges: Sequence[Charge], delta: float) -> JobTotal:
    first = charges[0]
    return JobTotal(
        job=first.job,
        part=first.spend.part,
        epsilon=loss(charges, first.spend.unit, delta),
        epsilon_rdp=loss(charges, first.spend.unit, delta, epsilon_rdp),
        lines=len(charges),
        steps=sum(each.spend.query.steps for each in charges),
        first=first.at,
        last=charges[-1].at,
    )


def countersigned(entries: Sequence[Entry], silo: str, path: Path) -> int:
    """Number of the newest line that a driver has signed; 0 for none. Raises `BadInput` for a line with a head that is
    not in the chain before it, or with a signature that is not of its key."""
    newest = 0
    for number, entry in enumerate(entries, 1):
        seen = entry.line.seen
        if seen is None:
            continue
        if seen.length >= number or not contains(entries, seen):
            raise BadInput(
                f"{path}: line {number} says that a driver was told of a line {seen.length} that is not here"
            )
        if seen.signature:
            if not signed(seen, silo):
                raise BadInput(f"{path}: line {number}: the driver's signature does not fit its key")
            newest = max(newest, seen.length)
    return newest


def audited(entries: Sequence[Entry], audit: Audit) -> int:
    """Number of the newest line of which the audit file knows; 0 for none. Raises `BadInput` where that is not in the
    chain."""
    newest = LedgerHead(0, "")
    for head in _heads(audit.path):
        if not contains(entries, head):
            raise BadInput(
                f"{audit.path} knows line {head.length} ({head.hash[:12]}) of the privacy ledger, which is not "
                "there: put the newest copy of the ledger back"
            )
        newest = max(newest, head, key=lambda each: each.length)
    return newest.length


def _heads(path: Path) -> Iterable[LedgerHead]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if RESERVED not in line:
                continue
            try:
                event = json.loads(line)
                if event["event"] == RESERVED:
                    yield LedgerHead(int(event["length"]), str(event["head"]))
            except (ValueError, KeyError, TypeError):
                continue
