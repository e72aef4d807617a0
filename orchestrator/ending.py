"""The last phase of an attempt: figures of the last version, the record's last line, and the silos' leave."""

import asyncio
import contextlib
from dataclasses import dataclass

from orchestrator.assessing import assess
from orchestrator.attempt import Attempt
from orchestrator.core import events
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Evaluate, Evaluated, Leave, Refused, SiloId
from orchestrator.core.metrics import MetricSums
from orchestrator.gate import unsound
from orchestrator.store import DiskFull
from orchestrator.valuing import value


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: str
    """``done``, ``stopped`` or ``failed``."""
    exit_code: int
    reason: str


async def finish(attempt: Attempt, status: str, reason: str) -> Outcome:
    """End a run that is ``done`` or ``stopped``; its newest version is durable first."""
    await attempt.model.committed()
    if status == "done":
        await _evaluate_last(attempt)
        await value(attempt)
        await assess(attempt)
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


async def _evaluate_last(attempt: Attempt) -> None:
    """Figures of the last version, which no round trains from."""
    board, version = attempt.board, attempt.model.version
    published = await attempt.channel.publish(attempt.job.strategy.broadcast(attempt.model.state))
    silos = sorted(attempt.enrolment.online & set(attempt.job.training))
    replies = await asyncio.gather(*(_evaluate(attempt, silo, published) for silo in silos))
    reports = {silo: sums for silo, sums in zip(silos, replies, strict=True) if sums is not None}
    while (found := board.odd(list(reports.values()))) is not None:
        silo = list(reports)[found[0]]
        del reports[silo]
        reason = f"its sums of '{found[1]}' do not add up with the others'"
        attempt.refuse(silo, version, "metrics", reason)
    for silo, sums in reports.items():
        board.report(silo, version, sums)
    figures = board.figures(version)
    attempt.emit(events.VersionEvaluated(evaluated=figures, best=attempt.pin_best() == version))


async def _evaluate(attempt: Attempt, silo: SiloId, published: object) -> MetricSums | None:
    version = attempt.model.version
    request = Evaluate(
        run_id=attempt.run_id,
        epoch=attempt.store.epoch,
        version=version,
        model=published,
        counted=attempt.folded.get(silo, -1),
    )
    try:
        reply = await attempt.calls.ask(silo, request)
    except SiloLost as lost:
        attempt.emit(events.SiloDown(silo=silo, version=version, why=f"not evaluated: {lost.why}"))
        return None
    if isinstance(reply, Refused):
        attempt.refuse(silo, version, reply.code, f"not evaluated: {reply.reason}")
        return None
    if not isinstance(reply, Evaluated) or unsound(reply.metrics) is not None:
        attempt.refuse(silo, version, "metrics", f"sent no figures: {reply}")
        return None
    return reply.metrics


async def _dismiss(attempt: Attempt, finished: bool) -> None:
    """Free the silos for other runs; one that does not hear it frees itself after a while."""
    leave = Leave(run_id=attempt.run_id, epoch=attempt.store.epoch, finished=finished)
    calls = [attempt.channel.call(silo, leave) for silo in sorted(attempt.enrolment.online)]
    with contextlib.suppress(TimeoutError):
        everyone = asyncio.gather(*calls, return_exceptions=True)
        await asyncio.wait_for(everyone, min(5.0, attempt.patience_s))
