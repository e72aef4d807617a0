"""The global model on the driver: folded, stepped and made durable, version by version.

Memory: the strategy's state and one vector to fold into, whatever the number of silos. The vector of the version
before is reused for the next fold, because fresh pages cost several times the arithmetic.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from orchestrator.core.events import Event
from orchestrator.core.faults import fault
from orchestrator.core.messages import CohortInfo, Update
from orchestrator.core.protocols import State
from orchestrator.core.symmetry import Symmetry
from orchestrator.core.vector import Parts, Vector
from orchestrator.job import Job
from orchestrator.kept_updates import Keeping, KeptUpdates
from orchestrator.pipeline import Combined, Fetch, incoming
from orchestrator.privacy.clip import norm_of
from orchestrator.shares import Shares, without_shares
from orchestrator.store import DiskFull, Store

CLOSE_S = 10.0
"""How long a write may take after the run has ended."""


class GlobalModel:
    """State of the job's strategy at one version."""

    def __init__(self, job: Job, run_id: str, store: Store) -> None:
        self.job, self.run_id, self.store = job, run_id, store
        self.version = -1
        self.state: State = {}
        self.symmetries: tuple[Symmetry, ...] = ()
        """Units that may change places, for a strategy that sees whole updates."""
        self.lineage = ""
        """Digest of all that went into the version. Hashing the parameters themselves would cost more than
        folding them; two runs with equal lineages have equal parameters."""
        self.shares = Shares(job.training) if job.report.contribution != "none" else None
        """What each silo brought, where the job asks for it."""
        self.settings: dict[str, float] = {}
        """The job's numbers that evolve, as they are for this version."""
        self._kept = KeptUpdates(store.root, job.keep.updates, store.key) if job.keep.updates else None
        self._buffers: list[Vector] = []
        """Memory for folds: the one under the newest state, and one to fold into."""
        self._committing: asyncio.Task[None] | None = None

    def begin(self, parts: Parts, origin: str) -> None:
        """Version 0."""
        self.version = 0
        self.state = self.job.strategy.init({name: np.array(part) for name, part in parts.items()})
        self.lineage = _digest(self.job.digest, origin)
        if self.shares is not None:
            self.shares.begin(self.state)

    def restore(self, version: int, state: State, lineage: str) -> None:
        if self.shares is not None:
            self.shares.restore(state)
        self.version, self.lineage = version, lineage
        self.state = without_shares(state)

    @property
    def layout(self) -> dict[str, int]:
        """Parts and sizes of an update."""
        return {**self.job.strategy.layout(self.state), **self.job.extra_parts}

    async def fold(self, updates: Sequence[Update], cohort: CohortInfo, fetch: Fetch) -> Combined:
        """Combine updates that are in the order of the sum. Raises `UpdateUnfit` and `SiloLost`."""
        weights, size = self.job.strategy.weigh(cohort), sum(self.layout.values())
        terms = self.shares.room(len(updates), size) if self.shares is not None else ()
        whole = self._whole if self.job.strategy.whole else None
        out = self.room(size)
        keeping = self._keeping(updates)
        taken = keeping.block if keeping else None
        try:
            found = await incoming(
                self.job, updates, weights, fetch, out, terms, whole, self.settings, taken=taken
            )
        except BaseException:
            if keeping:
                keeping.drop()
            raise
        if keeping and self._kept:
            await asyncio.to_thread(keeping.finish)
            await asyncio.to_thread(self._kept.retain)
        return found

    def _keeping(self, updates: Sequence[Update]) -> Keeping | None:
        """Where the job wants the updates to stay."""
        if self._kept is None:
            return None
        return self._kept.begin(self.version + 1, updates)

    def _whole(self, updates: Sequence[Parts], shares: Sequence[float]) -> Parts:
        return self.job.strategy.fold(self.state, updates, shares, self.version, self.symmetries)

    def room(self, size: int) -> Vector:
        """Memory to fold into, which the state does not use."""
        for buffer in self._buffers:
            if buffer.size == size and not any(
                np.shares_memory(buffer, part) for part in self.state.values()
            ):
                return buffer
        self._buffers = [*self._buffers[-1:], np.empty(size, np.float32)]
        return self._buffers[-1]

    async def advance(self, combined: Combined, updates: Sequence[Update], cohort: CohortInfo) -> float:
        """Step to the next version; the Euclidean norm of the mean delta. Waits until the version before is
        durable, because its memory is written over."""
        await self.committed()
        before = self.state
        norm = await asyncio.to_thread(self._step, combined.parts, cohort)
        if self.shares is not None:
            silos = [update.silo for update in updates]
            await asyncio.to_thread(self.shares.add, silos, combined.weights, before, self.state, self.layout)
        self.version += 1
        self.settings = {**self.settings, **combined.settings}
        made_of = [_identity(u, n) for u, n in zip(updates, combined.norms, strict=True)]
        if combined.sealed is not None:
            made_of.append([combined.sealed.digest])
        if combined.drawn:
            made_of.append([combined.drawn])
        self.lineage = _digest(self.lineage, *made_of)
        fault("state.stepped")
        return norm

    def _step(self, parts: Parts, cohort: CohortInfo) -> float:
        before, norm = self.state["params"], norm_of(parts["delta"]) if "delta" in parts else None
        self.state = self.job.strategy.step(self.state, parts, cohort)
        return norm_of(self.state["params"] - before) if norm is None else norm

    def commit(
        self, event: Event, durable: Callable[[], None], full: Callable[[str], Awaitable[None]]
    ) -> None:
        """Start making this version durable; ``durable`` is called when it is, ``full`` while the disk is full."""
        assert self._committing is None or self._committing.done()
        work = self._commit(
            self.version, {**self.state, **self._shares()}, event, self.lineage, durable, full
        )
        self._committing = asyncio.create_task(work)

    def _shares(self) -> State:
        return {} if self.shares is None else self.shares.vectors()

    async def committed(self) -> None:
        """Wait until the newest version is durable; raises what went wrong."""
        if self._committing is not None:
            await self._committing

    async def close(self) -> None:
        """Leave no write behind: what is being made durable is waited for, but not for space on the disk."""
        if self._committing is not None:
            await asyncio.wait([self._committing], timeout=CLOSE_S)
            if not self._committing.done():
                self._committing.cancel()
            elif not self._committing.cancelled():
                self._committing.exception()  # the run ends for another reason, which is told

    async def _commit(
        self,
        version: int,
        state: State,
        event: Event,
        lineage: str,
        durable: Callable[[], None],
        full: Callable[[str], Awaitable[None]],
    ) -> None:
        meta = {"job_digest": self.job.digest, "run_id": self.run_id, "lineage": lineage}
        while True:
            try:
                await asyncio.to_thread(
                    self.store.commit, version, state, event.model_dump(mode="json"), meta
                )
            except DiskFull as error:
                await full(str(error))
            else:
                break
        durable()

    def parameters_digest(self) -> str:
        """SHA-256 of the shared parameters and buffers: little-endian float32, in layout order."""
        digest = hashlib.sha256()
        for name in ("params", "buffers"):
            if name in self.state:
                digest.update(np.ascontiguousarray(self.state[name], "<f4").data)
        return digest.hexdigest()


def _identity(update: Update, norm: float | None) -> list[Any]:
    size = "" if norm is None else norm.hex()
    return [update.silo, update.version, update.model_digest, update.weight, update.num_steps, size]


def _digest(before: str, *what: Any) -> str:
    return hashlib.sha256(json.dumps([before, *what]).encode()).hexdigest()
