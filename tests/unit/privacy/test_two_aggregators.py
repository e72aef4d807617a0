"""Sums with two aggregators: the plain ring sums, bit for bit; and neither aggregator alone learns more."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.privacy.fixed_point import FIXED
from orchestrator.privacy.sealing import (
    Answers,
    Gather,
    Rules,
    SumFailed,
    SumHeader,
    SumRefused,
    as_bytes,
    as_text,
)
from orchestrator.privacy.two_aggregators import TwoAggregatorSum
from tests.support.cohorts import Cohort, ring_vectors


def cohort_of(num: int = 5, size: int = 60, ring: str = "uint32", second: str = "s01") -> Cohort:
    made = Cohort(TwoAggregatorSum(ring=ring, second=second), ring_vectors(num, size, ring, num))
    made.set_up()
    return made


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_equal_to_the_plain_sum(data: st.DataObject) -> None:
    """Whoever is lost before the upload or afterwards, as long as three are in it and the second answers."""
    num = data.draw(st.integers(4, 12), "silos")
    ring = data.draw(st.sampled_from(["uint32", "uint16"]), "ring")
    cohort = cohort_of(num, data.draw(st.integers(FIXED, 50), "size"), ring)
    for attempt in (1, 2):
        others = [silo for silo in cohort.silos if silo != "s01"]
        members = sorted(data.draw(st.permutations(others), "members")[: data.draw(st.integers(3, num - 1))])
        if data.draw(st.booleans(), "the second is in it"):
            members = sorted({*members, "s01"})
        lost = [silo for silo in members if silo != "s01"][
            : data.draw(st.integers(0, len(members) - 3), "lost")
        ]
        lost = lost[: len(members) - 3]
        cohort.lost = {"seal": lost[::2], "gather": lost[1::2]}
        for memory in cohort.memories.values():
            memory.opened.clear()  # of other updates, as it were
        opened = cohort.open(cohort.header(attempt, members))
        there = [silo for silo in members if silo not in lost]
        assert sorted(opened.silos) == there and set(opened.lost) == set(lost)
        assert opened.total.dtype == ring and np.array_equal(opened.total, cohort.plain(there))


@pytest.mark.parametrize("at", ["reveal", "masks"])
def test_without_the_second_nothing_is_opened(at: str) -> None:
    cohort = cohort_of()
    gathered = cohort._gathered

    def lose(gather: Gather, tag: bytes) -> Answers:
        return Answers(lost={"s01": "gone"}) if gather.step == "reveal" else gathered(gather, tag)

    if at == "reveal":
        cohort.lost = {"reveal": ["s01"]}
    else:
        cohort._gathered = lose  # type: ignore[method-assign]
    with pytest.raises(SumFailed, match="gone"):
        cohort.open(cohort.header())


# a driver that is not honest


class Sum:
    """One sum as such a driver has it in hand."""

    def __init__(self, cohort: Cohort, attempt: int = 1, **changes: Any) -> None:
        self.cohort, self.header = cohort, cohort.header(attempt, **changes)
        answers = {silo: cohort.ask(silo, "seal", self.header) for silo in self.header.silos}
        self.boxes = {silo: answer.get("box") for silo, answer in answers.items()}

    def masked(self, silo: str) -> Any:
        return self.cohort.packets[self.header.tag, silo, "seal"]

    def reveal(self, survivors: Any = None, header: SumHeader | None = None, **boxes: Any) -> Any:
        header = header or self.header
        self.cohort.ask(
            "s01",
            "reveal",
            header,
            survivors=list(self.header.silos) if survivors is None else survivors,
            boxes=self.boxes | boxes,
        )
        return self.cohort.packets[header.tag, "s01", "reveal"]


@pytest.fixture
def cohort() -> Cohort:
    return cohort_of()


def test_the_honest_way_is_open(cohort: Cohort) -> None:
    mine = Sum(cohort)
    masked = np.sum([mine.masked(silo) for silo in cohort.silos], axis=0, dtype=np.uint32)
    assert np.array_equal(masked - mine.reveal(), cohort.plain(cohort.silos))


@pytest.mark.parametrize(
    ("survivors", "why"),
    [
        (["s00"], "none of fewer than 3"),
        (["s00", "s02"], "none of fewer than 3"),
        (["s00", "s00", "s00"], "none of fewer than 3"),
        ([], "none of fewer than 3"),
        (["s00", "s02", "s09"], "s09: not in this sum"),
        ("s00", "a list of silos"),
        ([["s00"], "s01", "s02"], "a list of silos"),
    ],
)
def test_sets_that_the_second_does_not_open(cohort: Cohort, survivors: Any, why: str) -> None:
    with pytest.raises(SumRefused, match=why):
        Sum(cohort).reveal(survivors)


def test_the_second_answers_once(cohort: Cohort) -> None:
    mine = Sum(cohort)
    mine.reveal(["s00", "s02", "s03", "s04"])
    for survivors in (["s00", "s02", "s03", "s04"], ["s00", "s02", "s03"], ["s02", "s03", "s04"]):
        with pytest.raises(SumRefused, match="opened before"):
            mine.reveal(survivors)


def test_the_second_remembers_everybodys_updates(cohort: Cohort) -> None:
    """A second sum of the same updates that differs by one silo would show that silo's, though the second brings
    nothing to either."""
    Sum(cohort, 1, silos=["s00", "s02", "s03"]).reveal()
    with pytest.raises(SumRefused, match="differ by 1"):
        Sum(cohort, 2, silos=["s00", "s02", "s03", "s04"]).reveal()
    with pytest.raises(SumRefused, match="differ by"):
        Sum(cohort, 3).reveal(["s00", "s02", "s03", "s04"])


def test_boxes_are_of_one_sum_and_one_silo(cohort: Cohort) -> None:
    mine, other = Sum(cohort), Sum(cohort, 2)
    bent = as_text(as_bytes(mine.boxes["s00"])[:-1] + b"?")
    for bad in ({"s00": other.boxes["s00"]}, {"s00": mine.boxes["s02"]}, {"s00": bent}):
        with pytest.raises(SumRefused, match="altered on its way, or belongs to another sum"):
            mine.reveal(**bad)
    with pytest.raises(SumRefused):
        mine.reveal(s00=None)
    with pytest.raises(SumRefused, match="belongs to another sum"):
        mine.reveal(header=cohort.header(3))


def test_only_the_second_reveals_and_only_what_it_was_named_for(cohort: Cohort) -> None:
    mine = Sum(cohort)
    with pytest.raises(SumRefused, match="no step 'reveal'"):
        cohort.ask("s02", "reveal", mine.header, survivors=cohort.silos, boxes=mine.boxes)
    with pytest.raises(SumRefused, match="sealed before"):
        cohort.ask("s00", "seal", mine.header)
    for changes, why in (
        ({"silos": ["s01", "s02", "s03"]}, "not in the sum"),
        ({"silos": ["s00", "s01"]}, "none of fewer than 3"),
        ({"setup": 9}, "no keys were exchanged"),
    ):
        with pytest.raises(SumRefused, match=why):
            cohort.ask("s00", "seal", cohort.header(7, **changes))


def test_a_silo_says_whom_it_accepts(cohort: Cohort) -> None:
    for seconds, why in ((("s02",), "s01 is not among those whom this silo accepts"), (("s01",), "")):
        cohort.halves["s00"] = cohort.combine.half(
            cohort.identities["s00"], cohort.memories["s00"], Rules(seconds=seconds), "run-1"
        )
        cohort.set_up(2)
        if why:
            with pytest.raises(SumRefused, match=why):
                cohort.ask("s00", "seal", cohort.header(3, setup=2))
        else:
            cohort.ask("s00", "seal", cohort.header(3, setup=2))


def test_a_policys_larger_minimum_counts() -> None:
    cohort = cohort_of()
    cohort.least = 5
    cohort.restart("s01")
    cohort.set_up(2)
    mine = Sum(cohort, setup=2)
    with pytest.raises(SumRefused, match="none of fewer than 5"):
        mine.reveal(cohort.silos[:4])


def test_what_the_driver_has_looks_like_noise() -> None:
    """Masked zeros and masked data; and a second sum of the same shows another mask."""
    cohort = cohort_of(3, 40_000)
    for vector in (np.zeros(40_000, np.uint32), np.full(40_000, 7, np.uint32)):
        cohort.vectors = dict.fromkeys(cohort.silos, vector)
        mine, again = Sum(cohort, 1 + int(vector[0])), Sum(cohort, 2 + int(vector[0]))
        counts = np.bincount(mine.masked("s00").view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
        assert (mine.masked("s00") != again.masked("s00")).mean() > 0.99
