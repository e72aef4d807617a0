"""The steps of a sum that the driver cannot look into, carried to the silos, and their answers back to the combiner."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from orchestrator.attempt import Attempt
from orchestrator.core.errors import SiloLost
from orchestrator.core.faults import fault
from orchestrator.core.messages import Answer, Ask, Fetch, Piece, Refused, SiloId
from orchestrator.pipeline import BLOCK, BLOCK_BYTES
from orchestrator.privacy.ring_sum import RingSum, UnfitPacket
from orchestrator.privacy.sealing import Answers, Flow, Gather, Questions, SumFailed, SumHeader, packet_tag


class SumSteps:
    """Of one attempt at a run, and who did not do its part in the newest sum."""

    def __init__(self, attempt: Attempt, combine: RingSum) -> None:
        self.attempt, self.combine = attempt, combine
        self.lost: dict[SiloId, str] = {}
        """Silos of which the line, or the process, broke."""
        self.refused: dict[SiloId, Refused] = {}
        """Silos that would not take a step."""
        self.at_fault: dict[SiloId, str] = {}
        """Silos because of whose keys or boxes most of the others would not."""
        self._excused: set[SiloId] = set()
        """Those others."""

    def begin(self) -> None:
        """A new sum."""
        for each in (self.lost, self.refused, self.at_fault, self._excused):
            each.clear()

    def why(self, silo: SiloId) -> str:
        """It is in no sum."""
        if silo in self.refused:
            return f"{self.refused[silo].code}: {self.refused[silo].reason}"
        return self.lost.get(silo) or self.at_fault.get(silo, "did not answer")

    async def follow(
        self, flow: Flow, silos: Collection[SiloId], number: int, header: SumHeader | None = None
    ) -> Any:
        """To its end; what it returns. Arithmetic happens in threads, so that the event loop stays awake.

        A sum of these silos with its number and header, or their set-up with its own. Raises `SumFailed`, which names
        those at fault and not those who would not go on because of them."""
        answers: Answers | None = None
        try:
            while True:
                ended, step = await asyncio.to_thread(_advance, flow, answers)
                if ended:
                    return step
                if isinstance(step, Questions):
                    answers = await self._ask(step, silos, number, header)
                else:
                    assert header is not None
                    answers = await self._gather(step, header)
        except SumFailed as failed:
            why = {silo: reason for silo, reason in failed.why.items() if silo not in self._excused}
            faults = {silo: reason for silo, reason in self.at_fault.items() if silo in silos}
            raise SumFailed({**why, **faults}, failed.bound) from None

    def check_enough(self, headers: Sequence[SumHeader], silos: Sequence[SiloId]) -> None:
        """An average of fewer silos would not count. Raises `SumFailed`."""
        policy = self.attempt.rounds.policy
        missing = [silo for header in headers for silo in header.silos if silo not in silos]
        fewest = max(policy.min_silos, policy.min_updates, self.combine.least)
        if len(silos) < fewest or policy.required & set(missing):
            raise SumFailed(
                {silo: self.why(silo) for silo in missing} or {silo: "too few silos" for silo in silos}
            )

    async def _ask(
        self, step: Questions, silos: Collection[SiloId], number: int, header: SumHeader | None
    ) -> Answers:
        fault(f"sum.{step.step}")
        version = header.version if header is not None else self.attempt.model.version + 1
        replies = await asyncio.gather(
            *(self._asked(silo, step.step, fields, version, number) for silo, fields in step.fields.items())
        )
        given = {silo: reply for silo, reply in zip(step.fields, replies, strict=True) if reply is not None}
        lost = {silo: self.why(silo) for silo in step.fields if silo not in given}
        for named in silos:
            self._judge(named, [silo for silo in step.fields if silo != named])
        return Answers(given, lost)

    def _judge(self, named: SiloId, others: Sequence[SiloId]) -> None:
        """A silo because of which more than half of the others refused a step is at fault, and they are not. Where it
        is fewer, they might be lying."""
        naming = {silo: self.refused[silo] for silo in others if silo in self.refused}
        naming = {silo: refusal for silo, refusal in naming.items() if refusal.of == named}
        if 2 * len(naming) > len(others):
            self.at_fault[named] = next(iter(naming.values())).reason
            self._excused |= naming.keys()
            for silo in {named, *naming}:
                self.refused.pop(silo, None)

    async def _asked(
        self, silo: SiloId, step: str, fields: dict[str, Any], version: int, attempt: int
    ) -> dict[str, Any] | None:
        request = Ask(
            run_id=self.attempt.run_id,
            epoch=self.attempt.store.epoch,
            version=version,
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
                self.check_enough([header], silos)
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
                added = await asyncio.to_thread(self.combine.add, rows)
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


def _advance(flow: Flow, answers: Answers | None) -> tuple[bool, Any]:
    """Whether the flow has ended, and its next step or its result."""
    try:
        return False, next(flow) if answers is None else flow.send(answers)
    except StopIteration as ended:
        return True, ended.value
