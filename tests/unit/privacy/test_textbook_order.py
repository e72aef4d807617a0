"""Secure sums in textbook order: a silo masks its vector once, among members who have shared, and not for a few."""

from typing import Any

import pytest

from orchestrator.privacy.sealing import Fields, SumHeader, SumRefused
from orchestrator.privacy.secure_sum import SecureSum
from tests.support.cohorts import Cohort, ring_vectors


def shared(num: int = 6, least: int = 3) -> tuple[Cohort, SumHeader, dict[str, Fields]]:
    """Silos that have told their shares, and by silo the boxes of the others for it."""
    cohort = Cohort(SecureSum(order="textbook"), ring_vectors(num, 30, "uint32", num), least=least)
    cohort.set_up()
    header = cohort.header()
    sent = {silo: cohort.ask(silo, "shares", header)["boxes"] for silo in cohort.silos}
    boxes = {
        silo: {sender: sent[sender][silo] for sender in cohort.silos if sender != silo}
        for silo in cohort.silos
    }
    return cohort, header, boxes


def test_a_vector_is_masked_once() -> None:
    """Under the same keys among others, the difference of the two would be of masks alone."""
    cohort, header, boxes = shared()
    cohort.ask("s00", "seal", header, boxes=boxes["s00"])
    fewer = {silo: box for silo, box in boxes["s00"].items() if silo != "s05"}
    for again in (boxes["s00"], fewer):
        with pytest.raises(SumRefused, match="this sum was sealed before"):
            cohort.ask("s00", "seal", header, boxes=again)
    with pytest.raises(SumRefused, match="was begun before"):
        cohort.ask("s00", "shares", header)


def test_nothing_is_masked_for_a_few() -> None:
    cohort, header, boxes = shared()
    few = {silo: boxes["s00"][silo] for silo in ("s01", "s02", "s03")}
    with pytest.raises(
        SumRefused, match="shares came from 4 silos, and this silo opens no sum of fewer than 5"
    ):
        cohort.ask("s00", "seal", header, boxes=few)
    strict, its_header, its_boxes = shared(least=6)
    del its_boxes["s00"]["s05"]
    with pytest.raises(
        SumRefused, match="shares came from 5 silos, and this silo opens no sum of fewer than 6"
    ):
        strict.ask("s00", "seal", its_header, boxes=its_boxes["s00"])
    assert not cohort.packets and not strict.packets


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"eve": "AAAA"}, "boxes from silos that are no members"),
        ({"s03": "AAAA"}, "the box from s03 was altered"),
        ({"s03": None}, "base64"),
    ],
)
def test_boxes_that_no_member_made(changed: dict[str, Any], sentence: str) -> None:
    cohort, header, boxes = shared()
    with pytest.raises(SumRefused, match=sentence):
        cohort.ask("s00", "seal", header, boxes=boxes["s00"] | changed)
    cohort.ask("s00", "seal", header, boxes=boxes["s00"])  # what is right is still sealed


@pytest.mark.parametrize("boxes", [None, [], "boxes", 7])
def test_what_are_no_boxes(boxes: Any) -> None:
    cohort, header, _ = shared()
    with pytest.raises(SumRefused, match="boxes for this silo belong here"):
        cohort.ask("s00", "seal", header, boxes=boxes)


def test_shares_are_told_of_a_vector_that_was_sealed() -> None:
    cohort, header, boxes = shared()
    with pytest.raises(SumRefused, match="has not sealed its own vector"):
        cohort.ask("s00", "unmask", header, survivors=cohort.silos, boxes=boxes["s00"])


def test_who_did_not_share_is_in_no_list() -> None:
    cohort, header, boxes = shared()
    del boxes["s00"]["s05"]
    cohort.ask("s00", "seal", header, boxes=boxes["s00"])
    with pytest.raises(SumRefused, match="s05: not in this sum"):
        cohort.ask("s00", "unmask", header, survivors=cohort.silos, boxes=boxes["s00"])
