"""The vote on a release at the driver: every silo that trained attacks the best version, and says pass or fail.

Each answer is a line of the journal as soon as it is there, so that a driver that goes on asks only the others. A
silence never ends the run; it counts as no vote.
"""

import asyncio
import math
from typing import Any

from orchestrator.attempt import Attempt
from orchestrator.core import events
from orchestrator.core.errors import SiloLost
from orchestrator.core.faults import fault
from orchestrator.core.messages import Attack, Attacked, Refused, SiloId
from orchestrator.core.protocols import State
from orchestrator.core.vector import digest_of
from orchestrator.receipts import vote_digest
from orchestrator.release import SCORES
from orchestrator.shares import without_shares
from orchestrator.voting import counted


async def ask_for_release(attempt: Attempt) -> None:
    """Ask every silo of which no vote is known yet, and record the outcome."""
    settings, best = attempt.job.release, attempt.board.best
    if settings is None or best is None:
        return
    version, silos = best[0], attempt.job.training
    missing = {silo: "not online" for silo in silos if silo not in attempt.enrolment.online}
    found = await _model(attempt, version)
    if found is None:
        missing = dict.fromkeys(silos, f"version {version} is not kept")
        attempt.emit(counted({}, missing, silos, settings, version, ""))
        return
    state, lineage = found
    known = {silo: each for silo, each in attempt.attacked.items() if each.lineage == lineage}
    asked = [silo for silo in silos if silo not in known and silo not in missing]
    if asked:
        parts = attempt.job.strategy.broadcast(state)
        published, received = await attempt.channel.publish(parts), await asyncio.to_thread(digest_of, parts)
        replies = (_ask(attempt, silo, version, lineage, published, received) for silo in asked)
        for silo, reply in zip(asked, await asyncio.gather(*replies), strict=True):
            if isinstance(reply, str):
                missing[silo] = reply
            else:
                known[silo] = reply
    attempt.emit(counted(known, missing, silos, settings, version, lineage))


async def _model(attempt: Attempt, version: int) -> tuple[State, str] | None:
    """State and lineage of the version that the alias would move to."""
    if version == attempt.model.version:
        return attempt.model.state, attempt.model.lineage
    kept = await asyncio.to_thread(attempt.store.kept, version)
    return None if kept is None else (without_shares(kept.state), str(kept.meta["lineage"]))


async def _ask(
    attempt: Attempt, silo: SiloId, version: int, lineage: str, published: object, received: str
) -> events.SiloAttacked | str:
    """The silo's answer, or why there is none. ``received``: digest of what is published."""
    trainings, num_steps = attempt.given.get(silo, (0, 0))
    head = attempt.store.head
    request = Attack(
        run_id=attempt.run_id,
        epoch=attempt.store.epoch,
        version=version,
        model=published,
        model_digest=lineage,
        counted=attempt.folded.get(silo, -1),
        trainings=trainings,
        num_steps=num_steps,
        head=head.digest,
        head_length=head.length,
    )
    try:
        reply = await attempt.calls.ask(silo, request)
    except SiloLost as lost:
        attempt.emit(events.SiloDown(silo=silo, version=version, why=f"has not voted: {lost.why}"))
        return f"lost: {lost.why}"
    if isinstance(reply, Refused):
        return f"refused: {reply.reason}"
    wrong = flaw(reply, request)
    if wrong is not None or not isinstance(reply, Attacked):
        attempt.refuse(silo, version, "metrics", f"has not voted: {wrong}")
        return str(wrong)
    unsigned = attempt.receipt_flaw(silo, "vote", version, head, reply.receipt) or misstated(reply, received)
    if unsigned is not None:
        attempt.refuse(silo, version, "receipt", f"has not voted: {unsigned}")
        return unsigned
    voted = events.SiloAttacked(
        silo=silo,
        version=version,
        lineage=lineage,
        vote=reply.vote,
        verdicts=dict(sorted(reply.verdicts.items())),
        scores=dict(sorted(reply.scores.items())),
        why=reply.why,
        seconds=reply.seconds,
        receipt=reply.receipt,
    )
    attempt.emit(voted)
    fault("silo.attacked")
    return voted


def misstated(said: Attacked | events.SiloAttacked, received: str) -> str | None:
    """Why the receipt is not of this vote on this model; None if it is, or there is none."""
    if said.receipt is None or (said.receipt.received, said.receipt.update) == (received, vote_digest(said)):
        return None
    return "its receipt is about another model or vote"


def flaw(reply: Any, request: Attack) -> str | None:
    """What is wrong with an answer; nothing of it is believed before."""
    if not isinstance(reply, Attacked):
        return f"answered with {type(reply).__name__}"
    if reply.model_digest != request.model_digest or reply.version != request.version:
        return "its answer is about another model"
    if (
        not reply.verdicts.keys() <= {"membership", "canary", "inversion"}
        or not reply.scores.keys() <= SCORES
    ):
        return "its answer names attacks that nobody asked for"
    if not all(math.isfinite(number) for number in (*reply.scores.values(), reply.seconds)):
        return "its answer holds NaN or infinity"
    return None
