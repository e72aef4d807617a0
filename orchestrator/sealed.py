"""Sums that the driver cannot look into: it carries the questions of the combiner's protocol to the silos, adds up what
they sealed, and opens no more than the sum.

A silo that is lost on the way is left out where the protocol allows it. Where the sum cannot be opened, or holds fewer
silos than the job wants in an average, it fails (`SumFailed`), and the driver closes the round anew, with another
attempt and therefore other keys.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from orchestrator.attempt import Attempt
from orchestrator.core.messages import CohortInfo, Evaluated, SiloId, Update
from orchestrator.core.metrics import MetricSums
from orchestrator.core.vector import Layout, Vector
from orchestrator.opened import OpenedSum, decoded
from orchestrator.pipeline import Combined
from orchestrator.privacy.fixed_point import FIXED, metrics_of
from orchestrator.privacy.ring_sum import RingSum
from orchestrator.privacy.sealing import Member as SumMember
from orchestrator.privacy.sealing import Opened, SumFailed, SumHeader
from orchestrator.sum_members import members_of, newest, usual_shapes
from orchestrator.sum_steps import SumSteps


@dataclass(frozen=True, slots=True)
class Summed:
    """The outcome of a sealed sum."""

    combined: Combined
    updates: list[Update]
    """Those that are in it, in the order of the sum."""


class SealedSums:
    """Of one attempt at a run."""

    def __init__(self, attempt: Attempt, combine: RingSum) -> None:
        self.attempt, self.job, self.combine = attempt, attempt.job, combine
        self.steps = SumSteps(attempt, combine)
        self._number = self._sums = 0
        self._covered: dict[SiloId, str] = {}
        """Silos of the newest set-up, and the processes that took part in it."""

    async def fold(self, updates: Sequence[Update], cohort: CohortInfo, out: Vector) -> Summed:
        """Sum these updates, which are in the order of the sum, into ``out``. Raises `SumFailed`."""
        self.steps.begin()
        updates, factors = newest(updates, cohort.factors)
        silos = sorted({update.silo for update in updates})
        began = perf_counter()
        await self._set_up(sorted({*silos, *self.combine.helpers}))
        layout = Layout(*(tuple(column) for column in zip(*updates[0].layout, strict=True)))
        settings = self.attempt.model.settings
        point = self.combine.fixed_point(self.job.max_in_sum, settings)
        headers = self._headers(updates, factors, layout.size)
        sums = await self._opened(headers)
        inside = {silo for each in sums for silo in each.opened.silos}
        used = [update for update in updates if update.silo in inside]
        left_out = {silo: self._why_not(silo, sums) for silo in silos if silo not in inside}
        transfer = perf_counter() - began
        combined = await asyncio.to_thread(
            decoded, self.job, self.combine, point, sums, layout, out, used, settings, left_out
        )
        combined.seconds = {"transfer": transfer, "fold": perf_counter() - began - transfer}
        return Summed(combined, used)

    async def metrics(self, replies: Mapping[SiloId, Evaluated], version: int) -> MetricSums:
        """Together, of what silos found in an evaluation. Raises `SumFailed`."""
        self.steps.begin()
        await self._set_up(sorted({*replies, *self.combine.helpers}))
        members = tuple(
            SumMember(silo, (version,), (reply.received,), (1.0,), hidden=reply.hidden)
            for silo, reply in sorted(replies.items())
        )
        header = self._made(members, 0, usual_shapes(reply.summed for reply in replies.values()), version)
        opened = await self._open(header)
        return metrics_of(opened.total[FIXED:], header.shapes)

    async def _opened(self, headers: Sequence[SumHeader]) -> list[OpenedSum]:
        """All sums, at once. A group's may fail where the rule over groups does without it. Raises `SumFailed`."""
        flows = [self._open(header) for header in headers]
        results = await asyncio.gather(*flows, return_exceptions=True)
        unexpected = [
            each for each in results if isinstance(each, BaseException) and not isinstance(each, SumFailed)
        ]
        if unexpected:
            raise unexpected[0]
        failures = [each for each in results if isinstance(each, SumFailed)]
        failed = {silo: why for each in failures for silo, why in each.why.items()}
        sums = [
            OpenedSum(header, each)
            for header, each in zip(headers, results, strict=True)
            if isinstance(each, Opened)
        ]
        groups = self.combine.groups
        if len(sums) < (1 if groups is None else groups.needed):
            bound = {silo for each in failures for silo in each.bound}
            raise SumFailed(failed, bound | {silo for each in sums for silo in each.opened.silos})
        if groups is not None:
            self.steps.check_enough(headers, [silo for each in sums for silo in each.opened.silos])
        return sums

    async def _open(self, header: SumHeader) -> Opened:
        flow = self.combine.open(header)
        opened: Opened = await self.steps.follow(flow, header.silos, header.attempt, header)
        return opened

    # who is in it

    def _headers(self, updates: Sequence[Update], factors: Sequence[float], size: int) -> list[SumHeader]:
        """Of the one sum of all silos, or of the groups'."""
        members = members_of(updates, factors)
        silos, groups = sorted(members), self.combine.groups
        drawn = (silos,) if groups is None else groups.drawn(silos, self.job.seed, self._next_version)
        shapes = usual_shapes(update.summed for update in updates)
        return [
            self._made(tuple(members[silo] for silo in group), size, shapes, self._next_version)
            for group in drawn
        ]

    def _made(
        self,
        members: tuple[SumMember, ...],
        size: int,
        shapes: tuple[tuple[str, str, int], ...],
        version: int,
    ) -> SumHeader:
        self._sums += 1
        point = self.combine.fixed_point(self.job.max_in_sum, self.attempt.model.settings)
        return SumHeader(
            run_id=self.attempt.run_id,
            job_digest=self.job.digest,
            epoch=self.attempt.store.epoch,
            version=version,
            attempt=self._sums,
            setup=self._number,
            members=members,
            size=size,
            shapes=shapes,
            ring=point.ring,
            value_bits=point.value_bits,
            range=point.range,
        )

    @property
    def _next_version(self) -> int:
        return self.attempt.model.version + 1

    async def _set_up(self, silos: Sequence[SiloId]) -> None:
        """Keys for these silos, unless their processes have them already; for all others at hand as well, so that the
        next cohort needs none."""
        joined = self.attempt.enrolment.joined
        processes = {silo: joined[silo].incarnation for silo in silos if silo in joined}
        if processes.items() <= self._covered.items() and len(processes) == len(silos):
            return
        steps, self._covered = self.steps, {}
        at_hand = sorted((self.attempt.enrolment.online & set(self.job.training)) | set(silos))
        while True:
            self._number += 1
            try:
                flow = self.combine.set_up(at_hand, self._number)
                await steps.follow(flow, at_hand, self._number)
                if not steps.at_fault.keys() & set(at_hand):
                    break
                raise SumFailed(steps.at_fault)
            except SumFailed as failed:
                gone = set(failed.why) & set(at_hand)
                if not gone or gone & set(silos):
                    raise
                at_hand = [silo for silo in at_hand if silo not in gone]
        missing = set(silos) & (steps.lost.keys() | steps.refused.keys())
        if missing:
            raise SumFailed({silo: steps.why(silo) for silo in missing})
        self._covered = {
            silo: joined[silo].incarnation
            for silo in at_hand
            if silo in joined and silo not in steps.lost and silo not in steps.refused
        }

    def _why_not(self, silo: SiloId, sums: Sequence[OpenedSum]) -> str:
        """Of a silo that is in none of the sums."""
        said = next((each.opened.lost[silo] for each in sums if silo in each.opened.lost), None)
        steps = self.steps
        if said is None and silo not in steps.lost.keys() | steps.refused.keys() | steps.at_fault.keys():
            return "the sum of its group was not opened"
        return said or steps.why(silo)
