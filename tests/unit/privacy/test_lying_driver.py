"""A driver that lies, against real silos of a secure sum: what it asks for is refused with a sentence, and nothing is
opened; where it tells every silo something else, no fewer honest silos are in what it opens."""

from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from orchestrator.privacy.masking import add_masks
from orchestrator.privacy.pair_keys import OwnKey
from orchestrator.privacy.sealing import Fields, Member, SumRefused, as_text
from orchestrator.privacy.secure_sum import SecureSum
from orchestrator.privacy.secure_terms import mask_of, pair_secret
from silos.identity import Identity
from tests.support.cohorts import Cohort, ring_vectors
from tests.support.lying_driver import Driver, lists_against, opened, shown


def cohort_of(num: int = 8, least: int = 3, **terms: Any) -> Cohort:
    cohort = Cohort(SecureSum(**terms), ring_vectors(num, 30, "uint32", num), least=least)
    cohort.set_up()
    return cohort


def refused(cohort: Cohort, sentence: str, ask: Callable[[], object]) -> None:
    """The step is refused, and no silo remembers to have opened anything that it had not before."""
    before = {silo: list(each.opened) for silo, each in cohort.memories.items()}
    with pytest.raises(SumRefused, match=sentence):
        ask()
    assert {silo: each.opened for silo, each in cohort.memories.items()} == before


def test_a_sum_is_opened_once() -> None:
    cohort = cohort_of()
    driver = Driver(cohort)
    driver.unmask("s00", cohort.silos)
    for again in (cohort.silos, cohort.silos[:7]):
        refused(
            cohort, "was opened, or given up at this silo", lambda again=again: driver.unmask("s00", again)
        )


def test_what_was_opened_is_remembered_when_the_process_starts_anew() -> None:
    cohort = cohort_of()
    driver = Driver(cohort)
    driver.unmask("s00", cohort.silos)
    for silo in cohort.silos:
        cohort.restart(silo)
    refused(cohort, "was never sealed at this silo", lambda: driver.unmask("s00", cohort.silos))
    cohort.set_up()  # the driver begins with the same number, and asks for the same sum
    again = Driver(cohort, driver.header)
    refused(cohort, "this sum was opened before", lambda: again.unmask("s00", cohort.silos))


@pytest.mark.parametrize(
    ("survivors", "sentence"),
    [
        (["s00", "s01"], "would show a sum of 2, and this silo opens no sum of fewer than 7"),
        (["s00", "s01", "s02", "s03", "s04", "s05"], "would show a sum of 6"),
        (["s01", "s02", "s03", "s04", "s05", "s06", "s07"], "leaves out this silo"),
        (["s00", "s01", "s02", "s03", "s04", "s05", "s06", "eve"], "eve: not in this sum"),
        (["s00", "s00", "s00", "s00", "s01", "s01", "s01", "s01"], "would show a sum of 2"),
        ([], "leaves out this silo"),
        ("s00", "a list of silos"),
        (None, "a list of silos"),
        ([["s00"]], "a list of silos"),
    ],
)
def test_lists_that_no_silo_accepts(survivors: Any, sentence: str) -> None:
    cohort = cohort_of()
    driver = Driver(cohort)
    refused(cohort, sentence, lambda: driver.unmask("s00", cohort.silos, survivors=survivors))
    driver.unmask("s00", cohort.silos)  # what is right is still answered


def test_the_silo_own_least_number_counts() -> None:
    cohort = cohort_of(least=8)
    driver = Driver(cohort)
    refused(
        cohort,
        "would show a sum of 7, and this silo opens no sum of fewer than 8",
        lambda: driver.unmask("s00", cohort.silos[:7]),
    )
    few = cohort_of(num=5, least=6)
    refused(few, "it has 5 members, and this silo opens no sum of fewer than 6", lambda: Driver(few))


def test_two_silos_are_no_sum() -> None:
    for num in (1, 2):
        cohort = Cohort(SecureSum(colluders=0), ring_vectors(num, 5, "uint32", 0), least=1)
        if num > 1:
            cohort.set_up()
        refused(
            cohort,
            f"it has {num} members, and this silo opens no sum of fewer than 3",
            lambda cohort=cohort: Driver(cohort),
        )


def test_a_lowered_threshold_is_the_jobs_and_never_below_what_colluders_make_necessary() -> None:
    for num in range(3, 65):
        for terms in (SecureSum(), SecureSum(threshold=2), SecureSum(mode="active", threshold=2)):
            assert 2 * terms.enough(num) > num + (num - 1) // 3
            assert terms.enough(num) <= num
    assert SecureSum(threshold=8).enough(8) == 8


@pytest.mark.parametrize("changes", [{"ring": "uint16"}, {"range": 0.25}, {"version": 6}, {"attempt": 2}])
def test_a_sum_of_which_something_was_changed_is_another_sum(changes: dict[str, Any]) -> None:
    cohort = cohort_of()
    driver = Driver(cohort)
    other = cohort.header(**changes)
    assert other.tag != driver.header.tag
    driver.header = other
    refused(cohort, "was never sealed at this silo", lambda: driver.unmask("s00", cohort.silos))


def test_different_stories_told_to_different_silos_open_noise() -> None:
    """Each silo hears that all had the model that it had itself: the tags differ, so masks do not cancel, and the
    boxes of one story do not open in the other."""
    cohort = cohort_of()
    true = cohort.header()
    told = cohort.header(members=tuple(Member(silo, (4,), ("other",), (1.0,)) for silo in cohort.silos))
    driver = Driver(cohort, true)
    cohort.restart("s03")
    cohort.set_up(2)
    stories = {silo: cohort.header(2, setup=2) for silo in cohort.silos}
    stories["s03"] = cohort.header(2, setup=2, members=told.members)
    sealed = {silo: cohort.ask(silo, "seal", story) for silo, story in stories.items()}
    driver.sealed, driver.header = sealed, stories["s00"]
    refused(
        cohort,
        "the box from s03 was altered on its way, or belongs to another sum",
        lambda: driver.unmask("s00", cohort.silos),
    )
    total = np.sum(
        [cohort.packets[story.tag, silo, "seal"] for silo, story in stories.items()], axis=0, dtype=np.uint32
    )
    plain = np.sum(list(cohort.vectors.values()), axis=0, dtype=np.uint32)
    assert np.mean(total == plain) < 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda box, others: box[:-4] + ("AAA=" if box[-4:] != "AAA=" else "BBB="),
        lambda box, others: others["s02"],
        lambda box, others: "",
        lambda box, others: None,
        lambda box, others: "!",
    ],
)
def test_boxes_that_are_not_what_the_sender_put_in(wrong: Callable[[str, Fields], Any]) -> None:
    cohort = cohort_of()
    driver = Driver(cohort)
    boxes = driver.boxes("s00", cohort.silos)
    boxes["s01"] = wrong(boxes["s01"], boxes)
    refused(cohort, "s01|base64", lambda: driver.unmask("s00", cohort.silos, boxes=boxes))


def test_a_box_of_another_sum() -> None:
    cohort = cohort_of()
    earlier, driver = Driver(cohort), Driver(cohort, cohort.header(2))
    boxes = {**driver.boxes("s00", cohort.silos), "s01": earlier.boxes("s00", cohort.silos)["s01"]}
    refused(
        cohort,
        "the box from s01 was altered on its way, or belongs to another sum",
        lambda: driver.unmask("s00", cohort.silos, boxes=boxes),
    )


def test_a_sum_is_sealed_once() -> None:
    cohort = cohort_of()
    driver = Driver(cohort)
    refused(cohort, "was begun before", lambda: cohort.ask("s00", "seal", driver.header))


def test_a_sum_that_was_left_behind_is_never_opened_and_not_sealed_again() -> None:
    cohort = cohort_of(num=4)
    first = Driver(cohort)
    for attempt in range(2, 7):
        Driver(cohort, cohort.header(attempt))
    refused(cohort, "was opened, or given up", lambda: first.unmask("s00", cohort.silos))
    refused(cohort, "was begun before", lambda: cohort.ask("s00", "seal", first.header))


def test_sums_of_one_update_that_differ_by_few_silos() -> None:
    cohort = cohort_of()
    Driver(cohort).unmask("s00", cohort.silos)
    again = Driver(cohort, cohort.header(2))
    refused(cohort, "they differ by 1 silos", lambda: again.unmask("s00", cohort.silos[:7]))
    again.unmask("s00", cohort.silos)  # the same sum says nothing new


def test_another_update_of_the_same_silo_is_another_term() -> None:
    cohort = cohort_of()
    Driver(cohort).unmask("s00", cohort.silos)
    moved = tuple(
        Member(silo, (5,), ("next",), (1.0,)) if silo == "s07" else Member(silo, (4,), ("model",), (1.0,))
        for silo in cohort.silos
    )
    again = Driver(cohort, cohort.header(2, members=moved))
    refused(cohort, "they differ by 2 silos", lambda: again.unmask("s00", cohort.silos))


def test_members_that_are_no_cohort() -> None:
    cohort = cohort_of()
    for silos, sentence in (
        (cohort.silos[1:], "its members are not this silo and others"),
        ([*cohort.silos, "t"], "no keys were exchanged with t"),
    ):
        refused(
            cohort,
            sentence,
            lambda silos=silos: cohort.ask("s00", "seal", cohort.header(silos=silos)),
        )
    backwards = cohort.header(members=tuple(reversed(cohort.header().members)))
    refused(cohort, "in the order of their names", lambda: cohort.ask("s00", "seal", backwards))
    twice = cohort.header(members=(cohort.header().members[0], *cohort.header().members))
    refused(cohort, "each once", lambda: cohort.ask("s00", "seal", twice))


# keys

Keys = dict[str, Fields]


def signed_keys(cohort: Cohort, number: int) -> Keys:
    return {silo: cohort.ask(silo, "keys", setup=number) for silo in cohort.silos}


def _of_the_driver(cohort: Cohort, keys: Keys) -> Keys:
    """A key of its own, signed by itself."""
    mallory, key = Identity.alone("s01"), OwnKey()
    return {
        **keys,
        "s01": {
            "key": as_text(key.public),
            "identity": as_text(mallory.public),
            "signature": as_text(mallory.sign(cohort.halves["s00"].exchanges._signed(2, "s01", key.public))),
        },
    }


@pytest.mark.parametrize(
    ("swap", "sentence"),
    [
        (lambda c, k: {**k, "s01": k["s02"]}, "the key said to be that of s01 is not signed by s01"),
        (lambda c, k: {**k, "s01": {**k["s01"], "key": k["s02"]["key"]}}, "not signed by s01"),
        (lambda c, k: {**k, "s01": {**k["s01"], "key": as_text(bytes(32))}}, "not signed by s01"),
        (lambda c, k: {**k, "s01": {**k["s01"], "signature": as_text(bytes(64))}}, "not signed by s01"),
        (lambda c, k: {**k, "s01": {**k["s01"], "key": as_text(b"short")}}, "has 5 bytes, not 32"),
        (lambda c, k: {**k, "s01": {}}, "base64"),
        (lambda c, k: {**k, "s01": None}, "are no fields"),
        (_of_the_driver, "another key of s01 than the one it shows"),
        (lambda c, k: {**k, "s00": k["s01"]}, "the key said to be that of s00 is not signed by s00"),
        (
            lambda c, k: {s: f for s, f in k.items() if s != "s00"},
            "the key said to be that of s00 is not the one",
        ),
        (lambda c, k: signed_keys(c, 7), "not signed by s0. for this run"),
        (lambda c, k: {}, "is not the one that it made"),
        (lambda c, k: None, "for which this silo made none"),
    ],
)
def test_keys_that_a_driver_put_in(swap: Callable[[Cohort, Keys], Any], sentence: str) -> None:
    cohort = cohort_of(num=4)
    keys = signed_keys(cohort, 2)
    given = swap(cohort, keys)
    refused(cohort, sentence, lambda: cohort.ask("s00", "peers", setup=2, keys=given))
    refused(cohort, "begin with 'keys'", lambda: Driver(cohort, cohort.header(setup=2)))


def test_a_zero_key_that_its_silo_signed() -> None:
    cohort = cohort_of(num=4)
    keys = signed_keys(cohort, 2)
    half = cohort.halves["s01"].exchanges
    signature = cohort.identities["s01"].sign(half._signed(2, "s01", bytes(32)))
    keys["s01"] = {**keys["s01"], "key": as_text(bytes(32)), "signature": as_text(signature)}
    refused(
        cohort,
        "the key of s01 is no usable X25519 key",
        lambda: cohort.ask("s00", "peers", setup=2, keys=keys),
    )


def test_other_keys_for_the_same_set_up() -> None:
    cohort = cohort_of(num=4)
    keys = signed_keys(cohort, 2)
    cohort.ask("s00", "peers", setup=2, keys=keys)
    cohort.ask("s00", "peers", setup=2, keys=keys)
    keys["s03"] = cohort.ask("s03", "keys", setup=2)
    refused(cohort, "other keys for set-up 2", lambda: cohort.ask("s00", "peers", setup=2, keys=keys))


def test_steps_that_there_are_not() -> None:
    cohort = cohort_of(num=4)
    header = cohort.header()
    for step in ("shares", "agree", "open", ""):
        refused(cohort, f"has no step '{step}'", lambda step=step: cohort.ask("s00", step, header))
    refused(cohort, "needs the sum's header", lambda: cohort.ask("s00", "seal"))
    for setup in (None, "1", 1.5):
        refused(cohort, "without a number", lambda setup=setup: cohort.ask("s00", "keys", setup=setup))


# signed lists


def agreed(driver: Driver, silos: Collection[str], survivors: Sequence[str]) -> Fields:
    return {
        silo: driver.cohort.ask(silo, "agree", driver.header, survivors=list(survivors))["signature"]
        for silo in silos
    }


def test_active_mode_opens_with_enough_signatures_under_one_list() -> None:
    cohort = cohort_of(mode="active")  # of eight silos six are enough
    driver = Driver(cohort)
    signatures = agreed(driver, cohort.silos[:6], cohort.silos)
    refused(cohort, "has signed another list", lambda: agreed(driver, ["s00"], cohort.silos[:7]))
    refused(
        cohort, "has not signed this list", lambda: driver.unmask("s07", cohort.silos, signatures=signatures)
    )
    for few in (
        {},
        None,
        {silo: signatures[silo] for silo in cohort.silos[:5]},
        {silo: signatures["s00"] for silo in cohort.silos},
        {**signatures, "s05": signatures["s04"]},
    ):
        refused(
            cohort,
            "members signed this list of survivors; 6 must",
            lambda few=few: driver.unmask("s00", cohort.silos, signatures=few),
        )
    signatures["s07"] = "of one that wants to spoil it"
    driver.unmask("s00", cohort.silos, signatures=signatures)


def test_signatures_of_another_sum_do_not_count() -> None:
    cohort = cohort_of(mode="active")
    earlier = agreed(Driver(cohort), cohort.silos, cohort.silos)
    driver = Driver(cohort, cohort.header(2))
    agreed(driver, ["s00"], cohort.silos)
    refused(
        cohort,
        "0 members signed",
        lambda: driver.unmask("s00", cohort.silos, signatures=earlier),
    )


# another list for each silo


class FewerThanIsSafe(SecureSum, frozen=True):
    """Half of the members and the colluders, in passive mode: not enough against different lists."""

    def enough(self, num_members: int) -> int:
        return SecureSum(mode="active").enough(num_members)


def test_different_lists_show_two_silos_where_too_few_are_enough() -> None:
    """The reason why passive mode asks for more: with a threshold of half the members and the colluders, a driver that
    leaves out different silos in each list opens the sum of two, though no list has fewer than four."""
    cohort = Cohort(FewerThanIsSafe(), ring_vectors(6, 30, "uint32", 6))
    cohort.set_up()
    victims, enough = ["s00", "s01"], cohort.combine.enough(6)  # type: ignore[attr-defined]
    found, tag = opened(cohort, lists_against(victims, cohort.silos, ["s05"], 4), enough, ["s05"])
    roots = cohort.halves["s05"].exchanges.finished(1).roots
    total = shown(cohort, found, tag, enough, victims)
    known = [mask_of(pair_secret(roots[victim], tag), tag, victim <= "s05") for victim in victims]
    add_masks(total, [mask.undone for mask in known])
    assert np.array_equal(total, cohort.vectors["s00"] + cohort.vectors["s01"])


@pytest.mark.parametrize("num", [4, 5, 6, 7, 8, 9, 11])
def test_different_lists_never_show_fewer_honest_silos_than_one_list(num: int) -> None:
    """All sets of victims up to what one honest list shows: some mask between them and the rest stays unknown."""
    terms = SecureSum()
    enough, colluding = terms.enough(num), (num - 1) // 3
    for size in range(1, enough - colluding):
        cohort = cohort_of(num)
        colluders = cohort.silos[num - colluding :]
        honest = cohort.silos[: num - colluding]
        victims = honest[:size]
        lists = lists_against(victims, cohort.silos, colluders, max(3, enough))
        found, _ = opened(cohort, lists, enough, colluders)
        unknown = [
            (one, other)
            for one, other in combinations(honest, 2)
            if (one in victims) != (other in victims)
            and (one, other) not in found
            and (other, one) not in found
        ]
        closed = [victim for victim in victims if (victim, victim) not in found]
        assert unknown or closed


def test_that_this_would_be_noticed() -> None:
    """With more colluders than the job says, the same lists show a single silo."""
    cohort = cohort_of(8, colluders=0)
    enough = cohort.combine.enough(8)  # type: ignore[attr-defined]
    colluders, honest = cohort.silos[3:], cohort.silos[:3]
    found, _ = opened(cohort, lists_against(["s00"], cohort.silos, colluders, enough), enough, colluders)
    assert ("s00", "s00") in found
    assert all(("s00", other) in found for other in honest[1:])
