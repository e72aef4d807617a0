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
from typing import Any

import numpy as np

from orchestrator.attempt import Attempt
from orchestrator.core.errors import SiloLost
from orchestrator.core.faults import fault
from orchestrator.core.messages import (
    Answer,
    Ask,
    CohortInfo,
    Evaluated,
    Fetch,
    Piece,
    Refused,
    SiloId,
    Update,
)
from orchestrator.core.metrics import MetricSums
from orchestrator.core.vector import Layout, Vector
from orchestrator.opened import OpenedSum, decoded
from orchestrator.pipeline import BLOCK, BLOCK_BYTES, Combined
from orchestrator.privacy.fixed_point import FIXED, metrics_of
from orchestrator.privacy.ring_sum import RingSum, UnfitPacket
from orchestrator.privacy.sealing import (
    Answers,
    Flow,
    Gather,
    Opened,
    Questions,
    SumFailed,
    SumHeader,
    packet_tag,
)
from orchestrator.privacy.sealing import Member as SumMember
from orchestrator.sum_members import members_of, newest, usual_shapes


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
        self._context: Any = None
        self._number = self._sums = 0
        self._covered: dict[SiloId, str] = {}
        """Silos of the newest set-up, and the processes that took part in it."""
        self.lost: dict[SiloId, str] = {}
        """Of the newest sum: silos of which the line, or the process, broke."""
        self.refused: dict[SiloId, Refused] = {}
        """Silos that would not take a step."""

    async def fold(self, updates: Sequence[Update], cohort: CohortInfo, out: Vector) -> Summed:
        """Sum these updates, which are in the order of the sum, into ``out``. Raises `SumFailed`."""
        self.lost, self.refused = {}, {}
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
        self.lost, self.refused = {}, {}
        await self._set_up(sorted({*replies, *self.combine.helpers}))
        members = tuple(
            SumMember(silo, (version,), (reply.received,), (1.0,), hidden=reply.hidden)
            for silo, reply in sorted(replies.items())
        )
        header = self._made(members, 0, usual_shapes(reply.summed for reply in replies.values()), version)
        opened: Opened = await self._follow(self.combine.open(header, self._context), header)
        return metrics_of(opened.total[FIXED:], header.shapes)

    async def _opened(self, headers: Sequence[SumHeader]) -> list[OpenedSum]:
        """All sums, at once. A group's may fail where the rule over groups does without it. Raises `SumFailed`."""
        flows = [self._follow(self.combine.open(header, self._context), header) for header in headers]
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
            self._check_enough(headers, [silo for each in sums for silo in each.opened.silos])
        return sums

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
            setup=self._number if self._context is not None else 0,
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
        at_hand = sorted((self.attempt.enrolment.online & set(self.job.training)) | set(silos))
        while True:
            self._number += 1
            try:
                self._context = await self._follow(self.combine.set_up(at_hand, self._number), None)
                break
            except SumFailed as failed:
                gone = set(failed.why) & set(at_hand)
                if not gone or gone & set(silos):
                    raise
                at_hand = [silo for silo in at_hand if silo not in gone]
        missing = set(silos) & (self.lost.keys() | self.refused.keys())
        if missing:
            raise SumFailed({silo: self._why(silo) for silo in missing})
        self._covered = {
            silo: joined[silo].incarnation
            for silo in at_hand
            if silo in joined and silo not in self.lost and silo not in self.refused
        }

    # the protocol's steps

    async def _follow(self, flow: Flow, header: SumHeader | None) -> Any:
        """To its end; what it returns. Arithmetic happens in threads, so that the event loop stays awake."""
        answers: Answers | None = None
        while True:
            ended, step = await asyncio.to_thread(_advance, flow, answers)
            if ended:
                return step
            if isinstance(step, Questions):
                answers = await self._ask(step, header)
            else:
                assert header is not None
                answers = await self._gather(step, header)

    async def _ask(self, step: Questions, header: SumHeader | None) -> Answers:
        fault(f"sum.{step.step}")
        replies = await asyncio.gather(
            *(self._asked(silo, step.step, fields, header) for silo, fields in step.fields.items())
        )
        given = {silo: reply for silo, reply in zip(step.fields, replies, strict=True) if reply is not None}
        return Answers(given, {silo: self._why(silo) for silo in step.fields if silo not in given})

    async def _asked(
        self, silo: SiloId, step: str, fields: dict[str, Any], header: SumHeader | None
    ) -> dict[str, Any] | None:
        attempt = header.attempt if header is not None else self._number
        request = Ask(
            run_id=self.attempt.run_id,
            epoch=self.attempt.store.epoch,
            version=header.version if header is not None else self._next_version,
            attempt=attempt,
            step=step,
            fields=fields,
        )
        try:
            reply = await self.attempt.ask(silo, request)
        except SiloLost as lost:
            self.lost[silo] = lost.why
            return None
        if isinstance(reply, Answer) and (reply.silo, reply.step, reply.attempt) == (silo, step, attempt):
            return reply.fields
        if isinstance(reply, Refused) and reply.code == "job":
            self.lost[silo] = reply.reason
            return None
        if not isinstance(reply, Refused):
            reply = Refused(silo=silo, code="unknown", reason=f"answered '{step}' with something else")
        self.refused[silo] = reply
        return None

    async def _gather(self, step: Gather, header: SumHeader) -> Answers:
        """Add the packets up block by block; once more from the beginning without a silo that is lost meanwhile."""
        silos, lost = sorted(step.silos), dict[SiloId, str]()
        tag = packet_tag(header.tag, step.step)
        while silos:
            if step.step == "seal" and self.combine.groups is None:
                self._check_enough([header], silos)
            try:
                return Answers(lost=lost, total=await self._added(silos, header, tag))
            except SiloLost as gone:
                lost[gone.silo] = self.lost[gone.silo] = gone.why
                silos.remove(gone.silo)
        return Answers(lost=lost)

    async def _added(self, silos: Sequence[SiloId], header: SumHeader, tag: str) -> Any:
        size, grain, dtype = (
            self.combine.sealed_size(header),
            self.combine.grain,
            np.dtype(self.combine.dtype),
        )
        total = np.empty(size // grain * self.combine.sum_grain, dtype)
        length = min(max(1, BLOCK_BYTES // (dtype.itemsize * len(silos))), BLOCK)
        length = max(grain, length // grain * grain)
        put = 0
        for start in range(0, size, length):
            rows = await self._rows(silos, tag, header, start, min(start + length, size), dtype)
            try:
                added = await asyncio.to_thread(self.combine.add, rows, self._context)
            except UnfitPacket as unfit:
                raise SiloLost(silos[unfit.index], str(unfit)) from None
            total[put : put + len(added)] = added
            put += len(added)
        return total

    async def _rows(
        self, silos: Sequence[SiloId], tag: str, header: SumHeader, start: int, stop: int, dtype: Any
    ) -> list[Any]:
        tasks = [asyncio.ensure_future(self._row(silo, tag, header, start, stop, dtype)) for silo in silos]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _row(self, silo: SiloId, tag: str, header: SumHeader, start: int, stop: int, dtype: Any) -> Any:
        request = Fetch(
            run_id=header.run_id,
            epoch=header.epoch,
            version=header.version,
            start=start,
            stop=stop,
            tag=tag,
        )
        reply = await self.attempt.ask(silo, request)
        row = reply.packet.get("values") if isinstance(reply, Piece) else None
        if row is None or row.dtype != dtype or row.shape != (stop - start,):
            raise SiloLost(silo, f"sent no sealed packet: {str(reply)[:200]}")
        return row

    def _check_enough(self, headers: Sequence[SumHeader], silos: Sequence[SiloId]) -> None:
        """An average of fewer silos would not count."""
        policy = self.attempt.rounds.policy
        missing = [silo for header in headers for silo in header.silos if silo not in silos]
        fewest = max(policy.min_silos, policy.min_updates, self.combine.least)
        if len(silos) < fewest or policy.required & set(missing):
            raise SumFailed(
                {silo: self._why(silo) for silo in missing} or {silo: "too few silos" for silo in silos}
            )

    def _why_not(self, silo: SiloId, sums: Sequence[OpenedSum]) -> str:
        """Of a silo that is in none of the sums."""
        said = next((each.opened.lost[silo] for each in sums if silo in each.opened.lost), None)
        if said is None and silo not in self.lost and silo not in self.refused:
            return "the sum of its group was not opened"
        return said or self._why(silo)

    def _why(self, silo: SiloId) -> str:
        if silo in self.refused:
            return f"{self.refused[silo].code}: {self.refused[silo].reason}"
        return self.lost.get(silo, "did not answer")


def _advance(flow: Flow, answers: Answers | None) -> tuple[bool, Any]:
    """Whether the flow has ended, and its next step or its result."""
    try:
        return False, next(flow) if answers is None else flow.send(answers)
    except StopIteration as ended:
        return True, ended.value
