"""A silo's half of a secure sum.

    shares     (textbook order) shares of its secrets, in a box for each other member
    seal       its vector under masks, to be fetched; with it, in single order, the boxes
    agree      (active mode) its signature under the list of those whose vectors arrived
    unmask     of each of these, its share of b; and of k with each of the others

It tells no more than one list's shares for a sum. Both b_u and all k_uw of the same u would show u's vector; no list
opens both, and two lists cannot each be answered by ``enough`` silos, since each honest one answers once
(`docs/secure_sum.md`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.messages import SiloId
from orchestrator.privacy.fixed_point import RingVector
from orchestrator.privacy.key_exchange import SIGNATURE_BYTES, Exchange, KeyExchanges
from orchestrator.privacy.masking import add_masks
from orchestrator.privacy.sealing import (
    FEWEST,
    Fields,
    Identity,
    Memory,
    Rules,
    SumHeader,
    SumRefused,
    as_bytes,
    as_text,
    names_in,
)
from orchestrator.privacy.secure_shares import Secrets
from orchestrator.privacy.secure_terms import SecureTerms, agreed, packed

Vectors = Callable[[], RingVector]

KEPT = 4
"""Sums that a silo is ready to open; one that began before these is never opened."""


@dataclass(slots=True)
class _Sum:
    """One sum, as long as it may still be opened."""

    header: SumHeader
    enough: int
    secrets: Secrets
    among: tuple[SiloId, ...] = ()
    """Members with whom the vector was masked; none until it is sealed."""
    signed: frozenset[SiloId] | None = None
    """The list that it agreed to."""

    @property
    def tag(self) -> bytes:
        return self.secrets.tag


class SecureSilo:
    """The state of a silo's sums over a run. It takes one step at a time."""

    def __init__(
        self, terms: SecureTerms, identity: Identity, memory: Memory, rules: Rules, run_id: str
    ) -> None:
        self.terms, self.identity, self.memory, self.rules = terms, identity, memory, rules
        self.name = identity.name
        self.exchanges = KeyExchanges(identity, run_id)
        self._sums: dict[bytes, _Sum] = {}
        self._begun: set[bytes] = set()
        """Tags of all sums ever begun here."""

    def answer(
        self, step: str, fields: Fields, header: SumHeader | None, vector: Vectors
    ) -> tuple[Fields, RingVector | None]:
        if step in ("keys", "peers"):
            return self.exchanges.answer(step, fields), None
        if header is None:
            raise SumRefused(f"the step '{step}' needs the sum's header")
        match step, self.terms.order:
            case "shares", "textbook":
                return self._begin(header).secrets.sent(), None
            case "seal", "textbook":
                return self._seal_among(self._found(header), fields, vector)
            case "seal", "single":
                begun = self._begin(header)
                return begun.secrets.sent(), self._sealed(begun, header.silos, vector)
        if step == "agree" and self.terms.mode == "active":
            return self._agree(self._found(header), fields), None
        if step == "unmask":
            return self._unmask(self._found(header), fields), None
        raise SumRefused(f"a secure sum of this job has no step '{step}'")

    # sealing

    def _begin(self, header: SumHeader) -> _Sum:
        tag = header.tag
        if tag in self._begun:
            raise SumRefused("this sum was begun before: another attempt needs another number")
        enough, exchange = self.terms.enough(len(header.silos)), self._checked(header)
        self._begun.add(tag)
        self._sums[tag] = begun = _Sum(header, enough, Secrets(self.name, header, exchange, enough))
        while len(self._sums) > KEPT:
            del self._sums[next(iter(self._sums))]
        return begun

    def _checked(self, header: SumHeader) -> Exchange:
        """The exchange of keys that the sum uses, where it is a sum to take part in."""
        silos = header.silos
        if self.name not in silos or list(silos) != sorted(set(silos)):
            raise SumRefused(
                "its members are not this silo and others, each once, in the order of their names"
            )
        self._check_number(len(silos), len(silos), "it has {} members")
        exchange = self.exchanges.finished(header.setup)
        strangers = sorted(set(silos) - {self.name, *exchange.roots})
        if strangers:
            raise SumRefused(f"no keys were exchanged with {', '.join(strangers)}")
        return exchange

    def _check_number(self, number: int, num_members: int, what: str) -> None:
        least = max(FEWEST, self.rules.least, self.terms.enough(num_members))
        if number < least:
            raise SumRefused(f"{what.format(number)}, and this silo opens no sum of fewer than {least}")

    def _sealed(self, begun: _Sum, among: Sequence[SiloId], vector: Vectors) -> RingVector:
        begun.among = tuple(among)
        sealed = vector()
        add_masks(sealed, begun.secrets.masks(among))
        return sealed

    def _seal_among(self, begun: _Sum, fields: Fields, vector: Vectors) -> tuple[Fields, RingVector]:
        """Textbook order: masked among those whose boxes have come, once each of them opens."""
        if begun.among:
            raise SumRefused("this sum was sealed before: another attempt needs another number")
        boxes = self._boxes(fields)
        among = sorted({self.name, *boxes})
        if not set(among) <= set(begun.header.silos):
            raise SumRefused("it holds boxes from silos that are no members")
        self._check_number(len(among), len(begun.header.silos), "shares came from {} silos")
        for sender in boxes:
            begun.secrets.received(sender, boxes)
        return {}, self._sealed(begun, among, vector)

    # opening

    def _found(self, header: SumHeader) -> _Sum:
        tag = header.tag
        found = self._sums.get(tag)
        if found is None:
            told = "opened, or given up" if tag in self._begun else "never sealed"
            raise SumRefused(f"the sum with this header was {told} at this silo")
        return found

    def _agree(self, begun: _Sum, fields: Fields) -> Fields:
        survivors = self._survivors(begun, fields)
        if begun.signed not in (None, survivors):
            raise SumRefused("this silo has signed another list for this sum")
        begun.signed = survivors
        return {"signature": as_text(self.identity.sign(agreed(begun.tag, begun.among, survivors)))}

    def _unmask(self, begun: _Sum, fields: Fields) -> Fields:
        survivors = self._survivors(begun, fields)
        if self.terms.mode == "active":
            self._check_agreed(begun, survivors, fields)
        boxes, tag = self._boxes(fields), begun.tag
        gone = [silo for silo in begun.among if silo not in survivors]
        told = {}
        for sender in sorted(survivors):
            shares = begun.secrets.received(sender, boxes)
            told[sender] = as_text(packed([shares[of] for of in (sender, *gone)]))
        header, own, weighing = begun.header, [self.name], self.terms.weighing
        self.memory.permit(
            tag,
            header.updates(own),
            header.brought(survivors),
            header.form(survivors, weighing),
            self.memory.marks(tag),
            header.scale(survivors, weighing),
            header.figures(own),
        )
        del self._sums[tag]
        return {"shares": told}

    def _survivors(self, begun: _Sum, fields: Fields) -> frozenset[SiloId]:
        """Whose vectors arrived, as the driver says, where this silo may open their sum."""
        survivors = frozenset(names_in(fields.get("survivors")))
        if not begun.among:
            raise SumRefused("this silo has not sealed its own vector in this sum")
        if self.name not in survivors:
            raise SumRefused("it leaves out this silo, whose shares are asked for")
        strangers = sorted(survivors - set(begun.among))
        if strangers:
            raise SumRefused(f"{', '.join(strangers)}: not in this sum")
        self._check_number(len(survivors), len(begun.header.silos), "it would show a sum of {}")
        return survivors

    def _check_agreed(self, begun: _Sum, survivors: frozenset[SiloId], fields: Fields) -> None:
        if begun.signed != survivors:
            raise SumRefused("this silo has not signed this list of survivors")
        given = fields.get("signatures")
        signatures: Mapping[str, object] = given if isinstance(given, Mapping) else {}
        listed = agreed(begun.tag, begun.among, survivors)
        good = [
            silo for silo in survivors if silo in signatures and self._signed(silo, listed, signatures[silo])
        ]
        if len(good) < begun.enough:
            raise SumRefused(f"{len(good)} members signed this list of survivors; {begun.enough} must")

    def _signed(self, silo: SiloId, listed: bytes, signature: object) -> bool:
        """A bad signature does not count; it is no reason to refuse those of the others."""
        try:
            return self.identity.verify(silo, listed, as_bytes(signature, SIGNATURE_BYTES))
        except SumRefused:
            return False

    def _boxes(self, fields: Fields) -> Mapping[SiloId, object]:
        boxes = fields.get("boxes")
        if not isinstance(boxes, Mapping):
            raise SumRefused("the members' boxes for this silo belong here")
        return {silo: box for silo, box in boxes.items() if silo != self.name}
