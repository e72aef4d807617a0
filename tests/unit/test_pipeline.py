"""The order of work on an update: silo's half and driver's half, block by block, and what is refused on the way."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import pipeline
from orchestrator.core.messages import CohortInfo, Update
from orchestrator.core.vector import Packet
from orchestrator.job import Job
from orchestrator.pipeline import Combined, UpdateUnfit, incoming, outgoing
from orchestrator.weighing import shares_of
from tests.support.quadratic import job_of
from tests.support.updates import update

SILOS = ("a", "b", "c")
JOB = job_of(SILOS)


def made(
    silo: str, parts: dict[str, np.ndarray], job: Job = JOB, weight: float = 1.0, version: int = 0
) -> Update:
    packet = outgoing(job, silo, version, {name: part.copy() for name, part in parts.items()}, {})
    layout = tuple((name, part.size) for name, part in parts.items())
    return update(silo, version, layout=layout, weight=weight, packet=packet)


def deltas(size: int, count: int = 3, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32))


def fold(updates: Sequence[Update], job: Job = JOB, factors: tuple[float, ...] = ()) -> Combined:
    weights = job.strategy.weigh(CohortInfo(3, tuple(shares_of(updates)), (), factors))

    async def fetch(update: Update, start: int, stop: int) -> Packet:
        return {name: array[start:stop] for name, array in (update.packet or {}).items()}

    out = np.full(updates[0].size, np.nan, np.float32)
    return asyncio.run(incoming(job, updates, weights, fetch, out))


def test_the_mean_of_the_parts() -> None:
    rows = deltas(10)
    updates = [
        made(s, {"delta": r[:6], "control": r[6:]}, weight=w)
        for s, r, w in zip(SILOS, rows, (1, 2, 5), strict=True)
    ]
    combined = fold(updates)
    mean = np.average(np.array(rows, np.float64), axis=0, weights=(1, 2, 5))
    np.testing.assert_allclose(
        np.concatenate([combined.parts["delta"], combined.parts["control"]]), mean, rtol=1e-6, atol=1e-7
    )
    assert combined.norms == pytest.approx([np.linalg.norm(row) for row in rows], rel=1e-6)


def test_shares_add_up_to_one() -> None:
    assert shares_of([update("a", 0, weight=w) for w in (1e-3, 1.0, 1e9)]) == pytest.approx(
        [1e-12, 1e-9, 1 - 1e-9], rel=1e-6
    )
    assert math.fsum(shares_of([update("a", 0, weight=w) for w in (0.1, 0.2, 0.3)])) == pytest.approx(
        1.0, abs=1e-15
    )


def test_the_discount_scales_the_vector_and_not_its_weight() -> None:
    """In a normalised weight it would cancel: an update alone in its round would count fully however stale."""
    (row,) = deltas(5, 1)
    assert fold([made("a", {"delta": row})], factors=(0.5,)).parts["delta"].tolist() == (row / 2).tolist()
    two = [made("a", {"delta": row}), made("b", {"delta": row})]
    np.testing.assert_allclose(fold(two, factors=(1.0, 0.5)).parts["delta"], 0.75 * row, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 300_000),
    st.integers(1 << 10, 1 << 22),
    st.sampled_from(["raw", "bf16"]),
)
def test_blocks_change_no_bit(count: int, size: int, block_bytes: int, codec: str) -> None:
    silos = [f"s{i}" for i in range(count)]
    job = job_of(silos, codec={"name": codec})
    updates = [
        made(s, {"delta": row}, job, weight=i + 1.0)
        for i, (s, row) in enumerate(zip(silos, deltas(size, count), strict=True))
    ]
    whole = fold(updates, job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "BLOCK_BYTES", block_bytes)
        cut = fold(updates, job)
    assert cut.parts["delta"].tobytes() == whole.parts["delta"].tobytes()


def test_memory_is_bounded_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than two blocks of all updates are on their way or in hand."""
    held, most = 0, 0
    rows = {s: r for s, r in zip(SILOS, deltas(1 << 19), strict=True)}
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 3 * 4 << 16)

    async def fetch(update: Update, start: int, stop: int) -> Packet:
        nonlocal held, most
        held += stop - start
        most = max(most, held)
        await asyncio.sleep(0)
        return {"values": rows[update.silo][start:stop]}

    merge = type(JOB.combine).merge

    def merged(self: Any, rows: Sequence[np.ndarray], shares: Sequence[float], out: np.ndarray) -> None:
        nonlocal held
        merge(self, rows, shares, out)
        held -= sum(row.size for row in rows)

    monkeypatch.setattr(type(JOB.combine), "merge", merged)
    updates = [replace(made(s, {"delta": rows[s]}), packet=None) for s in SILOS]
    asyncio.run(incoming(JOB, updates, [1.0] * 3, fetch, np.empty(1 << 19, np.float32)))
    assert most <= 2 * 3 * (1 << 16) and held == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("silo", [0, 2])
@pytest.mark.parametrize("codec", ["raw", "bf16"])
def test_numbers_that_are_none_are_refused(bad: float, silo: int, codec: str) -> None:
    job, rows = job_of(SILOS, codec={"name": codec}), deltas(100_000)
    rows[silo][77_777] = bad
    with pytest.raises(UpdateUnfit) as caught:
        fold([made(s, {"delta": r}, job) for s, r in zip(SILOS, rows, strict=True)], job)
    assert (caught.value.update.silo, caught.value.code) == (SILOS[silo], "nonfinite")


def test_a_norm_above_the_bound_is_refused() -> None:
    job = job_of(SILOS, gate={"max_norm": 2.0})
    rows = [row / np.linalg.norm(row) for row in deltas(50)]
    fold([made(s, {"delta": r * 1.999}, job) for s, r in zip(SILOS, rows, strict=True)], job)
    with pytest.raises(UpdateUnfit, match=r"b: norm 2\.01"):
        fold(
            [
                made(s, {"delta": r * (2.01 if s == "b" else 1)}, job)
                for s, r in zip(SILOS, rows, strict=True)
            ],
            job,
        )


@pytest.mark.parametrize(
    "packet",
    [
        {},
        {"values": np.ones(4)},
        {"values": np.ones(3, np.float32)},
        {"other": np.ones(4, np.float32)},
        {"values": np.ones(4, np.uint16)},
    ],
    ids=str,
)
def test_a_fetched_piece_is_looked_at_too(packet: dict[str, np.ndarray]) -> None:
    async def fetch(update: Update, start: int, stop: int) -> Packet:
        return packet if update.silo == "b" else {"values": np.ones(4, np.float32)}

    updates = [update(silo, 0, layout=(("delta", 4),)) for silo in SILOS]
    with pytest.raises(UpdateUnfit) as caught:
        asyncio.run(incoming(JOB, updates, [1.0] * 3, fetch, np.empty(4, np.float32)))
    assert (caught.value.update.silo, caught.value.code) == ("b", "schema")


def test_privacy_comes_before_the_codec() -> None:
    """What is clipped is the vector itself; bf16 then rounds the clipped one."""
    job = job_of(SILOS, privacy=[{"name": "clip", "max_norm": 1.0}], codec={"name": "bf16"})
    row = 100 * deltas(1000, 1)[0]
    (packed,) = outgoing(job, "a", 0, {"delta": row.copy()}, {}).values()
    sent = job.codec.decode({"values": packed}, 1000, 0)
    clipped = row / np.linalg.norm(row)
    assert np.abs(sent - clipped).max() <= 2.0**-8 * np.abs(clipped).max()


def test_all_parts_share_the_clip() -> None:
    """SCAFFOLD sends two vectors: their common norm is bounded, and they are scaled alike."""
    job = job_of(SILOS, strategy={"name": "scaffold"}, privacy=[{"name": "clip", "max_norm": 1.0}])
    delta, control = deltas(100, 2)
    combined = fold([made("a", {"delta": delta, "control": control}, job)], job)
    assert combined.norms[0] <= 1.0
    ratio = combined.parts["delta"] / delta
    np.testing.assert_allclose(combined.parts["control"] / control, ratio[0], rtol=1e-5)
