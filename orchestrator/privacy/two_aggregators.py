"""The section ``combine: {name: two_aggregator_sum, second: SILO}``: the driver adds masked vectors, one of the silos
adds the masks, and neither of them can do without the other.

    keys, peers   signed keys are exchanged, with the second aggregator too (`orchestrator.privacy.key_exchange`)
    seal          a silo adds the stream of a new seed to its coordinates, and puts the seed into a box for the second
    reveal        the second adds up the streams of those whose vectors arrived

After the upload no silo but the second is needed any more. It answers once for a sum, whatever the driver says of who
is in it, and remembers every update that it helped to open.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from orchestrator.core.messages import SiloId
from orchestrator.privacy.fixed_point import RingVector
from orchestrator.privacy.key_exchange import Exchange, KeyExchanges, exchange_keys
from orchestrator.privacy.masking import Mask, add_masks
from orchestrator.privacy.pair_keys import KEY_BYTES, BadKeys, boxed, derived, unboxed
from orchestrator.privacy.ring_sum import RingSum
from orchestrator.privacy.sealing import (
    FEWEST,
    Answers,
    Fields,
    Flow,
    Gather,
    Identity,
    Memory,
    Opened,
    Questions,
    Rules,
    SiloHalf,
    SumFailed,
    SumHeader,
    SumRefused,
    as_bytes,
    as_text,
    names_in,
)

Vectors = Callable[[], RingVector]

KEPT = 64
"""Own seeds that the second keeps, of sums that it has not opened."""


class TwoAggregatorSum(RingSum, frozen=True):
    """Sums with two aggregators that do not work together: the driver and a silo (additive secret sharing between two
    servers, as in Prio, Corrigan-Gibbs & Boneh 2017, without its proofs).

    The driver learns the sum and nothing else; the second aggregator learns nothing at all. Together they can read
    every silo's update. Silos may be lost at any time, the second aggregator may not.
    """

    name: Literal["two_aggregator_sum"] = "two_aggregator_sum"
    second: SiloId
    """A silo of the job. Each silo may say in its policy whom it accepts (``policy.allow_second``)."""

    @property
    def least(self) -> int:
        return FEWEST

    @property
    def helpers(self) -> frozenset[SiloId]:
        return frozenset({self.second})

    def set_up(self, silos: Sequence[SiloId], number: int) -> Flow:
        yield from exchange_keys(silos, number)

    def open(self, header: SumHeader) -> Flow:
        common = {"header": header.fields()}
        sealed: Answers = yield Questions("seal", {silo: common for silo in header.silos})
        gathered: Answers = yield Gather(list(sealed.fields))
        lost = {**sealed.lost, **gathered.lost}
        survivors = [silo for silo in header.silos if silo not in lost]
        boxes = {silo: sealed.fields[silo].get("box") for silo in survivors}
        revealed: Answers = yield Questions(
            "reveal", {self.second: {**common, "survivors": survivors, "boxes": boxes}}
        )
        if revealed.lost:
            raise SumFailed(revealed.lost, bound=survivors)
        masks: Answers = yield Gather([self.second], "reveal")
        if masks.lost:
            raise SumFailed(masks.lost, bound=survivors)
        np.subtract(gathered.total, masks.total, out=gathered.total)
        return Opened(gathered.total, survivors, lost)

    def half(self, identity: Identity, memory: Memory, rules: Rules, run_id: str) -> SiloHalf:
        return TwoAggregatorSilo(self, identity, memory, rules, run_id)


class TwoAggregatorSilo:
    """A silo's half, the second aggregator's included."""

    def __init__(
        self, terms: TwoAggregatorSum, identity: Identity, memory: Memory, rules: Rules, run_id: str
    ) -> None:
        self.terms, self.identity, self.memory, self.rules = terms, identity, memory, rules
        self.name = identity.name
        self.exchanges = KeyExchanges(identity, run_id)
        self._begun: set[bytes] = set()
        """Tags of all sums ever sealed here."""
        self._own_seeds: dict[bytes, bytes] = {}
        """At the second: of its own vectors, by tag."""

    def answer(
        self, step: str, fields: Fields, header: SumHeader | None, vector: Vectors
    ) -> tuple[Fields, RingVector | None]:
        if step in ("keys", "peers"):
            return self.exchanges.answer(step, fields), None
        if header is None:
            raise SumRefused(f"the step '{step}' needs the sum's header")
        if step == "seal":
            return self._seal(header, vector)
        if step == "reveal" and self.name == self.terms.second:
            return {}, self._reveal(header, fields)
        raise SumRefused(f"this silo has no step '{step}' in a sum with two aggregators")

    def _seal(self, header: SumHeader, vector: Vectors) -> tuple[Fields, RingVector]:
        """Once for a sum: what is sealed twice is not what the second aggregator opens."""
        tag = header.tag
        if tag in self._begun:
            raise SumRefused("this sum was sealed before: another attempt needs another number")
        exchange, second = self._checked(header), self.terms.second
        if self.name not in header.silos:
            raise SumRefused("this silo is not in the sum")
        if self.name != second and self.rules.seconds is not None and second not in self.rules.seconds:
            raise SumRefused(f"{second} is not among those whom this silo accepts (policy.allow_second)")
        self._begun.add(tag)
        seed, sealed = secrets.token_bytes(KEY_BYTES), vector()
        add_masks(sealed, [_mask(seed, tag)])
        if self.name == second:
            self._own_seeds[tag] = seed
            while len(self._own_seeds) > KEPT:
                del self._own_seeds[next(iter(self._own_seeds))]
            return {}, sealed
        content = seed + " ".join(self.memory.marks(tag)).encode()
        return {"box": as_text(boxed(exchange.roots[second], tag, self.name, second, content))}, sealed

    def _checked(self, header: SumHeader) -> Exchange:
        exchange = self.exchanges.finished(header.setup)
        strangers = sorted({*header.silos, self.terms.second} - {self.name, *exchange.roots})
        if strangers:
            raise SumRefused(f"no keys were exchanged with {', '.join(strangers)}")
        self._check_number(len(header.silos))
        return exchange

    def _check_number(self, number: int) -> None:
        least = max(FEWEST, self.rules.least)
        if number < least:
            raise SumRefused(f"a sum of {number} silos; this one opens none of fewer than {least}")

    # the second aggregator

    def _reveal(self, header: SumHeader, fields: Fields) -> RingVector:
        """The sum of the streams; once for a sum, and for an update with the same silos only."""
        exchange = self._checked(header)
        survivors = names_in(fields.get("survivors"))
        strangers = sorted(set(survivors) - set(header.silos))
        if strangers:
            raise SumRefused(f"{', '.join(strangers)}: not in this sum")
        self._check_number(len(survivors))
        found = [self._seed(silo, header.tag, exchange, fields.get("boxes")) for silo in survivors]
        marks = [
            f"{silo} {mark}" for silo, (_, marks) in zip(survivors, found, strict=True) for mark in marks
        ]
        self.memory.permit(
            header.tag,
            header.updates(survivors),
            header.brought(survivors),
            header.form(survivors, self.terms.weighing),
            marks,
            header.scale(survivors, self.terms.weighing),
            header.figures(survivors),
        )
        self._own_seeds.pop(header.tag, None)
        total: RingVector = np.zeros(header.length, header.ring)
        add_masks(total, [_mask(seed, header.tag) for seed, _ in found])
        return total

    def _seed(
        self, silo: SiloId, tag: bytes, exchange: Exchange, boxes: object
    ) -> tuple[bytes, Sequence[str]]:
        """And the marks of the silo's updates."""
        if silo == self.name:
            seed = self._own_seeds.get(tag)
            if seed is None:
                raise SumRefused(
                    "this sum was opened, or its own vector never sealed, at the second aggregator"
                )
            return seed, self.memory.marks(tag)
        try:
            box = as_bytes(boxes.get(silo) if isinstance(boxes, Mapping) else None)
            content = unboxed(exchange.roots[silo], tag, silo, self.name, box)
        except (BadKeys, SumRefused) as error:
            raise SumRefused(str(error), silo) from None
        if len(content) < KEY_BYTES:
            raise SumRefused(f"{silo} sent no seed", silo)
        return content[:KEY_BYTES], content[KEY_BYTES:].decode(errors="replace").split()


def _mask(seed: bytes, tag: bytes) -> Mask:
    return Mask(derived(seed, "stream", tag), plus=True)
