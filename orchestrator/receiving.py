"""What silos answer: an update that passes the gate counts for its round; everything else is put on record."""

from orchestrator.attempt import Attempt
from orchestrator.calls import Call
from orchestrator.core import events
from orchestrator.core.errors import CannotGoOn, SiloLost
from orchestrator.core.faults import fault
from orchestrator.core.messages import Refused, Reply, Train, Update
from orchestrator.core.receipts import Receipt
from orchestrator.gate import Expected, flaw
from orchestrator.privacy.sealing import settings_digest
from orchestrator.receipts import contributors_digest
from orchestrator.records import timed


def receive(attempt: Attempt, call: Call, reply: Reply | SiloLost) -> None:
    """Take the answer to a call for an update. Raises `CannotGoOn` where a newer driver has the run."""
    silo, version = call.silo, call.request.version
    if not attempt.calls.current(call):
        if isinstance(reply, Update):
            attempt.refuse(silo, version, "late", "answered after it had been given up")
        return
    attempt.calls.done(call)
    match reply:
        case SiloLost():
            attempt.lost(silo, version, reply.why)
        case Update():
            _arrived(attempt, call, reply)
        case Refused(code="cancelled"):
            attempt.rounds.lost(silo)
        case Refused(code="job" | "busy"):
            attempt.lost(silo, version, reply.reason)
        case Refused(code="fenced") if attempt.store.replaced():
            raise CannotGoOn(f"{silo}: {reply.reason}")
        case Refused():
            attempt.refuse(silo, version, reply.code, reply.reason)
            attempt.enrolment.refused(silo, reply)
            attempt.rounds.declined(silo)
        case _:
            attempt.refuse(silo, version, "unknown", f"answered with {type(reply).__name__}")
            attempt.rounds.declined(silo)


def _arrived(attempt: Attempt, call: Call, update: Update) -> None:
    found = flaw(attempt.job, update, _expected(attempt, call)) or _ledger_flaw(attempt, update)
    if found is not None:
        attempt.unfit(call.silo, call.request.version, *found)
        return
    if update.receipt is not None:
        attempt.heard(update.receipt)
    staleness = attempt.rounds.version - update.version
    now = attempt.clock()
    if not attempt.rounds.arrived(timed(update, now - call.began_at), now):
        attempt.refuse(update.silo, update.version, "stale", f"arrived {staleness} versions late")
        return
    attempt.emit(events.UpdateArrived(silo=update.silo, version=update.version, staleness=staleness))
    fault("update.arrived")


def _ledger_flaw(attempt: Attempt, update: Update) -> tuple[str, str] | None:
    wrong = attempt.ledgers.shown(update.silo, update.ledger)
    return None if wrong is None else ("ledger", wrong)


def _expected(attempt: Attempt, call: Call) -> Expected:
    """What the answer must be like, by what was asked."""
    joined = attempt.enrolment.joined.get(call.silo)
    asked = call.request
    assert isinstance(asked, Train)
    about = Receipt(
        kind="update",
        silo=call.silo,
        run_id=asked.run_id,
        job_digest=attempt.job.digest,
        epoch=asked.epoch,
        version=asked.version,
        attempt=asked.attempt,
        contributors=contributors_digest(asked.contributors),
        head=asked.head,
        head_length=asked.head_length,
    )
    return Expected(
        silo=call.silo,
        run_id=attempt.run_id,
        epoch=attempt.store.epoch,
        version=asked.version,
        model_digest=asked.model_digest,
        layout=attempt.model.layout,
        num_examples=joined.num_examples.get("train") if joined else None,
        receipt=attempt.known(call.silo, about),
        settings=settings_digest(asked.settings) if attempt.job.sums is not None else "",
        draw=asked.draw,
    )
