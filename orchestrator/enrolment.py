"""Who takes part: silos join, are lost, and join again under the same identity with the same data."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.core.errors import BadInput, SiloLost
from orchestrator.core.events import Event, SiloDeclined, SiloJoined
from orchestrator.core.messages import Join, Joined, Refused, SiloId
from orchestrator.core.protocols import Channel
from orchestrator.job import Job

RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts to reach a silo; the last one repeats."""

ANOTHER_MODEL = "builds another shared model"
SAME_COLUMNS = "do their data have the same columns, categories and classes?"


@dataclass
class Enrolment:
    """Keeps one task per silo that is not joined, which asks it until it joins or declines."""

    job: Job
    channel: Channel
    emit: Callable[[Event], None]
    changed: Callable[[SiloId], None]
    """Called when a silo has joined or declined."""
    run_id: str = ""
    epoch: int = 0
    joined: dict[SiloId, Joined] = field(default_factory=dict)
    declined: dict[SiloId, Refused] = field(default_factory=dict)
    why_absent: dict[SiloId, str] = field(default_factory=dict)
    bad_data: set[SiloId] = field(default_factory=set)
    """Silos whose own data is at fault: what a person has to mend before the run can go on."""
    fingerprints: dict[SiloId, str] = field(default_factory=dict)
    """First seen in this run, also before a resumption."""
    schema_digest: str | None = None
    """Of the run's shared model, once it is known."""
    _tasks: dict[SiloId, "asyncio.Task[None]"] = field(default_factory=dict)

    @property
    def online(self) -> set[SiloId]:
        """Silos that may be asked to train."""
        return set(self.joined) & self.channel.online()

    @property
    def pending(self) -> set[SiloId]:
        """Silos that may yet join, or come back."""
        return set(self.job.silos) - self.online - self.declined.keys()

    def seek(self, silo: SiloId, why: str = "not joined yet") -> None:
        """The silo has to join (again)."""
        self.joined.pop(silo, None)
        self.why_absent[silo] = why
        if silo not in self._tasks and silo not in self.declined:
            self._tasks[silo] = asyncio.create_task(self._seek(silo))

    def refused(self, silo: SiloId, reply: Refused) -> None:
        """The silo answered that it will not, or cannot."""
        self.why_absent[silo] = f"{reply.code}: {reply.reason}"
        if reply.code == "data":
            self.bad_data.add(silo)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _seek(self, silo: SiloId) -> None:
        try:
            reply = await self._ask_until_answered(silo)
            self._settle(silo, reply)
        finally:
            del self._tasks[silo]
        self.changed(silo)

    async def _ask_until_answered(self, silo: SiloId) -> Joined | Refused:
        for attempt in range(1_000_000):
            try:
                reply = await asyncio.wait_for(self.channel.call(silo, self._request()), self._limit_s)
            except SiloLost as lost:
                self.why_absent[silo] = lost.why
            except TimeoutError:
                self.why_absent[silo] = f"gave no answer within {self._limit_s:.0f} s"
                await self.channel.restart(silo)
            else:
                if isinstance(reply, Refused) and reply.code == "busy":
                    self.why_absent[silo] = reply.reason
                elif isinstance(reply, Joined | Refused):
                    return reply
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
        raise AssertionError("unreachable")

    @property
    def _limit_s(self) -> float:
        """Opening the data may take long, and shows no progress."""
        return 10 * self.job.rounds.patience_s

    def _request(self) -> Join:
        return Join(
            run_id=self.run_id, epoch=self.epoch, job=self.job.model_dump_json(), job_digest=self.job.digest
        )

    def _settle(self, silo: SiloId, reply: Joined | Refused) -> None:
        if isinstance(reply, Joined):
            reply = self._checked(silo, reply)
        if isinstance(reply, Refused):
            self.declined[silo] = reply
            self.refused(silo, reply)
            self.emit(SiloDeclined(silo=silo, code=reply.code, reason=reply.reason))
            return
        self.why_absent.pop(silo, None)
        self.joined[silo] = reply
        self.fingerprints.setdefault(silo, reply.fingerprint)
        self.emit(_event(reply))

    def _checked(self, silo: SiloId, reply: Joined) -> Joined | Refused:
        if reply.silo != silo:
            return Refused(silo=silo, code="job", reason=f"answers under the name of {reply.silo}")
        if self.fingerprints.get(silo, reply.fingerprint) != reply.fingerprint:
            return Refused(silo=silo, code="data", reason="its data changed since the run began; use --new")
        if reply.schema_digest != (self.schema_digest or reply.schema_digest):
            return Refused(silo=silo, code="data", reason=f"{ANOTHER_MODEL}: {SAME_COLUMNS}")
        return reply


def check_schema(joined: dict[SiloId, Joined]) -> None:
    """All silos must share the same tensors; raises `BadInput` naming the odd one."""
    names = sorted(joined)
    for name in names[1:]:
        if joined[name].schema_digest != joined[names[0]].schema_digest:
            raise BadInput(
                f"{name} {ANOTHER_MODEL} than {names[0]} "
                f"({joined[name].num_shared} against {joined[names[0]].num_shared} shared numbers): {SAME_COLUMNS}"
            )


def _event(joined: Joined) -> SiloJoined:
    return SiloJoined(
        silo=joined.silo,
        incarnation=joined.incarnation,
        fingerprint=joined.fingerprint,
        num_examples=joined.num_examples,
        num_parameters=joined.num_parameters,
        num_shared=joined.num_shared,
        device=joined.device,
        node=joined.node,
        versions=joined.versions,
    )
