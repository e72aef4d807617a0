"""How far one silo moves the result of a fold, measured, beside what is declared: for every legal job with noise.

Updates go through the silo's half and the driver's half of the real pipeline. Noise is the same in both worlds, so that
what moves is the silo. Zeros in place of all that it sends move the result by the declared sensitivity at most, other
updates in their place by twice that.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.compression.plain import Bf16
from orchestrator.core.messages import CohortInfo, Update
from orchestrator.core.vector import Layout, Packet
from orchestrator.job import Job
from orchestrator.pipeline import Combined, by_silo, finish, incoming, outgoing
from orchestrator.privacy.clip import Clip
from orchestrator.privacy.mechanisms import Noise
from orchestrator.weighing import shares_of
from tests.composition.test_composition import SLOTS
from tests.support.quadratic import job_of
from tests.support.updates import update

SILOS = ("s0", "s1", "s2", "s3", "s4")
VICTIM = "s1"
GIVEN = {"s0": 1, "s1": 5, "s2": 2.5, "s3": 1, "s4": 2}
SEED = {"name": "gaussian", "noise_multiplier": 1.0, "insecure_test_noise_seed": 3}
STEPS = {
    "clip": [{"name": "clip", "max_norm": 0.8}, SEED],
    "adaptive": [{"name": "adaptive_clip", "initial_norm": 0.8, "max_norm": 1.0, "sigma_b": 0.7}, SEED],
    "by silos": [{"name": "clip", "max_norm": 0.8}, {**SEED, "where": "silos"}],
    "unclipped": [SEED],
}
COMBINE: dict[str, dict[str, Any]] = {
    "examples": {"weights": "examples"},
    "uniform": {"weights": "uniform"},
    "given": {"weights": GIVEN},
    "ring": {"name": "fixed_point_sum", "range": 5.0},
    "given ring": {"name": "fixed_point_sum", "range": 5.0, "weights": GIVEN},
    "short ring": {"name": "fixed_point_sum", "range": 5.0, "ring": "uint16"},
    "secure": {"name": "secure_sum", "range": 5.0, "ring": "uint16"},
}
SIZE = 12


EVERYTHING = list(product(SLOTS["strategy"], SLOTS["mode"], SLOTS["codec"], STEPS, COMBINE))
FEW = 11
"""One in so many, for the quick suite: a number that shares no factor with the slots' lengths."""


def composed(strategy: str, mode: str, codec: str, steps: str, combine: str) -> Job | None:
    rounds = {"mode": mode, **SLOTS["mode"][mode]}
    try:
        return job_of(
            SILOS,
            strategy=SLOTS["strategy"][strategy],
            rounds=rounds,
            codec=SLOTS["codec"][codec],
            privacy=STEPS[steps],
            combine=COMBINE[combine],
        )
    except ValidationError:
        return None


class Fold:
    """One round of a job, in which the victim may send what it likes."""

    def __init__(self, job: Job, seed: int = 0) -> None:
        self.job, self.rng = job, np.random.default_rng(seed)
        state = job.strategy.init({"params": np.zeros(SIZE, np.float32)})
        sizes = {**job.strategy.layout(state), **job.extra_parts}
        self.layout = Layout(tuple(sizes), tuple(sizes.values()))
        late = job.policy.most_stale > 0
        keys = [(silo, 0) for silo in SILOS] + ([(VICTIM, 1)] if late else [])
        self.updates = [
            update(silo, version, layout=tuple(sizes.items()), weight=job.combine.weight(silo, 10))
            for silo, version in sorted(keys)
        ]
        factors = [job.policy.discount(int(self.rng.integers(3))) if late else 1.0 for _ in self.updates]
        cohort = CohortInfo(len(SILOS), tuple(shares_of(self.updates)), (), tuple(factors))
        self.factors, self.shares = factors, list(job.strategy.weigh(cohort))
        self.others = {silo: self.vector(10 ** self.rng.uniform(-2, 2)) for silo in SILOS}

    def vector(self, length: float, along: np.ndarray | None = None) -> np.ndarray:
        x = self.rng.standard_normal(self.layout.size) if along is None else along.copy()
        if self.job.extra_parts:
            x[-1] = 0
        return (length * x / max(np.linalg.norm(x), 1e-30)).astype(np.float32)

    def sent(self, silo: str, version: int, victim: np.ndarray | None) -> np.ndarray:
        x = self.others[silo] if silo != VICTIM else victim
        if x is None:
            return np.zeros(self.layout.size, np.float32)
        packet = outgoing(self.job, silo, version, self.layout.unpack(x.copy()), {})
        return self.job.codec.decode(packet, x.size, 0)

    def result(self, victim: np.ndarray | None) -> np.ndarray:
        """The combined vector, noise and all; ``victim``: None for one that sends nothing but zeros."""
        rows = [self.sent(each.silo, each.version, victim) for each in self.updates]
        made = self._ring(rows) if self.job.sums is not None else self._mean(rows)
        everything = dict(made.parts)
        return np.concatenate([everything[name] for name in self.layout.names if name in everything])

    def _mean(self, rows: Sequence[np.ndarray]) -> Combined:
        by_key = {(u.silo, u.version): row for u, row in zip(self.updates, rows, strict=True)}

        async def fetch(of: Update, start: int, stop: int) -> Packet:
            return self.job.codec.encode(by_key[of.silo, of.version][start:stop], {}, 0)

        out = np.empty(self.layout.size, np.float32)
        return asyncio.run(incoming(self.job, self.updates, self.shares, fetch, out))

    def _ring(self, rows: Sequence[np.ndarray]) -> Combined:
        combine, point = self.job.sums, self.job.sums.fixed_point(self.job.max_in_sum)
        levels = [combine.level(each.silo, 10) for each in self.updates]
        parts = zip(rows, self.factors, levels, strict=True)
        encoded = [point.encode(np.float32(factor) * row, level, {}, ()) for row, factor, level in parts]
        total = encoded[0].copy()
        for each in encoded[1:]:
            total += each
        out = np.empty(self.layout.size, np.float32)
        point.decode(total, out.size, out)
        self.shares = [
            level * factor / sum(levels) for level, factor in zip(levels, self.factors, strict=True)
        ]
        made = Combined(self.layout.unpack(out), [None] * len(rows), self.shares, [None] * len(rows))
        finish(self.job, made, out, self.layout, self.updates, {}, self.rounding)
        return made

    @property
    def rounding(self) -> float:
        if self.job.sums is None:
            return 0.0
        return math.sqrt(self.layout.size) * self.job.sums.fixed_point(self.job.max_in_sum).quantum / 2

    @property
    def declared(self) -> float:
        """What the noise is measured by."""
        noise = next(step for step in self.job.steps({}) if isinstance(step, Noise))
        shares = by_silo(self.updates, self.shares)
        found = self.job.combine.sensitivity(
            noise.bound + self.rounding, [sum(each) for each in shares.values()]
        )
        assert found is not None
        return found

    @property
    def victims_part(self) -> float:
        """Of the largest share."""
        shares = {silo: sum(each) for silo, each in by_silo(self.updates, self.shares).items()}
        return shares[VICTIM] / max(shares.values())


def moved(job: Job) -> Mapping[str, float]:
    """Largest moves, in declared sensitivities: ``zeros`` in place of the victim's updates, and ``others``."""
    fold = Fold(job)
    direction = fold.rng.standard_normal(fold.layout.size)
    kinds = [fold.vector(length, way * direction) for length, way in product((0.3, 0.8, 1e4), (1, -1))]
    kinds += [fold.vector(10.0), fold.vector(0.0)]
    results = [fold.result(each) for each in kinds]
    nothing = fold.result(None)
    from_zeros = [] if job.noise.where == "silos" else [np.linalg.norm(each - nothing) for each in results]
    apart = [np.linalg.norm(a - b) for a, b in combinations(results, 2)]
    declared = fold.declared
    # the victim's own noise is rounded with its update: that much more where it is added at the silo
    spare = 4 * fold.rounding if job.noise.where == "silos" else 0.0
    return {
        "zeros": max(from_zeros, default=0.0) / declared,
        "others": (max(apart) - spare) / declared,
        "part": fold.victims_part,
    }


@pytest.mark.parametrize("every", [FEW, pytest.param(1, marks=pytest.mark.slow)])
def test_no_silo_moves_the_result_further_than_declared(every: int) -> None:
    legal = [job for each in EVERYTHING[::every] if (job := composed(*each)) is not None]
    found = [(job, moved(job)) for job in legal]
    for job, far in found:
        what = job.model_dump(include={"strategy", "privacy", "combine", "rounds"}), far
        assert far["zeros"] <= 1 + 1e-5 and far["others"] <= 2 + 1e-5, what
        if not job.extra_parts:  # of an adaptive clip, the count takes a part that the two worlds may share
            assert far["others"] >= 2 * far["part"] * 0.9, ("declared in vain", what)
    print(f"{len(found)} legal jobs with noise")
    assert len(found) > 700 / every
    kinds = {
        (job.combine.name, job.privacy[0].name, job.noise.where, job.policy.most_stale > 0)
        for job, _ in found
    }
    assert len(kinds) >= 10
    assert all(job.combine.weights != "examples" and job.codec.name == "raw" for job, _ in found)


@pytest.fixture
def plain() -> Job:
    job = composed("fedavg", "sync", "raw", "clip", "uniform")
    assert job is not None
    return job


def test_a_clip_that_does_not_clip_would_show(plain: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clip, "encode", lambda self, x, rng: x)
    assert moved(plain)["zeros"] > 100


def test_a_codec_that_lengthens_would_show(plain: Job) -> None:
    """Which is why the table refuses it."""
    assert max(moved(plain.model_copy(update={"codec": Bf16()})).values()) > 2 + 1e-5 or any(
        moved_with(plain.model_copy(update={"codec": Bf16()}), seed) > 1 + 1e-5 for seed in range(30)
    )


def moved_with(job: Job, seed: int) -> float:
    fold = Fold(job, seed)
    nothing = fold.result(None)
    return float(np.linalg.norm(fold.result(fold.vector(1e4)) - nothing)) / fold.declared


def test_a_share_for_all_silos_alike_would_show() -> None:
    """Noise for one of five equal silos, where one of them has half of the weight."""
    job = composed("fedavg", "sync", "raw", "clip", "given")
    assert job is not None
    fold = Fold(job)
    far = float(np.linalg.norm(fold.result(fold.vector(1e4)) - fold.result(None)))
    assert far > 2 * 0.8 / len(SILOS)
