"""Secure sums are the plain ring sums of those who are in them, bit for bit: for any number of silos, either ring and
order, whoever is lost, at any step, and in any attempt."""

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.privacy.sealing import Member, SumFailed, as_bytes, as_text
from orchestrator.privacy.secure_sum import SecureSum
from tests.support.cohorts import Cohort, ring_vectors

ORDERS: tuple[Literal["single", "textbook"], ...] = ("single", "textbook")


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_equal_to_the_plain_sum(data: st.DataObject) -> None:
    num = data.draw(st.integers(3, 12), "silos")
    ring = data.draw(st.sampled_from(["uint32", "uint16"]), "ring")
    combine = SecureSum(
        ring=ring,
        order=data.draw(st.sampled_from(ORDERS), "order"),
        mode=data.draw(st.sampled_from(["passive", "active"]), "mode"),
    )
    cohort = Cohort(combine, ring_vectors(num, data.draw(st.integers(4, 50), "size"), ring, num))
    enough = max(3, combine.enough(num))
    cohort.set_up()
    for attempt in range(1, data.draw(st.integers(1, 3), "attempts") + 1):
        num_lost = data.draw(st.integers(0, num - enough), "lost")
        lost = data.draw(st.permutations(cohort.silos), "who")[:num_lost]
        at = data.draw(st.lists(st.sampled_from(["seal", "gather"]), min_size=num_lost, max_size=num_lost))
        silent = set(data.draw(st.permutations(cohort.silos))[: max(0, num - num_lost - enough)])
        cohort.lost = {
            "seal": [silo for silo, step in zip(lost, at, strict=True) if step == "seal"],
            "gather": [silo for silo, step in zip(lost, at, strict=True) if step == "gather"],
            "unmask": silent - set(lost),
        }
        for memory in cohort.memories.values():
            memory.opened.clear()  # of other updates, as it were
        opened = cohort.open(cohort.header(attempt))
        assert sorted(opened.silos) == sorted(set(cohort.silos) - set(lost))
        assert opened.total.dtype == ring
        assert np.array_equal(opened.total, cohort.plain(opened.silos))
        assert set(opened.lost) == set(lost)


@pytest.mark.parametrize(
    ("num", "lost", "order", "mode"),
    [
        (3, 0, "single", "passive"),
        (20, 3, "single", "passive"),
        (50, 5, "single", "passive"),
        pytest.param(50, 16, "single", "active", marks=pytest.mark.slow),
        pytest.param(50, 16, "textbook", "active", marks=pytest.mark.slow),
    ],
)
def test_the_largest_cohorts(num: int, lost: int, order: Any, mode: Any) -> None:
    cohort = Cohort(SecureSum(order=order, mode=mode), ring_vectors(num, 100, "uint32", num))
    cohort.set_up()
    cohort.lost = {"seal": cohort.silos[: lost // 2], "gather": cohort.silos[lost // 2 : lost]}
    opened = cohort.open(cohort.header())
    assert sorted(opened.silos) == cohort.silos[lost:]
    assert np.array_equal(opened.total, cohort.plain(opened.silos))


def test_both_orders_give_the_same_bits() -> None:
    vectors = ring_vectors(7, 1000, "uint32", 7)
    totals = []
    for order in ORDERS:
        cohort = Cohort(
            SecureSum(order=order, mode="active"), vectors, lost={"seal": ["s03"], "gather": ["s05"]}
        )
        cohort.set_up()
        totals.append(cohort.open(cohort.header()).total)
    assert totals[0].tobytes() == totals[1].tobytes()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("step", ["seal", "gather", "unmask"])
def test_with_one_silo_too_few_nothing_is_opened(order: Literal["single", "textbook"], step: str) -> None:
    cohort = Cohort(SecureSum(order=order), ring_vectors(8, 20, "uint32", 8))
    cohort.set_up()
    lacking = cohort.silos[:2]  # six are left, and seven are enough
    cohort.lost = {step: lacking}
    with pytest.raises(SumFailed, match="s00: gone; s01: gone"):
        cohort.open(cohort.header())
    told = [silo for silo in cohort.silos if cohort.memories[silo].opened]
    assert told == (cohort.silos[2:] if step == "unmask" else [])


def test_a_silo_that_starts_anew_is_lost_until_keys_are_exchanged_again() -> None:
    cohort = Cohort(SecureSum(), ring_vectors(5, 20, "uint32", 5))
    cohort.set_up()
    cohort.restart("s02")
    opened = cohort.open(cohort.header())
    assert opened.lost == {"s02": "no keys were exchanged with this silo for set-up 1: begin with 'keys'"}
    cohort.set_up(2)
    again = cohort.header(2, version=6, setup=2, members=tuple(_moved(cohort)))
    assert len(cohort.open(again).silos) == 5


def _moved(cohort: Cohort) -> Any:
    """The members with their next updates."""
    return [Member(silo, (5,), ("next",), (1.0,)) for silo in cohort.silos]


@given(st.sampled_from(["s00", "s03", "s05"]), st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_wrong_shares_of_one_silo_do_not_spoil_the_sum(liar: str, at: int) -> None:
    def spoilt(step: str, silo: str, fields: dict[str, Any]) -> dict[str, Any]:
        if step != "unmask" or silo != liar:
            return fields
        shares = {}
        for sender, told in fields["shares"].items():
            wrong = bytearray(as_bytes(told))
            wrong[at % len(wrong)] ^= 1
            shares[sender] = as_text(bytes(wrong))
        return {"shares": shares}

    cohort = Cohort(
        SecureSum(mode="active"), ring_vectors(8, 20, "uint32", 8), lost={"seal": ["s07"]}, spoilt=spoilt
    )
    cohort.set_up()
    assert np.array_equal(cohort.open(cohort.header()).total, cohort.plain(cohort.silos[:7]))
    cohort.lost["unmask"] = ["s06"]  # now every share is needed
    cohort.set_up(2)
    with pytest.raises(SumFailed, match="its keys do not follow from their shares"):
        cohort.open(cohort.header(2, setup=2, members=tuple(_moved(cohort))))


@pytest.mark.parametrize("checks", [None, 7, "", "!", "AAAA"])
def test_a_silo_that_sends_nonsense_along_is_named(checks: Any) -> None:
    def spoilt(step: str, silo: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "checks": checks} if (step, silo) == ("seal", "s03") else fields

    cohort = Cohort(SecureSum(), ring_vectors(5, 20, "uint32", 5), spoilt=spoilt)
    cohort.set_up()
    with pytest.raises(SumFailed, match=r"^s03: its keys do not follow from their shares$"):
        cohort.open(cohort.header())


@pytest.mark.parametrize("told", [{}, {"shares": 7}, {"shares": {"s00": "AAAA"}}, {"shares": ["s00"]}])
def test_a_silo_that_tells_nonsense_is_left_out(told: Any) -> None:
    def spoilt(step: str, silo: str, fields: dict[str, Any]) -> dict[str, Any]:
        return told if (step, silo) == ("unmask", "s03") else fields

    cohort = Cohort(SecureSum(), ring_vectors(5, 20, "uint32", 5), spoilt=spoilt)
    cohort.set_up()
    assert np.array_equal(cohort.open(cohort.header()).total, cohort.plain(cohort.silos))
