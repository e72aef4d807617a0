"""What a run directory proves, checked without anybody's help: the chain, who signed it, and what for."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.chain import Chain
from orchestrator.core import events
from orchestrator.core.errors import BadInput
from orchestrator.core.events import EVENT, Contributor
from orchestrator.core.receipts import Receipt
from orchestrator.job import Job
from orchestrator.journal import JOURNAL
from orchestrator.receipts import contributors_digest, is_signed_by, vote_digest
from orchestrator.store import COUNTERSIGNS, Store
from orchestrator.verdict import Check, Outside, Report
from orchestrator.verified_models import Models
from orchestrator.verified_votes import Votes
from orchestrator.witnesses import audit_check

MOST_TOLD = 20
"""Faults of one kind that are told one by one."""

_RECEIPT = TypeAdapter(Receipt)
TRIES = 5
"""Of a run that goes on meanwhile: its checkpoints may be newer than the lines that were read."""
NOTHING = Outside()
NOBODY = contributors_digest(())
"""In version 0."""


def verify(store: Store, outside: Outside = NOTHING) -> Report:
    """Check the run directory of ``store``, of which no lease is needed. Raises `BadInput` where there is none."""
    journal = store.root / JOURNAL
    try:
        for _ in range(TRIES):
            size = journal.stat().st_size
            made = _Verifying(store, Chain.of(journal), outside).report()
            if made.fine or journal.stat().st_size == size:
                break
    except OSError as error:
        raise BadInput(f"{error.filename or store.root}: {error.strerror}") from None
    return made


class _Verifying:
    def __init__(self, store: Store, chain: Chain, outside: Outside) -> None:
        self.store, self.chain, self.outside = store, chain, outside
        self.opened: events.RunOpened | None = None
        self.job: Job | None = None
        self.keys: dict[str, str] = {}
        """Those that the silos have shown last; ``joined`` in the driver's attempt in hand."""
        self.joined: set[str] = set()
        self.changed: list[str] = []
        self.rounds: dict[int, events.RoundClosed] = {}
        """Of the versions that count."""
        self.members: dict[int, frozenset[str]] = {}
        """By version, the silos whose updates are in it; ``told``: their digest."""
        self.told: dict[int, str] = {}
        self.counted: dict[tuple[str, int], int] = {}
        """By silo and the version that it trained from, the version that its update is in."""
        self.closed: events.RunClosed | None = None
        self.num_updates = 0
        self.signed, self.history = Check("receipts"), Check("countersigned history")
        self.job_check, self.rounds_made = Check("job"), Check("rounds")
        self.models, self.votes = Models(), Votes()
        self.seen: dict[str, int] = {}
        self.last: dict[str, int] = {}

    def report(self) -> Report:
        chained, driver = Check("journal"), Check("driver's signatures")
        chained.wrong += self.chain.breaks
        if not self.chain.linked:
            chained.wrong.append("it is no chain: the run was made by an older Siloray")
        chained.found = f"{self.chain.num_lines} lines, each follows the one before"
        signed, wrong, keys = self.chain.signatures(self.outside.driver_key, self.outside.revoked)
        driver.wrong += wrong
        known = ", ".join(f"{key} from line {place} on" if place > 1 else key for key, place in keys.items())
        driver.found = f"{signed} lines, key {known}" if keys else "none: the driver had no key"
        self._read(chained)
        self.rounds_made.found = f"{len(self.rounds)}, one after the other"
        self._end()
        found = [self.job_check, self.rounds_made, self.signed, self.history, self.models.check]
        checks = [chained, driver, *found]
        checks += [self.votes.check] if self.votes.check.found else []
        run_id = self.opened.run_id if self.opened else ""
        checks += [audit_check(path, run_id, self.chain) for path in self.outside.audits]
        made = Report(checks=checks, num_lines=self.chain.num_lines, countersigned=self.seen)
        made.run_id = run_id or self.store.root.name
        made.versions = len(self.rounds)
        for closed in self.rounds.values():
            for each in closed.contributors:
                made.contributors[each.silo] = made.contributors.get(each.silo, 0) + 1
        for check in checks:
            del check.wrong[MOST_TOLD:]
        return made

    # the events, one after the other

    def _read(self, chained: Check) -> None:
        for place, event in self.chain.events():
            try:
                self._take(place, EVENT.validate_python(event))
            except ValidationError:
                chained.wrong.append(f"line {place + 1} is no event that this Siloray knows")

    def _take(self, place: int, event: events.Event) -> None:
        match event:
            case events.RunOpened():
                self._job(place, event)
            case events.SiloJoined():
                self._joined(place, event)
            case events.RoundClosed():
                self._round(place, event)
            case events.Rewound():
                self.rounds = {v: each for v, each in self.rounds.items() if v <= event.version}
                self.counted = {update: v for update, v in self.counted.items() if v <= event.version}
                self.models.rewind(event.version)
            case events.VersionEvaluated():
                for receipt in event.receipts:
                    self._statement(place, receipt, "evaluation", receipt.silo)
            case events.SiloAttacked():
                self._vote(place, event)
            case events.ReleaseVoted():
                self._check_open(place)
                self.votes.outcome(place, event, self.job, self.rounds)
            case events.RunClosed():
                self._check_open(place)
                self.closed = event

    def _check_open(self, place: int) -> None:
        """A run that is over goes on with a driver that opens it again."""
        if self.opened is None or self.closed is not None:
            self.rounds_made.wrong.append(f"line {place + 1}: the run was not open")

    def _round(self, place: int, event: events.RoundClosed) -> None:
        self._check_open(place)
        newest = max(self.rounds, default=0)
        if event.version != newest + 1:
            self.rounds_made.wrong.append(
                f"line {place + 1}: version {event.version} follows version {newest}"
            )
        if not event.contributors:
            self.rounds_made.wrong.append(
                f"line {place + 1}: version {event.version} is made of nobody's update"
            )
        for each in event.contributors:
            self._contributor(place, each)
            self._once(place, each, event.version)
        self.rounds[event.version] = event
        before, names = self.members.get(newest, frozenset()), {each.silo for each in event.contributors}
        self.members[event.version] = before if names <= before else before | names
        self.told[event.version] = contributors_digest(self.members[event.version])

    def _vote(self, place: int, event: events.SiloAttacked) -> None:
        where, receipt = f"line {place + 1}: {event.silo}", event.receipt
        self.votes.take(event)
        if receipt is None:
            self.signed.wrong.append(f"{where}: its vote counts without a receipt")
            return
        self._statement(place, receipt, "vote", event.silo)
        if (receipt.version, receipt.update) != (event.version, vote_digest(event)):
            self.signed.wrong.append(f"{where}: its receipt is about another vote")

    def _job(self, place: int, event: events.RunOpened) -> None:
        self.joined.clear()
        self.closed = None
        if self.opened is None:
            self.opened = event
            self.job_check.found = f"{event.name}, {event.job_digest[:16]}"
        if (event.run_id, event.job_digest) != (self.opened.run_id, self.opened.job_digest):
            self.job_check.wrong.append(f"line {place + 1} is of another run or job")
        self.job = _job_in(event.job)
        if self.job is None:
            self.job_check.wrong.append(f"line {place + 1}: the job there is none that this Siloray knows")
        elif self.job.digest != event.job_digest:
            self.job_check.wrong.append(f"line {place + 1}: the job there has another digest than it says")

    def _joined(self, place: int, event: events.SiloJoined) -> None:
        if self.keys.get(event.silo, event.key) != event.key:
            if event.silo in self.joined:
                self.signed.wrong.append(
                    f"line {place + 1}: {event.silo} joined with another key than before"
                )
            self.changed.append(f"{event.silo} has another key from line {place + 1} on")
        self.keys[event.silo] = event.key
        self.joined.add(event.silo)
        wanted = self.outside.silos.get(event.silo)
        if event.key in self.outside.revoked:
            self.signed.wrong.append(
                f"line {place + 1}: {event.silo} signs with a key that the roster has revoked"
            )
        elif self.outside.silos and wanted != event.key:
            self.signed.wrong.append(
                f"line {place + 1}: {event.silo} signs with another key than the roster has"
            )

    def _contributor(self, place: int, each: Contributor) -> None:
        receipt, where = each.receipt, f"line {place + 1}: {each.silo}, version {each.base_version}"
        if receipt is None:
            self.signed.wrong.append(f"{where}: its update counts without a receipt")
            return
        self._statement(place, receipt, "update", each.silo)
        if (receipt.version, receipt.num_examples) != (each.base_version, each.num_examples):
            self.signed.wrong.append(f"{where}: its receipt is about another version or number of rows")
        if receipt.contributors != self.told.get(each.base_version, NOBODY):
            self.signed.wrong.append(
                f"{where}: it was told of other contributors to the model than these lines have"
            )
        self.num_updates += 1

    def _once(self, place: int, each: Contributor, version: int) -> None:
        """A silo delivers once from a version, however often it is asked."""
        where, update = f"line {place + 1}: {each.silo}", (each.silo, each.base_version)
        if update in self.counted:
            self.signed.wrong.append(
                f"{where}: its work on version {each.base_version} is in version {self.counted[update]} already"
            )
        if each.base_version >= version:
            self.signed.wrong.append(
                f"{where}: its work on version {each.base_version} is in version {version}"
            )
        self.counted.setdefault(update, version)

    def _statement(self, place: int, receipt: Receipt, kind: str, silo: str) -> None:
        where = f"line {place + 1}: {silo}"
        opened = self.opened
        if opened is None or not is_signed_by(receipt, self.keys.get(silo, "")):
            self.signed.wrong.append(f"{where}: a receipt that it has not signed")
            return
        about = receipt.kind, receipt.silo, receipt.run_id, receipt.job_digest
        if about != (kind, silo, opened.run_id, opened.job_digest):
            self.signed.wrong.append(f"{where}: a receipt of another silo, run, job or purpose")
        if receipt.sequence <= self.last.get(silo, -1):
            self.signed.wrong.append(f"{where}: its receipt {receipt.sequence} stands here for a second time")
        self.last[silo] = max(receipt.sequence, self.last.get(silo, -1))
        self.models.take(where, receipt)
        self._head(where, silo, receipt.head, receipt.head_length, place)

    def _head(self, where: str, silo: str, head: str, length: int, place: int) -> None:
        """A silo has signed the first ``length`` lines, before the one at ``place`` was written."""
        if length > place:
            self.history.wrong.append(f"{where} signed a history of {length} lines, and here are {place}")
        elif not self.chain.has(head, length):
            self.history.wrong.append(
                f"{where} signed another history than the first {length} lines: one of them was changed"
            )
        elif length:
            self.seen[silo] = max(length, self.seen.get(silo, 0))

    # at the end

    def _end(self) -> None:
        self._countersigns()
        whose = "held against the roster" if self.outside.silos else "as the journal itself has them"
        keys = "; ".join([f"{len(self.keys)} silos' keys {whose}", *self.changed])
        self.signed.found = f"{self.num_updates} updates, {keys}"
        self.history.found = (
            ", ".join(f"{silo} {length} lines" for silo, length in sorted(self.seen.items())) or "none"
        )
        if self.opened is None:
            self.job_check.wrong.append("no line says which job this is")
            return
        with suppress(FileNotFoundError):
            beside = _job_in((self.store.root / "job.json").read_bytes())
            if beside is None or beside.digest != self.opened.job_digest:
                self.job_check.wrong.append("job.json is another job than the journal's")
        self.history.wrong += self.models.finish(self.store, self.chain, self.job, self.closed)

    def _countersigns(self) -> None:
        """What the silos signed when the run was over."""
        for number, receipt in enumerate(_lines(self.store.root / COUNTERSIGNS), 1):
            where = f"{COUNTERSIGNS} line {number}"
            if receipt is None or not is_signed_by(receipt, self.keys.get(receipt.silo, "")):
                self.history.wrong.append(f"{where}: a receipt that its silo has not signed")
            else:
                self._head(
                    f"{where}: {receipt.silo}",
                    receipt.silo,
                    receipt.head,
                    receipt.head_length,
                    self.chain.num_lines,
                )


def _lines(path: Path) -> list[Receipt | None]:
    found: list[Receipt | None] = []
    with suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            try:
                found.append(_RECEIPT.validate_json(line))
            except ValidationError:
                found.append(None)
    return found


def _job_in(given: Mapping[str, Any] | bytes) -> Job | None:
    """None where it is no job that this Siloray knows."""
    try:
        return Job.model_validate_json(given) if isinstance(given, bytes) else Job.model_validate(given)
    except ValidationError:
        return None
