"""Shared secrets: any threshold of the shares gives the secret, fewer say nothing."""

import itertools
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.privacy.shamir import PRIME, SECRET_BYTES, at_zero, combine, split


@given(st.data(), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_any_threshold_of_the_shares_gives_the_secret(data: st.DataObject, num: int) -> None:
    threshold = data.draw(st.integers(1, num))
    points = data.draw(st.lists(st.integers(1, 60), min_size=num, max_size=num, unique=True))
    secret = data.draw(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert combine(at_zero(chosen), [shares[point] for point in chosen]) == secret


def test_one_share_too_few_fits_every_secret() -> None:
    """Two of three shares and any secret lie on one polynomial: what is missing is the share that would decide."""
    shares = split(secrets.token_bytes(SECRET_BYTES), 3, [1, 2, 3])
    for guessed in (bytes(SECRET_BYTES), b"\x01" * SECRET_BYTES):
        last = at_zero([1, 2, 3])
        rest = sum(each * share for each, share in zip(last[:2], shares[:2], strict=True))
        third = (int.from_bytes(guessed, "big") - rest) * pow(last[2], -1, PRIME) % PRIME
        assert combine(last, [*shares[:2], third]) == guessed


def test_hand_arithmetic() -> None:
    """3 at 0, 5 at 1: the line 3 + 2x, worked out by hand at 2 and 7."""
    for points, shares in (((1, 2), (5, 7)), ((2, 7), (7, 17)), ((7, 1), (17, 5))):
        assert combine(at_zero(points), shares) == (3).to_bytes(SECRET_BYTES, "big")


def test_shares_of_one_secret_are_new_each_time() -> None:
    secret = bytes(SECRET_BYTES)
    seen = [tuple(split(secret, 2, [1, 2, 3])) for _ in range(4)]
    assert all(set(a).isdisjoint(b) for a, b in itertools.combinations(seen, 2))


def test_what_does_not_belong_together_is_noticed_or_another_secret() -> None:
    secret = secrets.token_bytes(SECRET_BYTES)
    mixed = [split(secret, 3, [1, 2, 3])[0], *split(secret, 3, [1, 2, 3])[1:]]
    assert combine(at_zero([1, 2, 3]), mixed) != secret


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (bytes(32), 2, [1, 2]),  # may be above the prime
        (bytes(31), 3, [1, 2]),
        (bytes(31), 2, [1, 1]),
        (bytes(31), 1, [0, 1]),  # the share at 0 is the secret
        (bytes(31), 0, [1]),
    ],
)
def test_what_would_give_the_secret_away_is_refused(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError, match=r"bytes does not fit|distinct points above 0"):
        split(secret, threshold, points)
