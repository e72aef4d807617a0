"""The secrets of one silo in one sum: the masks that they make, the shares of them that others get, in boxes, and the
boxes that others sent."""

import secrets
from collections.abc import Collection, Mapping

from orchestrator.core.messages import SiloId
from orchestrator.privacy.key_exchange import Exchange
from orchestrator.privacy.masking import Mask
from orchestrator.privacy.pair_keys import BadKeys, boxed, unboxed
from orchestrator.privacy.sealing import Fields, SumHeader, SumRefused, as_bytes, as_text
from orchestrator.privacy.secure_terms import check_of, mask_of, packed, pair_secret, unpacked
from orchestrator.privacy.shamir import SECRET_BYTES, SHARE_BYTES, split


class Secrets:
    """b_u and the k_uw of silo u, new for each sum. They are drawn once: with two b_u under the same k_uw, the
    difference of what was sealed would show."""

    def __init__(self, silo: SiloId, header: SumHeader, exchange: Exchange, enough: int) -> None:
        """``enough``: members whose shares together give a secret."""
        self.silo, self.members, self.tag, self.exchange = silo, header.silos, header.tag, exchange
        self.each = {member: self._secret(member) for member in self.members}
        """By member: k with that one; b at the silo's own place."""
        points = range(1, len(self.members) + 1)
        shares = zip(*(split(secret, enough, points) for secret in self.each.values()), strict=True)
        self._for = {member: list(each) for member, each in zip(self.members, shares, strict=True)}

    def _secret(self, member: SiloId) -> bytes:
        if member == self.silo:
            return secrets.token_bytes(SECRET_BYTES)
        return pair_secret(self.exchange.roots[member], self.tag)

    def masks(self, among: Collection[SiloId]) -> list[Mask]:
        """What the silo adds to its vector in a sum among these, itself one of them."""
        return [mask_of(self.each[member], self.tag, self.silo <= member) for member in among]

    def sent(self) -> Fields:
        """For the driver: a box for each other member, and by what it knows that it put a secret together rightly."""
        boxes = {member: self._box(member) for member in self.members if member != self.silo}
        checks = b"".join(check_of(secret, self.tag) for secret in self.each.values())
        return {"boxes": boxes, "checks": as_text(checks)}

    def _box(self, member: SiloId) -> str:
        root = self.exchange.roots[member]
        return as_text(boxed(root, self.tag, self.silo, member, packed(self._for[member])))

    def received(self, sender: SiloId, boxes: Mapping[SiloId, object]) -> dict[SiloId, int]:
        """This silo's shares of a member's secrets, by whom that one has them with. Raises `SumRefused`."""
        shares = self._for[self.silo] if sender == self.silo else self._opened(sender, boxes.get(sender))
        return dict(zip(self.members, shares, strict=True))

    def _opened(self, sender: SiloId, box: object) -> list[int]:
        try:
            content = unboxed(self.exchange.roots[sender], self.tag, sender, self.silo, as_bytes(box))
        except (BadKeys, SumRefused) as error:
            raise SumRefused(str(error), sender) from None
        if len(content) != SHARE_BYTES * len(self.members):
            raise SumRefused(f"{sender} sent another number of shares than there are members", sender)
        return unpacked(content)
