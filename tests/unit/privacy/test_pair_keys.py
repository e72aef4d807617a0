"""Pair keys: both silos derive the same, nobody else's key is taken for a member's, boxes open where they belong."""

import secrets

import pytest

from orchestrator.privacy.pair_keys import BadKeys, OwnKey, boxed, derived, unboxed

TAG = bytes(range(32))


def keys(*owners: tuple[str, OwnKey]) -> dict[str, bytes]:
    return {name: own.public for name, own in owners}


def test_two_silos_have_one_root_and_a_third_has_another() -> None:
    ann, bea, carl = OwnKey(), OwnKey(), OwnKey()
    all_keys = keys(("ann", ann), ("bea", bea), ("carl", carl))
    roots = {name: own.roots(name, all_keys) for name, own in (("ann", ann), ("bea", bea), ("carl", carl))}
    assert roots["ann"]["bea"] == roots["bea"]["ann"]
    assert len({roots["ann"]["bea"], roots["ann"]["carl"], roots["bea"]["carl"]}) == 3
    assert set(roots["ann"]) == {"bea", "carl"}


def test_a_new_key_gives_new_roots() -> None:
    ann, bea, again = OwnKey(), OwnKey(), OwnKey()
    first = bea.roots("bea", keys(("ann", ann), ("bea", bea)))
    second = bea.roots("bea", keys(("ann", again), ("bea", bea)))
    assert first != second


# the points of small order: RFC 7748, section 6.1, and its security considerations
SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_key_that_makes_the_shared_secret_zero_is_refused(key: bytes) -> None:
    own = OwnKey()
    with pytest.raises(BadKeys, match="the key of bea is no usable X25519 key"):
        own.roots("ann", {"ann": own.public, "bea": key})


def test_other_bad_keys_are_refused() -> None:
    own, bea = OwnKey(), OwnKey()
    with pytest.raises(BadKeys, match="no usable X25519 key"):
        own.roots("ann", {"ann": own.public, "bea": bea.public[:31]})
    with pytest.raises(BadKeys, match="carl is said to have the key of bea") as found:
        own.roots("ann", {"ann": own.public, "bea": bea.public, "carl": bea.public})
    assert found.value.of == "carl"
    with pytest.raises(BadKeys, match="aaron is said to have the key of ann") as found:
        own.roots("ann", {"ann": own.public, "aaron": own.public})
    assert found.value.of == "aaron"
    with pytest.raises(BadKeys, match="not the one that it made"):
        own.roots("ann", {"ann": bea.public, "carl": OwnKey().public})
    with pytest.raises(BadKeys, match="not the one that it made"):
        own.roots("ann", {"bea": bea.public})


def test_derived_keys_differ_by_purpose_and_sum() -> None:
    root = secrets.token_bytes(32)
    found = {derived(root, purpose, tag) for purpose in ("pair", "mask") for tag in (TAG, bytes(32))}
    assert len(found) == 4 and {len(key) for key in found} == {32}


def test_a_box_opens_for_its_receiver_and_sum_only() -> None:
    root = secrets.token_bytes(32)
    box = boxed(root, TAG, "ann", "bea", b"shares")
    assert unboxed(root, TAG, "ann", "bea", box) == b"shares"
    assert b"shares" not in box
    wrong = [
        (root, TAG, "bea", "ann", box),
        (root, TAG, "ann", "carl", box),
        (root, bytes(32), "ann", "bea", box),
        (secrets.token_bytes(32), TAG, "ann", "bea", box),
        *((root, TAG, "ann", "bea", _flipped(box, i)) for i in range(len(box))),
        (root, TAG, "ann", "bea", box[:-1]),
        (root, TAG, "ann", "bea", b""),
    ]
    for case in wrong:
        with pytest.raises(BadKeys, match="was altered on its way, or belongs to another sum"):
            unboxed(*case)


def _flipped(box: bytes, i: int) -> bytes:
    return box[:i] + bytes([box[i] ^ 1]) + box[i + 1 :]
