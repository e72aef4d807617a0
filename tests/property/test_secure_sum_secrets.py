"""What a driver can never put together, whatever lists it shows to silos; that no key is short; that nothing wraps."""

import secrets
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.privacy import masking, secure_shares
from orchestrator.privacy.masking import add_masks
from orchestrator.privacy.secure_sum import SecureSum
from orchestrator.privacy.secure_terms import mask_of
from orchestrator.privacy.shamir import SECRET_BYTES
from tests.support.cohorts import Cohort, ring_vectors
from tests.support.lying_driver import opened


def shown_together(honest: list[str], found: Any) -> list[set[str]]:
    """Groups of honest silos that hang together by masks which stay unknown, where no member's own mask does: the sum
    of a group is what the driver learns."""
    groups = [{silo} for silo in honest]
    for one in honest:
        for other in honest:
            if one < other and (one, other) not in found and (other, one) not in found:
                first = next(group for group in groups if one in group)
                second = next(group for group in groups if other in group)
                if first is not second:
                    groups.remove(second)
                    first |= second
    return [group for group in groups if all((silo, silo) in found for silo in group)]


@given(st.data(), st.integers(4, 9))
@settings(max_examples=30, deadline=None)
def test_no_lists_open_less_than_one_honest_list_does(data: st.DataObject, num: int) -> None:
    """Of a silo in no case both b and all k, and of no fewer honest silos the sum than `enough` without colluders."""
    cohort = Cohort(SecureSum(), ring_vectors(num, 10, "uint32", num))
    cohort.set_up()
    enough = cohort.combine.enough(num)  # type: ignore[attr-defined]
    colluders = data.draw(st.permutations(cohort.silos))[: (num - 1) // 3]
    honest = [silo for silo in cohort.silos if silo not in colluders]
    victims = data.draw(st.sets(st.sampled_from(honest), max_size=max(3, enough) - 1), "victims")
    lists = {}
    for silo in data.draw(st.permutations(honest), "asked"):
        rest = data.draw(st.permutations([each for each in cohort.silos if each not in victims | {silo}]))
        lists[silo] = sorted([*victims | {silo}, *rest][: max(3, enough, len(victims | {silo}))])
    found, _ = opened(cohort, lists, enough, colluders)
    for group in shown_together(honest, found):
        assert len(group) >= enough - len(colluders) >= 2


def test_groups_are_found_where_lists_open_them() -> None:
    """The test above looks at the right thing: all silos under one list are one group."""
    cohort = Cohort(SecureSum(), ring_vectors(5, 10, "uint32", 5))
    cohort.set_up()
    found, _ = opened(cohort, dict.fromkeys(cohort.silos, cohort.silos[:]), 4, [])
    assert shown_together(cohort.silos, found) == [set(cohort.silos)]
    assert not shown_together(cohort.silos, {})
    alone = {("s00", other): {} for other in cohort.silos}
    assert shown_together(cohort.silos, alone) == [{"s00"}]


def test_no_key_of_a_sum_is_short_or_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    stream = masking._stream
    monkeypatch.setattr(masking, "_stream", lambda key: [keys.append(key), stream(key)][1])
    shared: list[bytes] = []
    split = secure_shares.split
    monkeypatch.setattr(
        secure_shares, "split", lambda secret, *rest: [shared.append(secret), split(secret, *rest)][1]
    )
    cohort = Cohort(SecureSum(), ring_vectors(6, 10, "uint32", 6), lost={"gather": ["s00"]})
    cohort.set_up()
    for attempt in (1, 2):
        cohort.memories = {silo: type(each)() for silo, each in cohort.memories.items()}
        for silo in cohort.silos:
            cohort.halves[silo].memory = cohort.memories[silo]
        cohort.open(cohort.header(attempt))
    assert {len(key) for key in keys} == {32} and {len(secret) for secret in shared} == {SECRET_BYTES}
    assert 8 * SECRET_BYTES >= 128
    pairs, silos, sums = 15, 6, 2
    assert len(set(shared)) == sums * (pairs + silos)
    assert len(set(keys)) == sums * (pairs + silos)


SEARCHED = 1 << 10


def test_a_search_over_seeds_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all others collude with the driver, b alone hides a vector. A search finds it if it is short (as a search
    over 2^28 seeds finds the masks of a generator that folds its key to 32 bits), and not if it is not."""
    assert _searched() is None

    def short(size: int) -> bytes:
        return secrets.randbelow(SEARCHED).to_bytes(size, "big")

    monkeypatch.setattr(secure_shares.secrets, "token_bytes", short)
    found = _searched()
    assert found is not None and not found.any()


def _searched() -> Any:
    """The zeros of s00, where some short b gives zeros; else None."""
    vectors = {silo: np.zeros(50, np.uint32) for silo in ("s00", "s01", "s02", "s03")}
    cohort = Cohort(SecureSum(), vectors)
    cohort.set_up()
    header = cohort.header()
    cohort.ask("s00", "seal", header)
    begun = cohort.halves["s00"]._sums[header.tag]
    seen = cohort.packets[header.tag, "s00", "seal"].copy()
    known = [
        mask_of(each, header.tag, silo >= "s00") for silo, each in begun.secrets.each.items() if silo != "s00"
    ]
    add_masks(seen, [mask.undone for mask in known])
    for number in range(SEARCHED):
        guess = seen.copy()
        add_masks(guess, [mask_of(number.to_bytes(SECRET_BYTES, "big"), header.tag, True).undone])
        if not guess[:25].any():
            return guess
    return None


@given(
    num=st.integers(3, 12),
    ring=st.sampled_from(["uint32", "uint16"]),
    levels=st.sampled_from([1, 3, 15, 255]),
    sign=st.sampled_from([-1, 1]),
)
@settings(max_examples=20, deadline=None)
def test_the_largest_values_and_weights_do_not_wrap_around(
    num: int, ring: Any, levels: int, sign: int
) -> None:
    combine = SecureSum(ring=ring, weights="examples", max_examples=1, weight_levels=levels)
    point = combine.fixed_point(num)
    if not point.room:
        return  # the job is refused: tests/unit/test_legality.py, and the test below
    x = np.full(20, sign * point.range, np.float32)
    encoded = point.encode(x, levels, {}, ())
    cohort = Cohort(combine, {f"s{i:02}": encoded for i in range(num)})
    cohort.set_up()
    total = cohort.open(cohort.header()).total
    signed = total[:20].view(np.int16 if ring == "uint16" else np.int32)
    assert set(signed.tolist()) == {sign * point.levels * levels * num}
    out = np.empty(20, np.float32)
    assert point.decode(total, 20, out).weight == levels * num
    np.testing.assert_allclose(out, x, rtol=1e-6)


@pytest.mark.parametrize("ring", ["uint32", "uint16"])
@pytest.mark.parametrize("num", [3, 4, 5, 8, 9, 16, 17])
def test_one_bit_more_is_refused(num: int, ring: Any) -> None:
    """b bits of a value, w of a weight and the logarithm of their number: together no more than the ring's."""
    for levels in (1, 7):
        combine = SecureSum(ring=ring, weights="examples", max_examples=1, weight_levels=levels)
        fits = [
            bits
            for bits in range(2, 25)
            if combine.model_copy(update={"value_bits": bits}).fixed_point(num).room
        ]
        size = 32 if ring == "uint32" else 16
        largest = max(
            (b for b in range(2, 25) if ((1 << (b - 1)) - 1) * levels * num < 1 << (size - 1)), default=0
        )
        assert max(fits, default=0) == largest
