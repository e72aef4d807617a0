"""Who takes part: silos join, are lost, and join again under the same identity with the same data."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from orchestrator.core.errors import BadInput, SiloLost
from orchestrator.core.events import Event, SiloBusy, SiloDeclined, SiloJoined, shortened
from orchestrator.core.messages import Join, Joined, LedgerHead, Load, Refused, Reply, SiloId
from orchestrator.core.protocols import Channel
from orchestrator.job import Job
from orchestrator.starting import Fitting, StartingWeights

RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts to reach a silo; the last one repeats."""

MAX_DESCRIPTION = 10_000
"""Characters with which a silo may describe itself in the journal."""

ANOTHER_KEY = "signs with another key than when it joined first"

Shared = tuple[str, int]
"""Digest and size of a shared model."""


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
    busy: dict[SiloId, str] = field(default_factory=dict)
    """Silos that answered last that they will join later, and why."""
    why_absent: dict[SiloId, str] = field(default_factory=dict)
    bad_data: set[SiloId] = field(default_factory=set)
    """Silos whose own data is at fault: what a person has to mend before the run can go on."""
    fingerprints: dict[SiloId, str] = field(default_factory=dict)
    """First seen in this run, also before a resumption."""
    keys: dict[SiloId, str] = field(default_factory=dict)
    """The public keys that the silos showed first to this driver. One that resumes takes those that it is shown: a silo
    whose machine is gone has another one, and the record has both."""
    shared: Shared | None = None
    """The run's shared model, once it is known."""
    ledger_of: Callable[[SiloId], LedgerHead | None] = lambda silo: None
    """What is known of a silo's privacy ledger."""
    start: StartingWeights | None = None
    """What the job starts from; every silo that joins is given it."""
    planned: Mapping[str, float] = field(default_factory=dict)
    """What the whole job costs each silo that trains, as far as the driver can say."""
    error: Exception | None = None
    """What went wrong in a task, of which the driver does not hear by itself: the journal did not take what a silo
    answered, say."""
    _published: "asyncio.Task[Any] | None" = None
    """The part of it that fits the job's model, for the channel."""
    _fitting: Fitting | None = None
    _tasks: dict[SiloId, "asyncio.Task[None]"] = field(default_factory=dict)
    _told: set[tuple[SiloId, str]] = field(default_factory=set)
    """Silos that will join later, with the reason, of which the journal knows."""

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
        self.absent(silo, why)
        if silo not in self._tasks and silo not in self.declined:
            self._tasks[silo] = asyncio.create_task(self._seek(silo))

    def refused(self, silo: SiloId, reply: Refused) -> None:
        """The silo answered that it will not, or cannot."""
        self.absent(silo, f"{reply.code}: {reply.reason}")
        if reply.code == "data":
            self.bad_data.add(silo)

    def absent(self, silo: SiloId, why: str) -> None:
        """Why the silo has nothing to give at present."""
        self.why_absent[silo] = shortened(why)

    def agree(self) -> None:
        """Where the shared model is not known yet, it is the one that most of the joined silos build; the others
        take no part. Raises `BadInput` if there is no such majority."""
        if self.shared is not None or not self.joined:
            return
        said = {silo: _shared(reply) for silo, reply in sorted(self.joined.items())}
        usual, times = Counter(said.values()).most_common(1)[0]
        if 2 * times <= len(said):
            first = next(iter(said))
            odd = next(silo for silo in said if said[silo] != said[first])
            raise BadInput(f"{odd} {_another(said[odd], said[first], first)}")
        self.shared = usual
        for silo in (silo for silo in said if said[silo] != usual):
            del self.joined[silo]
            self._decline(silo, _refused(silo, "data", _another(said[silo], usual)))

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _seek(self, silo: SiloId) -> None:
        try:
            reply = await self._ask_until_answered(silo)
            self._settle(silo, reply)
        except Exception as error:
            self.error = error
        finally:
            del self._tasks[silo]
        self.changed(silo)

    async def _ask_until_answered(self, silo: SiloId) -> Joined | Refused:
        for attempt in range(1_000_000):
            try:
                reply = await asyncio.wait_for(self._ask(silo), self._limit_s)
            except SiloLost as lost:
                self.busy.pop(silo, None)
                self.absent(silo, lost.why)
            except TimeoutError:
                self.busy.pop(silo, None)
                self.absent(silo, f"gave no answer within {self._limit_s:.0f} s")
                await self.channel.restart(silo)
            else:
                if isinstance(reply, Refused) and reply.code == "busy":
                    self._later(silo, shortened(reply.reason))
                elif isinstance(reply, Joined | Refused):
                    self.busy.pop(silo, None)
                    return reply
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
        raise AssertionError("unreachable")

    async def _ask(self, silo: SiloId) -> Reply:
        """To join, and to begin with what the job starts from, unless its process has that already."""
        reply = await self.channel.call(silo, self._request(silo))
        if self.start is None or not isinstance(reply, Joined):
            return reply
        try:
            fitting = self._fitting_of(self.start, reply)
        except ValueError as error:
            return _refused(silo, "job", f"describes its model in other words: {error}")
        if reply.loaded == fitting.digest or not fitting.values.size:
            return reply
        handle = await self._handle_of(fitting)
        load = Load(run_id=self.run_id, epoch=self.epoch, layout=fitting.layout, model=handle)
        reply = await self.channel.call(silo, load)
        if isinstance(reply, Joined) and reply.loaded != fitting.digest:
            return _refused(silo, "job", "did not load the weights that the job starts from")
        return reply

    def _fitting_of(self, start: StartingWeights, joined: Joined) -> Fitting:
        fitting = start.fitting(joined.model.get("entries", ()))
        if self._fitting is None:
            self._fitting = fitting
        return self._fitting if fitting.digest == self._fitting.digest else fitting

    async def _handle_of(self, fitting: Fitting) -> Any:
        """Published once, for all silos with the same model."""
        if fitting is not self._fitting:
            return await self.channel.publish({"values": fitting.values})
        if self._published is None:
            self._published = asyncio.create_task(self.channel.publish({"values": fitting.values}))
        return await asyncio.shield(self._published)

    def _later(self, silo: SiloId, reason: str) -> None:
        self.busy[silo] = reason
        self.absent(silo, reason)
        if (silo, reason) not in self._told:
            self._told.add((silo, reason))
            self.emit(SiloBusy(silo=silo, reason=reason))

    @property
    def _limit_s(self) -> float:
        """Opening the data may take long, and shows no progress."""
        return 10 * self.job.rounds.patience_s

    def _request(self, silo: SiloId) -> Join:
        return Join(
            run_id=self.run_id,
            epoch=self.epoch,
            job=self.job.model_dump_json(),
            job_digest=self.job.digest,
            ledger=self.ledger_of(silo),
        )

    def _settle(self, silo: SiloId, reply: Joined | Refused) -> None:
        if isinstance(reply, Joined):
            reply = self._checked(silo, reply)
        if isinstance(reply, Refused):
            self._decline(silo, reply)
            return
        self.why_absent.pop(silo, None)
        self.joined[silo] = reply
        self.fingerprints.setdefault(silo, reply.fingerprint)
        self.keys.setdefault(silo, reply.key)
        self.emit(_event(reply, self.planned if silo in self.job.training else {}))

    def _decline(self, silo: SiloId, reply: Refused) -> None:
        self.declined[silo] = reply
        self.refused(silo, reply)
        self.emit(SiloDeclined(silo=silo, code=reply.code, reason=reply.reason))

    def _checked(self, silo: SiloId, reply: Joined) -> Joined | Refused:
        if reply.silo != silo:
            return _refused(silo, "job", f"answers under the name of {reply.silo}")
        told = _event(reply).model_dump(mode="json")
        if len(json.dumps(told)) > MAX_DESCRIPTION:
            return _refused(silo, "job", f"describes itself in more than {MAX_DESCRIPTION} characters")
        if self.fingerprints.get(silo, reply.fingerprint) != reply.fingerprint:
            return _refused(silo, "data", "its data changed since the run began; use --new")
        if not _is_key(reply.key):
            return _refused(silo, "job", "shows no Ed25519 key, which its receipts are to be checked with")
        if (known := self.keys.get(silo)) and known != reply.key:
            return _refused(
                silo, "job", f"{ANOTHER_KEY}: put its old one back, or stop the run and resume it"
            )
        if self.shared is not None and _shared(reply) != self.shared:
            return _refused(silo, "data", _another(_shared(reply), self.shared))
        return reply


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 32
    except ValueError:
        return False


def _shared(joined: Joined) -> Shared:
    return joined.schema_digest, joined.num_shared


def _another(own: Shared, usual: Shared, whose: str = "the others") -> str:
    sizes = f" ({own[1]} against {usual[1]} shared numbers)" if own[1] != usual[1] else ""
    columns = "do their data have the same columns, categories and classes?"
    return f"builds another shared model than {whose}{sizes}: {columns}"


def _refused(silo: SiloId, code: Literal["job", "data"], reason: str) -> Refused:
    return Refused(silo=silo, code=code, reason=reason)


def _event(joined: Joined, planned: Mapping[str, float] = MappingProxyType({})) -> SiloJoined:
    return SiloJoined(
        silo=joined.silo,
        incarnation=joined.incarnation,
        fingerprint=joined.fingerprint,
        num_examples=joined.num_examples,
        quarantined=joined.quarantined,
        labels=joined.labels,
        num_parameters=joined.num_parameters,
        num_shared=joined.num_shared,
        device=joined.device,
        node=joined.node,
        versions=joined.versions,
        metrics=joined.metrics,
        planned={**joined.planned, **planned},
        key=joined.key,
    )
