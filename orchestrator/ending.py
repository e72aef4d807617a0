"""The last phase of an attempt: figures of the last version, the record's last line, and the silos' leave."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.assessing import assess
from orchestrator.attempt import Attempt
from orchestrator.core import events
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Evaluate, Evaluated, Leave, Progress, Refused, Reply, SiloId
from orchestrator.core.metrics import MetricSums
from orchestrator.core.receipts import Receipt
from orchestrator.gate import unsound
from orchestrator.journal import Head
from orchestrator.privacy.fixed_point import fits
from orchestrator.privacy.sealing import SumFailed
from orchestrator.releasing import ask_for_release
from orchestrator.sealed import SealedSums
from orchestrator.store import DiskFull
from orchestrator.valuing import value


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: str
    """``done``, ``stopped`` or ``failed``."""
    exit_code: int
    reason: str


async def finish(attempt: Attempt, status: str, reason: str, sums: SealedSums | None = None) -> Outcome:
    """End a run that is ``done`` or ``stopped``; its newest version is durable first."""
    await attempt.model.committed()
    if status == "done":
        await _evaluate_last(attempt, sums)
        await value(attempt)
        await assess(attempt)
        await ask_for_release(attempt)
    _close(attempt, status, reason, await asyncio.to_thread(attempt.model.parameters_digest))
    await _dismiss(attempt, finished=status == "done")
    return Outcome(status, 0 if status == "done" else 3, reason)


async def fail(attempt: Attempt, exit_code: int, reason: str) -> Outcome:
    """End a run that could not go on."""
    await attempt.model.close()
    _close(attempt, "failed", reason, attempt.model.parameters_digest())
    return Outcome("failed", exit_code, reason)


def _close(attempt: Attempt, status: str, reason: str, digest: str) -> None:
    best = attempt.board.best
    closed = events.RunClosed(
        status=status,
        reason=reason,
        version=attempt.model.version,
        parameters_digest=digest,
        best_version=best[0] if best else None,
        best_metric=attempt.job.stop.metric if best else None,
        best_value=best[1] if best else None,
        never_contributed=sorted(set(attempt.job.training) - attempt.folded.keys()),
    )
    try:
        attempt.emit(closed)
    except DiskFull:
        if status != "failed":
            raise
        attempt.observe(closed)  # for want of space, the world is told without a record


async def _evaluate_last(attempt: Attempt, sums: SealedSums | None) -> None:
    """Figures of the last version, which no round trains from."""
    board, version = attempt.board, attempt.model.version
    published = await attempt.channel.publish(attempt.job.strategy.broadcast(attempt.model.state))
    silos = sorted(attempt.enrolment.online & set(attempt.job.training))
    replies = await asyncio.gather(*(_evaluate(attempt, silo, published) for silo in silos))
    evaluated = {silo: reply for silo, reply in zip(silos, replies, strict=True) if reply is not None}
    reports = {silo: reply.metrics for silo, reply in evaluated.items()}
    while (found := board.odd(list(reports.values()))) is not None:
        silo = list(reports)[found[0]]
        del reports[silo]
        reason = f"its sums of '{found[1]}' do not add up with the others'"
        attempt.refuse(silo, version, "metrics", reason)
    for silo, own in reports.items():
        board.report(silo, version, own)
    board.report_together(version, await _together(attempt, sums, evaluated, version))
    figures = board.figures(version)
    receipts = [reply.receipt for reply in evaluated.values() if reply.receipt is not None]
    attempt.emit(
        events.VersionEvaluated(evaluated=figures, best=attempt.pin_best() == version, receipts=receipts)
    )


async def _together(
    attempt: Attempt, sums: SealedSums | None, evaluated: Mapping[SiloId, Evaluated], version: int
) -> MetricSums:
    """What silos tell in a sum only; nothing where that cannot be opened without those who do not do their part."""
    bring = {silo: reply for silo, reply in evaluated.items() if reply.summed}
    while sums is not None and len(bring) >= max(sums.combine.least, attempt.job.policy.min_silos):
        try:
            return await sums.metrics(bring, version)
        except SumFailed as failed:
            for silo, why in failed.why.items():
                attempt.emit(events.SiloDown(silo=silo, version=version, why=f"not evaluated: {why}"))
            if failed.bound or not failed.why.keys() & bring.keys():
                return {}
            bring = {silo: reply for silo, reply in bring.items() if silo not in failed.why}
    return {}


async def _evaluate(attempt: Attempt, silo: SiloId, published: object) -> Evaluated | None:
    version, head = attempt.model.version, attempt.store.head
    request = Evaluate(
        run_id=attempt.run_id,
        epoch=attempt.store.epoch,
        version=version,
        model=published,
        counted=attempt.folded.get(silo, -1),
        head=head.digest,
        head_length=head.length,
    )
    try:
        reply = await attempt.calls.ask(silo, request)
    except SiloLost as lost:
        attempt.emit(events.SiloDown(silo=silo, version=version, why=f"not evaluated: {lost.why}"))
        return None
    if isinstance(reply, Refused):
        attempt.refuse(silo, version, reply.code, f"not evaluated: {reply.reason}")
        return None
    if not isinstance(reply, Evaluated) or unsound(reply.metrics) is not None or not fits(reply.summed):
        attempt.refuse(silo, version, "metrics", f"sent no figures: {reply}")
        return None
    wrong = attempt.receipt_flaw(silo, "evaluation", version, head, reply.receipt)
    if wrong is not None:
        attempt.refuse(silo, version, "receipt", f"not evaluated: {wrong}")
        return None
    return reply


async def _dismiss(attempt: Attempt, finished: bool) -> None:
    """Free the silos for other runs, and have them sign the whole history; one that does not hear it frees itself after
    a while."""
    head = attempt.store.head
    leave = Leave(
        run_id=attempt.run_id,
        epoch=attempt.store.epoch,
        finished=finished,
        head=head.digest,
        head_length=head.length,
    )
    silos = sorted(attempt.enrolment.online)
    calls = {silo: asyncio.ensure_future(attempt.channel.call(silo, leave)) for silo in silos}
    if calls:
        await asyncio.wait(calls.values(), timeout=min(5.0, attempt.patience_s))
    signed = [_countersigned(attempt, silo, head, call) for silo, call in calls.items()]
    with contextlib.suppress(DiskFull):
        attempt.store.countersign([receipt for receipt in signed if receipt is not None])


def _countersigned(
    attempt: Attempt, silo: SiloId, head: Head, call: "asyncio.Future[Reply]"
) -> Receipt | None:
    """What the silo signed when it left; None where it said nothing that counts."""
    if not call.done():
        call.cancel()
        return None
    reply = call.result() if call.exception() is None else None
    receipt = reply.receipt if isinstance(reply, Progress) else None
    if receipt is None or attempt.receipt_flaw(silo, "leave", -1, head, receipt) is not None:
        return None
    return receipt
