"""Encrypted sums: the plain ring sums, bit for bit; and what a driver that is not honest gets, which is nothing."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.privacy import encrypted_sum
from orchestrator.privacy.bfv import SEALED_BYTES, SLOTS, NoCiphertext
from orchestrator.privacy.encrypted_sum import EncryptedSum
from orchestrator.privacy.encrypted_terms import CHUNK_BYTES, SUM_CHUNK_BYTES
from orchestrator.privacy.fixed_point import FIXED
from orchestrator.privacy.key_exchange import exchange_keys
from orchestrator.privacy.ring_sum import UnfitPacket
from orchestrator.privacy.sealing import Member, SumFailed, SumHeader, SumRefused, as_bytes, as_text
from tests.support.cohorts import Cohort, ring_vectors

NAMES = [f"s{i:02}" for i in range(5)]


def cohort_of(num: int = 5, size: int = 60, ring: str = "uint32", **combine: Any) -> Cohort:
    made = Cohort(EncryptedSum(ring=ring, value_bits=12, **combine), ring_vectors(num, size, ring, num))
    made.set_up()
    return made


# what comes out


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_equal_to_the_plain_sum(data: st.DataObject) -> None:
    num = data.draw(st.integers(3, 7), "silos")
    ring = data.draw(st.sampled_from(["uint32", "uint16"]), "ring")
    cohort = cohort_of(num, data.draw(st.integers(FIXED, 50), "size"), ring)
    left = max(3, num // 2 + 1)
    for attempt in (1, 2):
        lost = data.draw(st.permutations(cohort.silos), "who")[
            : data.draw(st.integers(0, num - left), "lost")
        ]
        cut = data.draw(st.integers(0, len(lost)), "at seal")
        there = [silo for silo in cohort.silos if silo not in lost]
        mute = data.draw(st.integers(0, len(there) - num // 2 - 1), "mute")
        cohort.lost = {
            "seal": lost[:cut],
            "gather": lost[cut:],
            "agree": there[:mute],
            "decrypt": there[mute : len(there) - 1],
        }
        for memory in cohort.memories.values():
            memory.opened.clear()  # of other updates, as it were
        opened = cohort.open(cohort.header(attempt))
        assert sorted(opened.silos) == there and set(opened.lost) == set(lost)
        assert opened.total.dtype == ring and np.array_equal(opened.total, cohort.plain(there))


@pytest.mark.parametrize("levels", [1, 255])
def test_many_chunks_are_spread_over_the_silos(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the stretches are more than the silos, and one is lost with a stretch in hand."""
    monkeypatch.setattr(encrypted_sum, "CHUNKS_AT_A_TIME", 1)
    weights = {"weights": "examples", "max_examples": 9, "weight_levels": levels} if levels > 1 else {}
    cohort = cohort_of(4, 5 * SLOTS + 7, **weights)
    asked: list[tuple[str, int]] = []
    ask = cohort.ask

    def spy(silo: str, step: str, header: SumHeader | None = None, **fields: Any) -> Any:
        if step == "decrypt":
            asked.append((silo, fields["first"]))
            if silo == "s02" and len(asked) > 5:
                raise SumRefused("gone")
        return ask(silo, step, header, **fields)

    cohort.ask = spy  # type: ignore[method-assign]
    opened = cohort.open(cohort.header())
    assert np.array_equal(opened.total, cohort.plain(cohort.silos))
    chunks = 6 if levels > 1 else 3
    assert {first for _, first in asked} == set(range(chunks)) and len({silo for silo, _ in asked}) >= 3


def test_several_updates_of_a_silo() -> None:
    """Two at one, one at the others, all at the bound."""
    cohort = cohort_of(3)
    bound = 2**11 - 1
    cohort.vectors = {
        silo: np.full(60, -bound if silo != "s01" else 2 * bound, "int32").view("uint32")
        for silo in NAMES[:3]
    }
    members = tuple(
        Member(silo, versions, ("m",) * len(versions), (1.0,) * len(versions))
        for silo, versions in (("s00", (4,)), ("s01", (3, 4)), ("s02", (4,)))
    )
    opened = cohort.open(cohort.header(members=members, value_bits=12))
    assert not opened.total.any()


def test_a_vector_beyond_the_bound_is_not_sealed() -> None:
    cohort = cohort_of(3)
    cohort.vectors["s01"][3] = 4096
    with pytest.raises(ValueError, match="not within"):
        cohort.open(cohort.header(value_bits=12))


def test_as_many_bits_as_share_a_slot() -> None:
    """By default; a job that says how many gets them, in twice the bytes if need be."""
    for silos, bits in ((3, 20), (8, 19), (50, 16), (64, 16)):
        combine = EncryptedSum()
        point = combine.fixed_point(silos)
        assert point.value_bits == bits and combine.packet_bytes(10**6, point) / 10**6 < 4.1
    wide = EncryptedSum(value_bits=24)
    assert wide.packet_bytes(10**6, wide.fixed_point(8)) / 10**6 < 8.2
    few = EncryptedSum(weights="examples", max_examples=9)
    assert (
        few.fixed_point(8).value_bits == 21
    )  # with 12 or more two would not fit: as many as the ring has room for


# a driver that is not honest


class Sum:
    """One sum as such a driver has it in hand: sealed packets, and all that silos would say."""

    def __init__(self, cohort: Cohort, attempt: int = 1, **changes: Any) -> None:
        self.cohort, self.header = cohort, cohort.header(attempt, **changes)
        for silo in self.header.silos:
            cohort.ask(silo, "seal", self.header)

    def packets(self, silos: Any = None) -> list[Any]:
        return [self.cohort.packets[self.header.tag, silo, "seal"] for silo in silos or self.header.silos]

    def total(self, silos: Any = None) -> Any:
        return self.cohort.combine.add(self.packets(silos))

    def agree(self, silos: Any = None, survivors: Any = None) -> dict[str, Any]:
        survivors = sorted(survivors or self.header.silos)
        return {
            silo: self.cohort.ask(silo, "agree", self.header, survivors=survivors)["consent"]
            for silo in silos or survivors
        }

    def decrypt(self, silo: str, total: Any, consents: Any, first: int = 0) -> Any:
        answer = self.cohort.ask(
            silo, "decrypt", self.header, consents=consents, first=first, chunks=as_text(total.tobytes())
        )
        return np.frombuffer(as_bytes(answer["sum"]), self.header.ring)


@pytest.fixture
def cohort() -> Cohort:
    return cohort_of()


def test_the_honest_way_is_open(cohort: Cohort) -> None:
    """Else the refusals below would say nothing."""
    mine = Sum(cohort)
    found = mine.decrypt("s02", mine.total(), mine.agree())
    assert np.array_equal(found, cohort.plain(cohort.silos))


def lies(mine: Sum) -> Iterator[Any]:
    alone = mine.packets(["s01"])[0]
    other = Sum(mine.cohort, 2)
    honest = mine.total()
    padding = np.zeros(SUM_CHUNK_BYTES - CHUNK_BYTES, np.uint8)
    yield np.concatenate([alone[:SEALED_BYTES], padding, alone[SEALED_BYTES:]])  # as it was sealed
    yield mine.total(["s01"])  # one silo's, as a sum
    yield mine.total(["s01"] * 5)  # five times the same
    yield mine.total(["s00", "s01", "s02", "s03"])  # one is missing
    yield mine.total([*mine.header.silos, "s01"])  # one is in it twice
    yield other.total()  # of another sum
    mixed = other.total()
    mixed[:-16] = honest[:-16]
    yield mixed  # with another sum's marks
    for place in (300, 70_000, 131_000, -1, -9):  # tampered with, in both halves and in the marks
        bad = honest.copy()
        bad[place] ^= 1
        yield bad
    yield np.zeros(SUM_CHUNK_BYTES, np.uint8)


def test_nothing_but_the_sum_is_decrypted(cohort: Cohort) -> None:
    number = len(list(lies(Sum(cohort))))
    for which in range(number):
        mine = Sum(cohort_of())
        consents, bad = mine.agree(), list(lies(mine))[which]
        with pytest.raises(SumRefused, match="nothing of this sum is decrypted any more"):
            mine.decrypt("s02", bad, consents)
        with pytest.raises(SumRefused, match="given up"):
            mine.decrypt("s02", mine.total(), consents)


def test_a_truncated_sum_is_refused(cohort: Cohort) -> None:
    mine = Sum(cohort)
    consents, total = mine.agree(), mine.total()
    for bad, first in ((total[:-1], 0), (total[:0], 0), (total, 1), (total, -1), (np.tile(total, 2), 0)):
        with pytest.raises(SumRefused, match="no stretch"):
            mine.decrypt("s02", bad, consents, first)


def test_a_chunk_does_not_stand_for_another_one() -> None:
    cohort = cohort_of(3, 3 * SLOTS)
    mine = Sum(cohort)
    consents, total = mine.agree(), mine.total()
    swapped = np.concatenate([total[SUM_CHUNK_BYTES:], total[:SUM_CHUNK_BYTES]])
    with pytest.raises(SumRefused, match="not the sum"):
        mine.decrypt("s00", swapped, consents)


def test_two_lists_of_survivors_are_never_both_opened(cohort: Cohort) -> None:
    """Each silo agrees to one, and a minority's agreement opens nothing."""
    mine = Sum(cohort)
    every, four = cohort.silos, cohort.silos[:4]
    first = mine.agree(["s00", "s01"], every)
    with pytest.raises(SumRefused, match="agreed to another list"):
        mine.agree(["s00"], four)
    second = mine.agree(["s02", "s03"], four)
    for silo, consents, total in (("s00", first, mine.total()), ("s02", second, mine.total(four))):
        with pytest.raises(SumRefused, match="2 members agreed to this list of silos; 3 must"):
            mine.decrypt(silo, total, consents)
        with pytest.raises(SumRefused, match="2 members agreed"):
            mine.decrypt(silo, total, first | second)
    with pytest.raises(SumRefused, match="agree on who they are"):
        mine.decrypt("s04", mine.total(), first)
    mine.agree(["s04"], every)
    assert mine.decrypt("s04", mine.total(), mine.agree(["s00", "s01", "s04"], every)).any()


def test_agreement_cannot_be_made_up(cohort: Cohort) -> None:
    mine, other = Sum(cohort), Sum(cohort, 2)
    consents = mine.agree(["s00"])
    forged = {**dict.fromkeys(cohort.silos, as_text(bytes(32))), **consents}
    copied = dict.fromkeys(cohort.silos, consents["s00"])
    for bad in ({}, forged, copied, [1], None):
        with pytest.raises(SumRefused, match="agree"):
            mine.decrypt("s00", mine.total(), bad)
    for junk in ("!", None, 7, as_text(b"short")):
        good = mine.agree(["s00", "s01", "s02"])
        assert mine.decrypt("s00", mine.total(), {**good, "s03": junk}).any(), "one silo alone spoils nothing"
    with pytest.raises(SumRefused, match="opened before"):
        for memory in cohort.memories.values():
            memory.opened.append((other.header.tag, frozenset(), frozenset()))
        other.agree()


@pytest.mark.parametrize(
    ("survivors", "why"),
    [
        (["s01", "s02", "s03"], "leaves out this silo"),
        (["s00", "s01"], "none of fewer than 3"),
        (["s00"], "none of fewer than 3"),
        (["s00", "s01", "s02", "s09"], "s09: not in this sum"),
        (["s00", "s00", "s00"], "none of fewer than 3"),
        ("s00", "a list of silos"),
        ([["s00"]], "a list of silos"),
    ],
)
def test_lists_that_a_silo_does_not_agree_to(cohort: Cohort, survivors: Any, why: str) -> None:
    mine = Sum(cohort)
    with pytest.raises(SumRefused, match=why):
        cohort.ask("s00", "agree", mine.header, survivors=survivors)


def test_a_policys_larger_minimum_counts() -> None:
    cohort = cohort_of()
    cohort.least = 5
    for silo in cohort.silos:
        cohort.restart(silo)
    cohort.set_up(2)
    mine = Sum(cohort, setup=2)
    with pytest.raises(SumRefused, match="none of fewer than 5"):
        mine.agree(survivors=cohort.silos[:4])
    with pytest.raises(SumRefused, match="none of fewer than 5"):
        Sum(cohort, 2, silos=cohort.silos[:4], setup=2)


def test_sums_that_differ_by_one_silo_are_not_both_opened(cohort: Cohort) -> None:
    Sum(cohort).agree()
    with pytest.raises(SumRefused, match="differ by 1"):
        Sum(cohort, 2).agree(survivors=cohort.silos[:4])
    with pytest.raises(SumRefused, match="differ by 1"):
        Sum(cohort, 3, silos=cohort.silos[:4]).agree()


def test_a_sum_is_sealed_once_and_only_as_agreed(cohort: Cohort) -> None:
    mine = Sum(cohort)
    with pytest.raises(SumRefused, match="sealed before"):
        cohort.ask("s00", "seal", mine.header)
    for changes, why in (
        ({"silos": ["s01", "s02", "s03"]}, "not in the sum"),
        ({"silos": ["s00", "s01"]}, "none of fewer than 3"),
        ({"setup": 9}, "no keys were exchanged"),
    ):
        with pytest.raises(SumRefused, match=why):
            cohort.ask("s00", "seal", cohort.header(7, **changes))
    stranger = (*mine.header.members, Member("s99", (4,), ("model",), (1.0,)))
    with pytest.raises(SumRefused, match="no keys were exchanged with s99"):
        cohort.ask("s00", "seal", cohort.header(8, members=stranger))
    with pytest.raises(SumRefused, match="never sealed"):
        cohort.ask("s00", "agree", cohort.header(9), survivors=cohort.silos)


def test_a_process_that_starts_anew_opens_nothing_old(cohort: Cohort) -> None:
    mine = Sum(cohort)
    consents = mine.agree()
    cohort.restart("s02")
    with pytest.raises(SumRefused, match="never sealed"):
        mine.decrypt("s02", mine.total(), consents)
    with pytest.raises(SumRefused, match="no keys"):
        cohort.ask("s02", "seal", cohort.header(2))
    cohort.set_up(2)
    for memory in cohort.memories.values():
        memory.opened.clear()
    assert np.array_equal(cohort.open(cohort.header(2, setup=2)).total, cohort.plain(cohort.silos))


# the key


def test_a_driver_that_starts_anew_counts_its_set_ups_from_one(cohort: Cohort) -> None:
    """The silos still have the keys of its predecessor's."""
    mine = Sum(cohort)
    consents = mine.agree()
    cohort.set_up(1)
    for silo in cohort.silos:
        with pytest.raises(SumRefused, match="sealed before"):
            cohort.ask(silo, "seal", mine.header)
    assert mine.decrypt("s00", mine.total(), consents).any(), "what was sealed is opened as it was sealed"
    for memory in cohort.memories.values():
        memory.opened.clear()
    opened = cohort.open(cohort.header(2))
    assert np.array_equal(opened.total, cohort.plain(cohort.silos))


class Wire(Cohort):
    """Keeps all that passes by the driver."""

    def ask(self, silo: str, step: str, header: SumHeader | None = None, **fields: Any) -> Any:
        answer = super().ask(silo, step, header, **fields)
        self.seen: list[Any] = [*getattr(self, "seen", []), json.loads(json.dumps(fields)), answer]
        return answer


def bytes_in(fields: Any) -> Iterator[bytes]:
    """All texts of a message, as they are and as base64."""
    if isinstance(fields, dict):
        for value in fields.values():
            yield from bytes_in(value)
    elif isinstance(fields, list):
        for value in fields:
            yield from bytes_in(value)
    elif isinstance(fields, str):
        yield fields.encode()
        if len(fields) % 4 == 0 and fields.isascii() and not set(fields) & set("-_ "):
            yield base64.b64decode(fields)


def test_the_driver_never_has_the_key() -> None:
    wire = Wire(EncryptedSum(value_bits=12), ring_vectors(4, 60, "uint32", 1))
    wire.set_up()
    assert np.array_equal(wire.open(wire.header()).total, wire.plain(wire.silos))
    keys = [half._keys[1] for half in wire.halves.values()]
    assert len({each.key.dumped()[-60_000:] for each in keys}) == 1 == len({each.secret for each in keys})
    private = [keys[0].secret, *(keys[0].key.dumped()[at : at + 32] for at in range(200, 131_000, 1_000))]
    messages = [data for fields in wire.seen for data in bytes_in(fields)]
    messages += [packet.tobytes() for packet in wire.packets.values()]
    assert sum(map(len, messages)) > 5 * 131_000
    for secret in private:
        assert not any(secret in data for data in messages)
    context = wire.combine.parameters()
    assert not any("secret" in name.lower() or "decrypt" in name.lower() for name in vars(context))


def test_a_set_up_has_one_key(cohort: Cohort) -> None:
    made = cohort.ask("s00", "make_key", setup=1)
    assert made == cohort.ask("s00", "make_key", setup=1)
    other = cohort_of()
    foreign = other.ask("s00", "make_key", setup=1)
    for silo, step, fields in (
        ("s01", "make_key", {}),
        ("s00", "take_key", {}),
        ("s01", "take_key", {"maker": "s00", "key": foreign["key"], "box": foreign["boxes"]["s01"]}),
    ):
        with pytest.raises(SumRefused, match="has a key of set-up 1"):
            cohort.ask(silo, step, setup=1, **fields)
    with pytest.raises(SumRefused, match="begin with 'keys'"):
        cohort.ask("s00", "make_key", setup=2)


def test_a_key_comes_from_its_maker_or_not_at_all() -> None:
    cohort = Cohort(EncryptedSum(), ring_vectors(3, 60, "uint32", 1))
    cohort.follow(exchange_keys(cohort.silos, 1))
    made = cohort.ask("s00", "make_key", setup=1)
    other = cohort_of().ask("s00", "make_key", setup=1)
    bent = as_text(as_bytes(made["boxes"]["s01"])[:-1] + b"?")
    bent_key = as_text(as_bytes(made["key"])[:-1] + b"?")
    for maker, key, box in (
        ("s00", made["key"], bent),
        ("s00", made["key"], made["boxes"]["s02"]),
        ("s02", made["key"], made["boxes"]["s01"]),
        ("s00", bent_key, made["boxes"]["s01"]),
        ("s00", other["key"], made["boxes"]["s01"]),
        ("s00", other["key"], other["boxes"]["s01"]),
    ):
        with pytest.raises(SumRefused, match="altered on its way"):
            cohort.ask("s01", "take_key", setup=1, maker=maker, key=key, box=box)
    with pytest.raises(SumRefused, match="no keys were exchanged with s09"):
        cohort.ask("s01", "take_key", setup=1, maker="s09", key="", box="")
    cohort.ask("s01", "take_key", setup=1, maker="s00", key=made["key"], box=made["boxes"]["s01"])


def test_a_set_up_goes_on_without_those_who_are_lost() -> None:
    cohort = Cohort(EncryptedSum(value_bits=12), ring_vectors(4, 60, "uint32", 1))
    for number, (step, gone) in enumerate(
        [("keys", "s00"), ("peers", "s00"), ("keys", "s02"), ("take_key", "s02")], 1
    ):
        cohort.lost = {step: [gone]}
        cohort.set_up(number)
        cohort.lost = {}
        left = [silo for silo in cohort.silos if silo != gone]
        opened = cohort.open(cohort.header(number, left, setup=number, version=4 + number, epoch=number))
        assert np.array_equal(opened.total, cohort.plain(left))
        for memory in cohort.memories.values():
            memory.opened.clear()
    cohort.lost = {"make_key": ["s00"]}
    with pytest.raises(SumFailed, match="s00: gone"):
        cohort.set_up(9)


# packets


def test_a_packet_that_is_none_is_named(cohort: Cohort) -> None:
    mine = Sum(cohort)
    packets = mine.packets()
    packets[3] = np.zeros_like(packets[3])
    with pytest.raises(UnfitPacket, match="no ciphertext") as unfit:
        cohort.combine.add(packets)
    assert unfit.value.index == 3
    assert isinstance(unfit.value.__cause__, NoCiphertext)


def test_zeros_and_data_look_alike() -> None:
    """What is sealed has nothing in common with what it was made of, nor with itself sealed again."""
    cohort = cohort_of(3)
    cohort.vectors = {silo: np.zeros(60, np.uint32) for silo in cohort.silos}
    one, two = Sum(cohort, 1).packets()[0], Sum(cohort, 2).packets()[0]
    assert (one != two)[200:65_000].mean() > 0.9


def test_sums_that_were_left_behind_are_given_up(cohort: Cohort) -> None:
    sums = [Sum(cohort, attempt) for attempt in range(1, 6)]
    with pytest.raises(SumRefused, match="given up"):
        sums[0].agree(["s00"])
    sums[1].agree(["s00"])


def test_keys_of_set_ups_that_were_left_behind_are_dropped(cohort: Cohort) -> None:
    for number in range(2, 6):
        cohort.set_up(number)
    assert all(sorted(half._keys) == [2, 3, 4, 5] for half in cohort.halves.values())
    for step, fields in (("make_key", {}), ("take_key", {"setup": "2"}), ("dump_key", {"setup": 2})):
        with pytest.raises(SumRefused, match="needs a header, or a set-up's number"):
            cohort.ask("s00", step, **fields)


def test_nothing_is_sealed_before_there_is_a_key(cohort: Cohort) -> None:
    cohort.follow(exchange_keys(cohort.silos, 7))
    with pytest.raises(SumRefused, match="has no key of set-up 7"):
        cohort.ask("s00", "seal", cohort.header(setup=7))
