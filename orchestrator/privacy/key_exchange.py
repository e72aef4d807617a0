"""The exchange of keys that sums begin with: done once for a cohort, it serves for every sum of these silos.

    keys     the driver asks; each silo makes a key for this exchange and signs it with its identity
    peers    the driver hands everybody's signed keys round; each silo checks them and derives its pair roots

The driver carries the keys and cannot put in any of its own: a key counts only with the signature of the silo whose
it is said to be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import SiloId
from orchestrator.keys import signed_by
from orchestrator.privacy.pair_keys import KEY_BYTES, BadKeys, OwnKey
from orchestrator.privacy.sealing import (
    Answers,
    Fields,
    Flow,
    Identity,
    Questions,
    SumRefused,
    as_bytes,
    as_text,
)

KEPT = 4
"""Exchanges that a silo remembers: a sum may be under way while its successor's keys are exchanged."""
SIGNATURE_BYTES = 64


def exchange_keys(silos: Sequence[SiloId], number: int) -> Flow:
    """The driver's half, for an exchange with this number; gives those who took part."""
    signed: Answers = yield Questions("keys", {silo: {"setup": number} for silo in silos})
    checked: Answers = yield Questions(
        "peers", {silo: {"setup": number, "keys": signed.fields} for silo in signed.fields}
    )
    return tuple(checked.fields)


@dataclass(slots=True)
class Exchange:
    """One exchange as a silo has it."""

    own: OwnKey
    roots: dict[SiloId, bytes] = field(default_factory=dict)
    """Shared with each of the others; empty until their keys came."""


class KeyExchanges:
    """The silo's half, over a run. Nothing of it is on disk: a silo that starts anew exchanges keys again, and can
    open nothing that was sealed before."""

    def __init__(self, identity: Identity, run_id: str) -> None:
        self.identity, self.run_id = identity, run_id
        self._exchanges: dict[int, Exchange] = {}

    def answer(self, step: str, fields: Fields) -> Fields:
        """To a step of the exchange. Raises `SumRefused`."""
        number = fields.get("setup")
        if not isinstance(number, int):
            raise SumRefused("an exchange of keys without a number")
        if step == "keys":
            return self._keys(number)
        self._peers(number, fields.get("keys"))
        return {}

    def finished(self, number: int) -> Exchange:
        """An exchange that the silo completed; raises `SumRefused` where there is none."""
        found = self._exchanges.get(number)
        if found is None or not found.roots:
            raise SumRefused(f"no keys were exchanged with this silo for set-up {number}: begin with 'keys'")
        return found

    def _keys(self, number: int) -> Fields:
        """A new key each time that the driver asks: an exchange that begins again begins from nothing."""
        self._exchanges.pop(number, None)
        self._exchanges[number] = made = Exchange(OwnKey())
        while len(self._exchanges) > KEPT:
            del self._exchanges[next(iter(self._exchanges))]
        signature = self.identity.sign(self._signed(number, self.identity.name, made.own.public))
        return {
            "key": as_text(made.own.public),
            "identity": as_text(self.identity.public),
            "signature": as_text(signature),
        }

    def _peers(self, number: int, given: object) -> None:
        exchange = self._exchanges.get(number)
        if exchange is None or not isinstance(given, Mapping):
            raise SumRefused(f"keys of others for set-up {number}, for which this silo made none")
        keys = dict[SiloId, bytes]()
        for silo, fields in given.items():
            try:
                keys[silo] = self._checked(number, silo, fields)
            except SumRefused as error:
                raise SumRefused(str(error), silo) from None
        try:
            roots = exchange.own.roots(self.identity.name, keys)
        except BadKeys as error:
            raise SumRefused(str(error), error.of) from None
        if exchange.roots and exchange.roots != roots:
            raise SumRefused(f"other keys for set-up {number} than before: a new set-up needs a new number")
        exchange.roots = roots

    def _checked(self, number: int, silo: SiloId, fields: object) -> bytes:
        """A silo's key, once it is found to be signed by it, and it to be the one that is known here."""
        if not isinstance(fields, Mapping):
            raise SumRefused(f"the keys of {silo} are no fields")
        key = as_bytes(fields.get("key"), KEY_BYTES)
        identity = as_bytes(fields.get("identity"), KEY_BYTES)
        signature = as_bytes(fields.get("signature"), SIGNATURE_BYTES)
        if not signed_by(identity, self._signed(number, silo, key), signature):
            raise SumRefused(f"the key said to be that of {silo} is not signed by {silo} for this run")
        try:
            self.identity.meet(silo, identity)
        except BadInput as error:
            raise SumRefused(error.public) from None
        return key

    def _signed(self, number: int, silo: SiloId, key: bytes) -> bytes:
        return json.dumps(["siloray keys", self.run_id, number, silo, as_text(key)]).encode()
