"""The order of work on an update. This is the only place that knows it.

    silo     pack -> privacy: encode ... -> codec: encode -> combine: seal
    driver   plain:   codec: decode each -> gate -> combine: merge -> privacy: finish (reversed) -> unpack
             sealed:  combine: open the sum -> privacy: finish (reversed) -> unpack     (orchestrator/sealed.py)

On the driver the work goes block by block over all updates, in silo order: a block is fetched while the one
before is merged, so memory does not grow with the number of silos.
"""

import asyncio
import math
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.events import Sealed
from orchestrator.core.messages import SiloId, Update
from orchestrator.core.metrics import MetricSums
from orchestrator.core.random import rng_of, seed_of
from orchestrator.core.vector import Layout, Packet, Parts, Vector, blocks
from orchestrator.job import Job
from orchestrator.privacy.clip import squared_norm
from orchestrator.promises import Promises

BLOCK_BYTES = 256 << 20
"""Bytes of all updates' blocks in memory at a time; twice that with the block being fetched."""

BLOCK = 8 << 20
"""Elements of one update fetched at a time: shorter blocks cost more calls, longer ones overlap less."""

CACHED = 1 << 16
"""Elements decoded, measured and merged at a time: what one step leaves in a core's cache, the next one reads."""

LOOKED_AT = 16
"""Pieces of that size, about, in which directions are compared, evenly over the update: all of them would add a sixth
to the work of folding, and a million elements tell the angle as well."""

Whole = Callable[[Sequence[Parts], Sequence[float]], Parts]
"""Whole updates and their shares become one."""

Fetch = Callable[[Update, int, int], Awaitable[Packet]]
"""Elements ``start`` to ``stop`` of an update's packet."""


Taken = Callable[[int, Sequence[Packet]], None]
"""Is given every block as it is folded: where it begins, and the packets."""


class UpdateUnfit(Exception):
    """The gate refuses an update: it must not enter the model."""

    def __init__(self, update: Update, code: str, reason: str) -> None:
        super().__init__(f"{update.silo}: {reason}")
        self.update = update
        self.code = code
        self.reason = reason


@dataclass(slots=True)
class Combined:
    """The outcome of folding a round."""

    parts: Parts
    norms: Sequence[float | None]
    """Euclidean norm of each update, in the order of the sum; None where the driver sees no single one."""
    weights: Sequence[float]
    """What each was multiplied by."""
    cosines: Sequence[float | None]
    """Of the angle between each update and their mean; None where nobody asks, or one of the two is zero."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``transfer``: waiting for blocks; ``fold``: merging them."""
    settings: dict[str, float] = field(default_factory=dict)
    """Those of the next version that follow from this fold."""
    sealed: Sealed | None = None
    together: MetricSums = field(default_factory=dict)
    """Metrics that came in the sum."""
    drawn: str = ""
    """Says which draw of noise is in it, and nothing about that; empty where there is none, or always the same."""


def outgoing(
    job: Job,
    silo: str,
    version: int,
    parts: Parts,
    kept: MutableMapping[str, Vector],
    settings: Mapping[str, float] = MappingProxyType({}),
) -> Packet:
    """The silo's half: from the strategy's parts, with those that privacy steps add, to what leaves the silo."""
    vector = Layout.of(parts).pack(parts)
    for number, step in enumerate(job.steps(settings)):
        vector = step.encode(vector, rng_of(job.seed, "privacy", number, version, silo))
    return job.codec.encode(vector, kept, seed_of(job.seed, "codec", version, silo))


async def incoming(
    job: Job,
    updates: Sequence[Update],
    weights: Sequence[float],
    fetch: Fetch,
    out: Vector,
    terms: Sequence[Vector] = (),
    whole: Whole | None = None,
    settings: Mapping[str, float] = MappingProxyType({}),
    taken: Taken | None = None,
) -> Combined:
    """The driver's half: fold the updates, which are in the order of the sum, into ``out``; each is multiplied by its
    weight. ``terms``: memory for each update as it went into the mean, where somebody wants that.

    With ``whole`` the updates are gathered side by side, in as many times the memory, and that takes the place of the
    combiner. Raises `UpdateUnfit` for an update with a non-finite or too large norm; ``out`` is then worthless, and the
    caller folds again without it.
    """
    layout = Layout(*(tuple(column) for column in zip(*updates[0].layout, strict=True)))
    rows = None if whole is None else np.empty((len(updates), layout.size), np.float32)
    folded = _Folded(job, updates, weights, out, terms, rows)
    waited = perf_counter()
    async for start, stop, packets in _prefetched(updates, fetch, layout.size):
        folded.seconds["transfer"] += perf_counter() - waited
        await _off_loop(stop - start, folded.block, start, stop, packets)
        if taken is not None:
            await asyncio.to_thread(taken, start, packets)
        waited = perf_counter()
    folded.check()
    cosines = folded.cosines()
    if whole is not None and rows is not None:
        parts = await asyncio.to_thread(whole, [layout.unpack(row) for row in rows], weights)
        np.copyto(out, layout.pack(parts))
    made = Combined(layout.unpack(out), [math.sqrt(each) for each in folded.squared], weights, cosines)
    made.seconds = folded.seconds
    await _off_loop(layout.size, finish, job, made, out, layout, updates, settings)
    return made


def finish(
    job: Job,
    made: Combined,
    out: Vector,
    layout: Layout,
    updates: Sequence[Update],
    settings: Mapping[str, float],
    rounding: float = 0.0,
) -> None:
    """The privacy steps' second face, on ``out`` and on what is told of it. ``rounding``: by how much the rounding of
    an update may have lengthened it after the steps. What the driver would still know of single updates, where it adds
    noise to their sum, is forgotten."""
    shares = list(by_silo(updates, made.weights).values())
    noise, total = job.noise, math.fsum(made.weights)

    def sensitivity(bound: float) -> float:
        found = job.combine.sensitivity(bound + rounding, [math.fsum(each) for each in shares])
        assert found is not None, "a job with noise and without a sensitivity is not legal"
        return found

    for number, step in reversed(list(enumerate(job.steps(settings)))):
        out = step.finish(out, sensitivity, rng_of(job.seed, "finish", number, updates[0].version))
        made.settings |= step.next_settings(layout.unpack(out), total)
    extra = {name for transform in job.privacy for name in transform.extra}
    made.parts = {name: part for name, part in layout.unpack(out).items() if name not in extra}
    if noise is not None and noise.where == "driver":
        made.norms = made.cosines = [None] * len(updates)
        made.drawn = secrets.token_hex(16) if noise.insecure_test_noise_seed is None else ""


def by_silo(updates: Sequence[Update], shares: Sequence[float]) -> dict[SiloId, list[float]]:
    """Shares of each silo's updates."""
    found: dict[SiloId, list[float]] = defaultdict(list)
    for update, share in zip(updates, shares, strict=True):
        found[update.silo].append(share)
    return dict(found)


def packet_flaw(job: Job, packet: Packet, size: int) -> str | None:
    """What is wrong with ``size`` elements of a packet, so that it cannot be decoded."""
    got = {name: (getattr(array, "dtype", None), np.shape(array)) for name, array in packet.items()}
    if got != {name: (np.dtype(kind), (size,)) for name, kind in job.codec.arrays.items()}:
        shown = (
            ", ".join(f"{name}: {dtype}{list(shape)}" for name, (dtype, shape) in got.items()) or "nothing"
        )
        wanted = ", ".join(f"{name}: {kind.__name__}[{size}]" for name, kind in job.codec.arrays.items())
        return f"sent {shown[:200]} where {wanted} belongs"
    return None


class _Folded:
    def __init__(
        self,
        job: Job,
        updates: Sequence[Update],
        weights: Sequence[float],
        out: Vector,
        terms: Sequence[Vector],
        whole: NDArray[np.float32] | None,
    ) -> None:
        """``whole``: where the updates are put, one a row."""
        self.job, self.updates, self.weights, self.out, self.terms = job, updates, weights, out, terms
        self.whole = whole
        self.seeds = [seed_of(job.seed, "codec", update.version, update.silo) for update in updates]
        self.squared = [0.0] * len(updates)
        self.along, self.looked = [0.0] * len(updates), [0.0] * len(updates)
        """Dot product of each update with their mean, and with itself, in the pieces that are looked at."""
        self.mean_squared = 0.0
        self.promises = Promises(updates)
        self._piece, self._every = 0, max(1, len(out) // (LOOKED_AT * CACHED))
        self.seconds = {"transfer": 0.0, "fold": 0.0}

    def block(self, start: int, stop: int, packets: Sequence[Packet]) -> None:
        began = perf_counter()
        for update, packet in zip(self.updates, packets, strict=True):
            wrong = packet_flaw(self.job, packet, stop - start)
            if wrong is not None:
                raise UpdateUnfit(update, "schema", wrong)
        hashed = self.promises.block(packets)
        try:
            self._merge(start, stop, packets)
        finally:
            hashed()
        self.seconds["fold"] += perf_counter() - began

    def _merge(self, start: int, stop: int, packets: Sequence[Packet]) -> None:
        for low, high in blocks(stop - start, CACHED):
            before = list(self.squared)
            rows = [self._row(i, packet, low, high) for i, packet in enumerate(packets)]
            mean = self.out[start + low : start + high]
            self.job.combine.merge(rows, self.weights, mean)
            if self.job.report.drift and self._piece % self._every == 0:
                self._look(rows, mean, before)
            self._piece += 1
            for row, weight, term in zip(rows, self.weights, self.terms, strict=False):
                np.multiply(row, np.float32(weight), out=term[start + low : start + high])
            if self.whole is not None:
                self.whole[:, start + low : start + high] = rows

    def _look(self, rows: Sequence[Vector], mean: Vector, before: Sequence[float]) -> None:
        """While row and mean are still in the core's cache."""
        for i, row in enumerate(rows):
            self.along[i] += float(np.dot(row, mean))
            self.looked[i] += self.squared[i] - before[i]
        self.mean_squared += float(np.dot(mean, mean))

    def cosines(self) -> list[float | None]:
        lengths = [math.sqrt(squared * self.mean_squared) for squared in self.looked]
        return [
            max(-1.0, min(1.0, dot / length)) if 0 < length < math.inf else None
            for dot, length in zip(self.along, lengths, strict=True)
        ]

    def _row(self, i: int, packet: Packet, low: int, high: int) -> Vector:
        update = self.updates[i]
        piece = {name: array[low:high] for name, array in packet.items()}
        row = self.job.codec.decode(piece, high - low, self.seeds[i])
        self.squared[i] += squared_norm(row)
        if not math.isfinite(self.squared[i]):
            raise UpdateUnfit(update, "nonfinite", "the update holds NaN, infinity or absurdly large numbers")
        return row

    def check(self) -> None:
        """After the last block."""
        bound = self.job.gate.max_norm
        for update, squared in zip(self.updates, self.squared, strict=True):
            if bound is not None and squared > bound**2:
                raise UpdateUnfit(
                    update, "norm", f"norm {math.sqrt(squared):.6g} exceeds gate.max_norm {bound:g}"
                )
        broken = self.promises.broken()
        if broken is not None:
            raise UpdateUnfit(broken, "receipt", "other bytes came than its receipt says")


async def _prefetched(
    updates: Sequence[Update], fetch: Fetch, size: int
) -> AsyncIterator[tuple[int, int, list[Packet]]]:
    longest = min(max(CACHED, BLOCK_BYTES // (4 * len(updates))), BLOCK)
    ranges = list(blocks(size, math.ceil(size / math.ceil(size / longest))))
    coming = _gather(updates, fetch, *ranges[0])
    try:
        for number, (start, stop) in enumerate(ranges):
            packets = await coming
            if number + 1 < len(ranges):
                coming = _gather(updates, fetch, *ranges[number + 1])
            yield start, stop, packets
            del packets
    finally:
        coming.cancel()


def _gather(updates: Sequence[Update], fetch: Fetch, start: int, stop: int) -> "asyncio.Future[list[Packet]]":
    return asyncio.gather(*(fetch(update, start, stop) for update in updates))


async def _off_loop(size: int, work: Callable[..., None], *args: object) -> None:
    """Large blocks in a thread, so that the event loop stays awake; small ones are done before one starts."""
    if size > 1 << 20:
        await asyncio.to_thread(work, *args)
    else:
        work(*args)
