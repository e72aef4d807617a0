"""What the lines of a privacy ledger come to. Pure arithmetic.

*Parts.* A record is in the training or in the test rows, for good: what was asked of the other part says nothing of it.
So a record's loss is the larger one of the two parts' (parallel composition). Once the data set has had other files, a
record may have been in either part by turns, and the two are added up. So are a patient's, with records in both.

*Units.* Loss of a record, of a patient and of a whole silo are three accounts. They are never added up.

*Data that change.* Other files of the same data set hold the same records, for all that is known: their account goes
on, and so does that of the same files under another name. Only the owner can say that all rows are new.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from orchestrator.privacy.accountant import Query, epsilon
from silos.ledger import Line, Part, Unit

Measure = Callable[[Iterable[Query], float], float]


class Spend(NamedTuple):
    """A query that is about to be put to the data."""

    query: Query
    unit: Unit = "record"
    part: Part = "train"


class Charge(NamedTuple):
    """One that is in the ledger, or about to be."""

    spend: Spend
    job: str
    """Digest of the job."""
    data: str
    """Fingerprint of the files."""
    at: str = ""
    """When it was entered."""
    run: str = ""


def lineage(lines: Iterable[Line], dataset: str, data: str, new_rows: bool) -> list[Charge]:
    """What was asked of the same records: of these files, and of those that came before them in their data set, up to
    the point where all rows were new."""
    lines, files = list(lines), _Families()
    last: dict[str, str] = {}
    for name, fingerprint, new in [
        *((each.dataset, each.data, each.new_rows) for each in lines),
        (dataset, data, new_rows),
    ]:
        if not new and name in last:
            files.join(last[name], fingerprint)
        last[name] = fingerprint
    return [_charge(each) for each in lines if files.of(each.data) == files.of(data)]


def _charge(line: Line) -> Charge:
    query = Query(line.q, line.sigma, line.steps)
    return Charge(Spend(query, line.unit, line.part), line.job, line.data, line.at, line.run)


class _Families:
    """Fingerprints that stand for the same records, as far as anybody knows (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, member: str) -> str:
        while member in self._parent:
            member = self._parent[member]
        return member

    def join(self, one: str, other: str) -> None:
        head, root = self.of(one), self.of(other)
        if head != root:
            self._parent[head] = root


def loss(charges: Iterable[Charge], unit: Unit, delta: float, measure: Measure = epsilon) -> float:
    """Epsilon of the records (patients, silo) that these charges are about."""
    charges = [each for each in charges if each.spend.unit == unit]
    parts: tuple[tuple[Part, ...], ...] = (("train", "test"),)
    if _apart(charges, unit):
        parts = (("train",), ("test",))
    return max(measure(_queries(charges, part), delta) for part in parts)


def of_training(charges: Iterable[Charge], unit: Unit) -> list[Query]:
    """What was asked of the records that are trained on now."""
    charges = [each for each in charges if each.spend.unit == unit]
    return _queries(charges, ("train",) if _apart(charges, unit) else ("train", "test"))


def _apart(charges: Sequence[Charge], unit: Unit) -> bool:
    """Whether no training row was ever a test row."""
    return unit == "record" and len({each.data for each in charges}) <= 1


def left_of(plan: Iterable[Spend], had: Iterable[Charge]) -> list[Spend]:
    """The plan without as many steps of each kind as there were."""
    done: dict[tuple[Unit, Part], int] = {}
    for each in had:
        kind = each.spend.unit, each.spend.part
        done[kind] = done.get(kind, 0) + each.spend.query.steps
    left = []
    for spend in plan:
        kind = spend.unit, spend.part
        gone = min(done.get(kind, 0), spend.query.steps)
        done[kind] = done.get(kind, 0) - gone
        if spend.query.steps > gone:
            left.append(spend._replace(query=spend.query._replace(steps=spend.query.steps - gone)))
    return left


def _queries(charges: Sequence[Charge], parts: Sequence[Part]) -> list[Query]:
    return [each.spend.query for each in charges if each.spend.part in parts]
