"""What both sides of a secure sum must see alike: its section of the job, its secrets, the form of its shares.

In a sum with members 1..n, silo u adds to its ring vector

    the stream of b_u                       a number of its own, new for each sum
    + the stream of k_uw  for each w > u    a number that only u and w can derive, new for each sum
    - the stream of k_uw  for each w < u

and shares b_u and all its k_uw among the members, any ``threshold`` of whom can put one together. In the sum over all
members the streams of the k cancel; those of the b are taken off once the members have told their shares of them.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field

from orchestrator.core.messages import SiloId
from orchestrator.privacy.masking import Mask
from orchestrator.privacy.pair_keys import derived
from orchestrator.privacy.ring_sum import RingSum
from orchestrator.privacy.sealing import FEWEST
from orchestrator.privacy.shamir import SECRET_BYTES, SHARE_BYTES

CHECK_BYTES = 16


class SecureTerms(RingSum, frozen=True):
    """Section ``combine`` of a secure sum, without its two halves."""

    name: Literal["secure_sum"] = "secure_sum"
    order: Literal["single", "textbook"] = "single"
    """``single``: shares travel with the sealed vector, two messages a sum. ``textbook``: before it, as published
    (Bonawitz et al. 2017); vectors are then masked among those only whose shares arrived."""
    mode: Literal["passive", "active"] = "passive"
    """``active``: silos sign whom they take to be in the sum, one message more, and open it only with enough signatures
    under the same list; a third of them may then be lost, and in ``passive`` mode about a square root
    (`SecureTerms.enough`)."""
    colluders: int | None = Field(default=None, ge=0)
    """Silos that may work together with the driver; default: fewer than a third, floor((n - 1) / 3) of n."""
    threshold: int | None = Field(default=None, ge=2)
    """Members without whom nothing is opened, where more are wanted than ``colluders`` make necessary."""

    @property
    def least(self) -> int:
        return FEWEST

    def enough(self, num_members: int) -> int:
        """How many of the members open a secret, and how many must at least be in a sum. Each silo works this out for
        itself, never the driver.

        More than half of the members and of the colluders together: no two groups as large consist of different honest
        silos. Where lists are not signed, a driver may show every silo another one; they leave out few enough that no
        such lists open a smaller sum than one list does (`docs/secure_sum.md`)."""
        colluders = (num_members - 1) // 3 if self.colluders is None else self.colluders
        enough = (num_members + colluders) // 2 + 1
        while (
            self.mode == "passive"
            and enough < num_members
            and (num_members - enough) ** 2 >= enough - colluders
        ):
            enough += 1
        return max(enough, self.threshold or 0)


def pair_secret(root: bytes, tag: bytes) -> bytes:
    """k_uw of this sum, from the root that u and w share."""
    return derived(root, "pair", tag, SECRET_BYTES)


def mask_of(secret: bytes, tag: bytes, plus: bool) -> Mask:
    return Mask(derived(secret, "mask", tag), plus)


def check_of(secret: bytes, tag: bytes) -> bytes:
    """Says nothing about the secret to anybody who does not have it: it is 248 random bits."""
    return derived(secret, "check", tag, CHECK_BYTES)


def packed(shares: Sequence[int]) -> bytes:
    return b"".join(share.to_bytes(SHARE_BYTES, "big") for share in shares)


def unpacked(content: bytes) -> list[int]:
    return [
        int.from_bytes(content[at : at + SHARE_BYTES], "big") for at in range(0, len(content), SHARE_BYTES)
    ]


def agreed(tag: bytes, among: Collection[SiloId], survivors: Collection[SiloId]) -> bytes:
    """What a silo signs that masked its vector among the first, and takes the second to be in the sum."""
    listed = json.dumps([sorted(among), sorted(survivors)]).encode()
    return b"siloray survivors\0" + tag + hashlib.sha256(listed).digest()
