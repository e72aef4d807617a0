"""The end-of-run report at the driver: what each silo finds, and the verdict over all of them.

Each silo's answer is a line of the journal as soon as it is there, so that a driver that goes on asks only the others.
A silo that is lost or refuses leaves a gap in the report, and never ends the run.
"""

import asyncio
import math
from typing import Any

from orchestrator.attempt import Attempt
from orchestrator.core import events
from orchestrator.core.errors import SiloLost
from orchestrator.core.faults import fault
from orchestrator.core.messages import Assess, Assessed, Judged, Refused, SiloId
from orchestrator.core.metrics import values
from orchestrator.core.protocols import State
from orchestrator.fairness import judged
from orchestrator.gate import unsound
from orchestrator.shares import without_shares

MODELS = ("global", "fine_tuned", "alone", "personal")


async def assess(attempt: Attempt) -> None:
    """Ask every silo of which nothing is known yet, and record the verdict. The model is the best version, whose
    checkpoint is kept for that; with private layers, which belong to the last version, it is the last."""
    if not attempt.job.report.silos:
        return
    version, state, lineage = await _model(attempt)
    known = {silo: each for silo, each in attempt.assessed.items() if each.lineage == lineage}
    missing = sorted(attempt.enrolment.online - known.keys())
    if missing:
        published = await attempt.channel.publish(attempt.job.strategy.broadcast(state))
        asked = (_ask(attempt, silo, version, lineage, published) for silo in missing)
        for found in await asyncio.gather(*asked):
            if found is not None:
                known[found.silo] = found
    metric, settings = attempt.job.stop.metric, attempt.job.report
    block = settings.do_no_harm == "block"
    attempt.emit(judged(known.values(), attempt.job.training, version, metric, block))


async def _model(attempt: Attempt) -> tuple[int, State, str]:
    """Version, state and lineage of the model that is assessed."""
    model, best = attempt.model, attempt.board.best
    job = attempt.job
    private = bool(job.private) or job.strategy.private_layers != "none" or job.strategy.shares_logits
    if best is not None and best[0] != model.version and not private:
        kept = await asyncio.to_thread(attempt.store.kept, best[0])
        if kept is not None:
            return best[0], without_shares(kept.state), str(kept.meta["lineage"])
    return model.version, model.state, model.lineage


async def _ask(
    attempt: Attempt, silo: SiloId, version: int, lineage: str, published: object
) -> events.SiloAssessed | None:
    held_out = silo in attempt.job.held_out
    given = attempt.given.get(silo, (0, 0))
    request = Assess(
        run_id=attempt.run_id,
        epoch=attempt.store.epoch,
        version=version,
        model=published,
        model_digest=lineage,
        counted=attempt.folded.get(silo, -1),
        trainings=attempt.model.version if held_out else given[0],
        num_steps=given[1],
    )
    try:
        reply = await attempt.calls.ask(silo, request)
    except SiloLost as lost:
        attempt.emit(events.SiloDown(silo=silo, version=version, why=f"not assessed: {lost.why}"))
        return None
    if isinstance(reply, Refused):
        attempt.refuse(silo, version, reply.code, f"not assessed: {reply.reason}")
        return None
    wrong = flaw(reply, request)
    if wrong is not None or not isinstance(reply, Assessed):
        attempt.refuse(silo, version, "metrics", f"not assessed: {wrong}")
        return None
    found = _event(reply, lineage, held_out, given[1])
    attempt.emit(found)
    fault("silo.assessed")
    return found


def flaw(reply: Any, request: Assess) -> str | None:
    """What is wrong with an answer; nothing of it is believed before."""
    if not isinstance(reply, Assessed):
        return f"answered with {type(reply).__name__}"
    if reply.model_digest != request.model_digest or reply.version != request.version:
        return "its answer is about another model"
    if not reply.models.keys() <= set(MODELS) or len(reply.curve) > 100:
        return "its answer names models that nobody asked for"
    sums = [*(each.metrics for each in reply.models.values()), *(each for _, each in reply.curve)]
    wrong = next((name for each in sums if (name := unsound(each)) is not None), None)
    if wrong is not None:
        return f"its sums of '{wrong}' are none"
    pairs = [
        pair for each in reply.models.values() for pair in (*each.intervals.values(), *each.gains.values())
    ]
    numbers = [*(number for pair in pairs for number in pair), *reply.seconds.values()]
    if not all(math.isfinite(number) for number in numbers):
        return "its answer holds NaN or infinity"
    if reply.accepted < 0 or reply.num_steps < 0 or any(steps < 0 for steps, _ in reply.curve):
        return "its answer holds negative counts"
    return None


def _event(reply: Assessed, lineage: str, held_out: bool, run_steps: int) -> events.SiloAssessed:
    return events.SiloAssessed(
        silo=reply.silo,
        version=reply.version,
        lineage=lineage,
        held_out=held_out,
        models={name: _assessment(each) for name, each in sorted(reply.models.items())},
        curve=[events.AdaptedFigures(steps=steps, metrics=values(sums)) for steps, sums in reply.curve],
        accepted=reply.accepted,
        num_steps=reply.num_steps,
        run_steps=run_steps,
        seconds=reply.seconds,
    )


def _assessment(each: Judged) -> events.Assessment:
    return events.Assessment(
        metrics=values(each.metrics),
        intervals=each.intervals,
        gains=each.gains,
        verdicts=dict(each.verdicts),
    )
