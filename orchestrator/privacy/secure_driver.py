"""The driver's half of a secure sum: from the fixed cohort to the sum of those whose vectors arrived."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core.messages import SiloId
from orchestrator.privacy.masking import Mask, add_masks
from orchestrator.privacy.sealing import (
    FEWEST,
    Answers,
    Fields,
    Flow,
    Gather,
    Opened,
    Questions,
    SumFailed,
    SumHeader,
    SumRefused,
    as_bytes,
)
from orchestrator.privacy.secure_terms import CHECK_BYTES, SecureTerms, check_of, mask_of, unpacked
from orchestrator.privacy.shamir import at_zero, combine


def open_sum(terms: SecureTerms, header: SumHeader) -> Flow:
    """Raises `SumFailed` where too few silos are left, or what they tell does not open the sum."""
    lost: dict[SiloId, str] = {}

    def rest(answers: Answers, known: Sequence[SiloId]) -> list[SiloId]:
        """Who of these is still there; raises `SumFailed` where they are too few."""
        lost.update(answers.lost)
        left = [silo for silo in known if silo not in lost]
        if len(left) < max(FEWEST, terms.enough(len(header.silos))):
            raise SumFailed(lost)
        return left

    shared: Answers
    among = list(header.silos)
    if terms.order == "textbook":
        shared = yield _questions("shares", header, {silo: {} for silo in among})
        lost.update(_boxless(shared, among))
        among = rest(shared, among)
        boxes = _delivered(shared, among)
        sealed: Answers = yield _questions("seal", header, {silo: {"boxes": boxes[silo]} for silo in among})
    else:
        shared = sealed = yield _questions("seal", header, {silo: {} for silo in among})
        lost.update(_boxless(shared, among))
    gathered: Answers = yield Gather(rest(sealed, among))
    survivors = rest(gathered, among)

    delivered = _delivered(shared, survivors)
    fields: dict[SiloId, Fields] = {
        silo: {"survivors": survivors, "boxes": boxes} for silo, boxes in delivered.items()
    }
    if terms.mode == "active":
        agreed: Answers = yield _questions(
            "agree", header, {silo: {"survivors": survivors} for silo in survivors}
        )
        signatures = {silo: answer.get("signature") for silo, answer in agreed.fields.items()}
        fields = {silo: {**fields[silo], "signatures": signatures} for silo in signatures}
    told: Answers = yield _questions("unmask", header, fields)
    gone = [silo for silo in among if silo not in survivors]
    found = Recovered(header, terms.enough(len(header.silos)), survivors, gone, shared, told).masks()
    add_masks(gathered.total, [mask.undone for mask in found])
    return Opened(
        gathered.total, survivors, {silo: why for silo, why in lost.items() if silo not in survivors}
    )


def _questions(step: str, header: SumHeader, fields: Mapping[SiloId, Fields]) -> Questions:
    common = {"header": header.fields()}
    return Questions(step, {silo: common | each for silo, each in fields.items()})


def _boxless(shared: Answers, members: Sequence[SiloId]) -> dict[SiloId, str]:
    """Silos that sent no box for each of the others: as good as lost."""
    boxes = {silo: fields.get("boxes") for silo, fields in shared.fields.items()}
    return {
        silo: "sent no box for each of the others"
        for silo, sent in boxes.items()
        if not isinstance(sent, Mapping) or not set(members) - {silo} <= sent.keys()
    }


def _delivered(shared: Answers, silos: Sequence[SiloId]) -> dict[SiloId, Fields]:
    """For each of these silos, the boxes that the others of them have for it."""
    sent: dict[SiloId, Any] = {sender: shared.fields[sender]["boxes"] for sender in silos}
    return {silo: {sender: boxes[silo] for sender, boxes in sent.items() if sender != silo} for silo in silos}


class Recovered:
    """The secrets of a sum that its members opened: of each survivor b, and k with each of those who are gone."""

    def __init__(
        self,
        header: SumHeader,
        enough: int,
        survivors: Sequence[SiloId],
        gone: Sequence[SiloId],
        shared: Answers,
        told: Answers,
    ) -> None:
        self.tag, self.survivors, self.gone = header.tag, survivors, gone
        self.place = {silo: place for place, silo in enumerate(header.silos)}
        self.shares = {silo: found for silo in told.fields if (found := self._shares(told.fields[silo]))}
        self.lost = {**told.lost}
        self.lost |= {silo: "told no shares" for silo in told.fields if silo not in self.shares}
        if len(self.shares) < enough:
            raise SumFailed(self.lost, survivors if told.fields else ())
        self.checks = {silo: _bytes_of(shared.fields[silo].get("checks")) for silo in survivors}
        self.secrets: dict[tuple[SiloId, SiloId], bytes] = {}
        for witnesses in _groups(sorted(self.shares), enough):
            if self._recover(witnesses):
                return
        wrong = {sender: "its keys do not follow from their shares" for sender, _ in self._missing()}
        raise SumFailed(wrong, survivors)

    def masks(self) -> list[Mask]:
        """What the survivors' vectors hold together besides their values."""
        return [
            mask_of(secret, self.tag, sender <= other) for (sender, other), secret in self.secrets.items()
        ]

    def _wanted(self) -> list[tuple[SiloId, SiloId]]:
        return [(sender, other) for sender in self.survivors for other in (sender, *self.gone)]

    def _missing(self) -> list[tuple[SiloId, SiloId]]:
        return [each for each in self._wanted() if each not in self.secrets]

    def _shares(self, fields: Fields) -> dict[SiloId, list[int]] | None:
        """What one silo told; None where it is not what was asked for."""
        given = fields.get("shares")
        try:
            told = {silo: unpacked(as_bytes(given[silo])) for silo in self.survivors}  # type: ignore[index]
        except (SumRefused, KeyError, TypeError):
            return None
        return told if all(len(each) == 1 + len(self.gone) for each in told.values()) else None

    def _recover(self, witnesses: Sequence[SiloId]) -> bool:
        """Put together what is missing from the shares of these; a secret counts if it is the one announced."""
        coefficients = at_zero([self.place[silo] + 1 for silo in witnesses])
        for sender, other in self._missing():
            column = 1 + self.gone.index(other) if other != sender else 0
            secret = combine(coefficients, [self.shares[silo][sender][column] for silo in witnesses])
            at = CHECK_BYTES * self.place[other]
            if secret and check_of(secret, self.tag) == self.checks[sender][at : at + CHECK_BYTES]:
                self.secrets[sender, other] = secret
        return not self._missing()


def _bytes_of(text: object) -> bytes:
    """None of them where a silo sent something else: its keys will not be found then."""
    try:
        return as_bytes(text)
    except SumRefused:
        return b""


def _groups(silos: Sequence[SiloId], size: int) -> list[Sequence[SiloId]]:
    """Neighbours in a ring: each silo is missing in some group, unless all are needed. One that tells wrong shares
    cannot spoil them all."""
    if len(silos) == size:
        return [silos]
    return [[silos[(first + i) % len(silos)] for i in range(size)] for first in range(len(silos))]
