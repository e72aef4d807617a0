"""Secrets shared among many, of whom a threshold can put them together (Shamir 1979), over GF(2^255 - 19).

A secret is a number below 2^248 (31 bytes). The share at point ``x`` is the value there of a random polynomial of
degree threshold - 1 whose value at 0 is the secret: fewer shares than the threshold say nothing about it. Plain
Python integers: big-number arithmetic does not take constant time, which a local attacker could measure.
"""

import secrets
from collections.abc import Sequence

PRIME = 2**255 - 19

SECRET_BYTES = 31
"""Longest secret that is certainly below the prime."""

SHARE_BYTES = 32


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[int]:
    """A share for each of the points, which are distinct, above 0, and at least as many as the threshold."""
    if len(secret) > SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes does not fit: at most {SECRET_BYTES}")
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or min(points) < 1:
        raise ValueError(f"{threshold} of the points {list(points)}: distinct points above 0 are needed")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return [_value(coefficients, point) for point in points]


def _value(coefficients: Sequence[int], point: int) -> int:
    """Of the polynomial, the highest power's coefficient first (Horner). Points are small, so the number grows by a
    few bits a step and is reduced once."""
    value = 0
    for coefficient in coefficients:
        value = value * point + coefficient
    return value % PRIME


def at_zero(points: Sequence[int]) -> list[int]:
    """Lagrange coefficients for the value at 0, once for all secrets whose shares are at these points."""
    found = []
    for one in points:
        above, below = 1, 1
        for other in points:
            if other != one:
                above = above * other % PRIME
                below = below * (other - one) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def combine(coefficients: Sequence[int], shares: Sequence[int]) -> bytes | None:
    """The secret, of `SECRET_BYTES`, from as many shares as the threshold, in the order of the points; None where
    the shares do not belong together and their sum is no secret."""
    total = sum(each * share for each, share in zip(coefficients, shares, strict=True)) % PRIME
    return total.to_bytes(SECRET_BYTES, "big") if total < 1 << 8 * SECRET_BYTES else None
