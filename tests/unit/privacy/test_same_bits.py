"""One oracle for all kinds of sums: the plain sum of whole numbers, bit for bit, and the mean of floats within
rounding; for any number of silos, weights, rings, silos lost before they seal, before they are fetched or before they
open, attempts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from orchestrator.privacy.encrypted_sum import EncryptedSum
from orchestrator.privacy.fixed_point import FIXED
from orchestrator.privacy.ring_sum import FixedPointSum, RingSum
from orchestrator.privacy.sealing import SumFailed
from orchestrator.privacy.secure_sum import SecureSum
from orchestrator.privacy.two_aggregators import TwoAggregatorSum
from tests.support.cohorts import Cohort

SIZE, RANGE = 40, 2.0
WEIGHTS: list[dict[str, Any]] = [
    {},
    {"weights": "examples", "max_examples": 900, "weight_levels": 100},
    {"ring": "uint16"},
]


def kinds(terms: dict[str, Any], num: int, encrypted: bool) -> list[RingSum]:
    made: list[RingSum] = [SecureSum(**terms), TwoAggregatorSum(second="s00", **terms)]
    if num <= 12:
        made += [SecureSum(order="textbook", **terms), SecureSum(mode="active", **terms)]
    return [*made, EncryptedSum(**terms)] if encrypted else made


def check(num: int, weights: dict[str, Any], encrypted: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = 8 if weights.get("ring") == "uint16" else 13
    terms = {"value_bits": bits, "range": RANGE, **weights}
    plain = FixedPointSum(**terms)
    point = plain.fixed_point(num)
    assert point.room
    names = [f"s{i:02}" for i in range(num)]
    rows = dict(zip(names, rng.uniform(-RANGE, RANGE, (num, SIZE)).astype(np.float32), strict=True))
    levels = {silo: plain.level(silo, int(rng.integers(1, 1000))) for silo in names}
    vectors = {silo: point.encode(rows[silo], levels[silo], {}, ()) for silo in names}
    fewest = max(3, SecureSum(**terms).enough(num), num // 2 + 1)
    for attempt, num_lost in enumerate((0, int(rng.integers(0, num - fewest, endpoint=True))), 1):
        lost = [names[i] for i in rng.permutation(np.arange(1, num))[:num_lost]]
        there = [silo for silo in names if silo not in lost]
        silent = there[fewest:]
        oracle = opened(plain, vectors, attempt, lost)
        assert sorted(oracle.silos) == there
        for combine in kinds(terms, num, encrypted):
            found = opened(combine, vectors, attempt, lost, silent)
            assert sorted(found.silos) == there, combine.name
            assert found.total.tobytes() == oracle.total.tobytes(), combine.name
        mean = np.empty(SIZE, np.float32)
        total = point.decode(oracle.total, SIZE, mean)
        assert total.weight == sum(levels[silo] for silo in there)
        exact = np.average([rows[silo] for silo in there], axis=0, weights=[levels[silo] for silo in there])
        assert np.abs(mean - exact).max() <= point.quantum / 2 + 1e-6


def opened(
    combine: RingSum, vectors: dict[str, Any], attempt: int, lost: list[str], silent: Sequence[str] = ()
) -> Any:
    """``lost``: before their vectors are there; ``silent``: after that. A second attempt comes after a first one of
    which all but one silo told nothing."""
    cohort = Cohort(combine, vectors)
    cohort.set_up()
    begun = {"size": SIZE, "value_bits": combine.value_bits}
    if attempt > 1 and combine.protects:
        cohort.lost = dict.fromkeys(("reveal", "agree", "unmask"), cohort.silos[:-1])
        with pytest.raises(SumFailed):
            cohort.open(cohort.header(attempt - 1, **begun))
        for memory in cohort.memories.values():
            memory.opened.clear()  # of a sum of all, where this one may be of fewer
    cohort.lost = {"seal": lost[::2], "gather": lost[1::2]}
    cohort.lost |= dict.fromkeys(("agree", "unmask", "decrypt"), silent)
    return cohort.open(cohort.header(attempt, **begun))


@pytest.mark.parametrize("weights", WEIGHTS, ids=["uniform", "examples", "uint16"])
@pytest.mark.parametrize("num", [3, 4, 7, 12])
def test_all_kinds_of_sums_are_one(num: int, weights: dict[str, Any]) -> None:
    check(num, weights, num < 12, seed=num)


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS, ids=["uniform", "examples", "uint16"])
def test_all_kinds_of_sums_are_one_for_3_to_50_silos(weights: dict[str, Any]) -> None:
    for num in (*range(3, 16), 19, 23, 32, 50):
        check(num, weights, num in (3, 5, 8, 16, 50), seed=100 + num)


def test_the_oracle_notices_one_bit() -> None:
    """Else it would say nothing: a sum in which one silo's vector is off by one."""
    combine = SecureSum(value_bits=13, range=RANGE)
    point = combine.fixed_point(3)
    vectors = {f"s{i:02}": point.encode(np.zeros(SIZE, np.float32), 1, {}, ()) for i in range(3)}
    assert vectors["s00"].size == SIZE + FIXED
    honest = opened(combine, vectors, 1, [])
    vectors["s01"][7] += 1
    assert opened(combine, vectors, 1, []).total.tobytes() != honest.total.tobytes()
