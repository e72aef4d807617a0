"""A silo's half of an encrypted sum.

    keys, peers       signed keys are exchanged (`orchestrator.privacy.key_exchange`)
    make_key          one of the silos makes the key of ciphertexts and the secret of marks, and puts them into a box
                      for each of the others
    take_key          the others take them out
    seal              its coordinates, encrypted and marked, to be fetched
    agree             it says, once for a sum, whose coordinates it takes to be in it
    decrypt           a stretch of the sum of these

It decrypts nothing but the sum of a list that a majority of the members agreed to, as their marks show
(`orchestrator.privacy.sum_mac`). No two lists have a majority, and no silo sees another one's ciphertext.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from orchestrator.core.messages import SiloId
from orchestrator.privacy.bfv import SEALED_BYTES, SUM_BYTES, Bytes, NoCiphertext, SecretKey
from orchestrator.privacy.encrypted_terms import (
    SUM_CHUNK_BYTES,
    EncryptedTerms,
    chunk_of,
    consent,
    majority,
    marks_in,
)
from orchestrator.privacy.fixed_point import RingVector
from orchestrator.privacy.key_exchange import Exchange, KeyExchanges
from orchestrator.privacy.lanes import Lanes
from orchestrator.privacy.pair_keys import KEY_BYTES, BadKeys, boxed, unboxed
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
from orchestrator.privacy.sum_mac import SumMac

Vectors = Callable[[], RingVector]

KEPT = 4
"""Set-ups that a silo remembers, and sums that it is ready to open."""


@dataclass(slots=True)
class _Keys:
    """What the silos of a set-up share, and nobody else has."""

    key: SecretKey
    secret: bytes
    """Of marks and of consent."""
    answer: Fields = field(default_factory=dict)
    """At the silo that made them: what it sent to the others."""


@dataclass(slots=True)
class _Sum:
    """One sum, as long as it may still be opened."""

    header: SumHeader
    keys: _Keys
    mac: SumMac
    lanes: Lanes
    agreed: frozenset[SiloId] | None = None


class EncryptedSilo:
    """The state of a silo's sums over a run. Nothing of it is on disk, but for the memory of opened sums."""

    def __init__(
        self, terms: EncryptedTerms, identity: Identity, memory: Memory, rules: Rules, run_id: str
    ) -> None:
        self.terms, self.identity, self.memory, self.rules = terms, identity, memory, rules
        self.name, self.run_id = identity.name, run_id
        self.exchanges = KeyExchanges(identity, run_id)
        self._keys: dict[int, _Keys] = {}
        self._sums: dict[bytes, _Sum] = {}
        self._begun: set[bytes] = set()
        """Tags of all sums ever sealed here."""

    def answer(
        self, step: str, fields: Fields, header: SumHeader | None, vector: Vectors
    ) -> tuple[Fields, RingVector | Bytes | None]:
        if header is None:
            return self._set_up(step, fields), None
        match step:
            case "seal":
                return {}, self._seal(header, vector)
            case "agree":
                return self._agree(header, fields), None
            case "decrypt":
                return self._decrypt(header, fields), None
        raise SumRefused(f"an encrypted sum has no step '{step}'")

    # the key

    def _set_up(self, step: str, fields: Fields) -> Fields:
        number = fields.get("setup")
        if step in ("keys", "peers"):
            answered = self.exchanges.answer(step, fields)
            if step == "keys":  # again, where a driver starts anew and counts from 1
                self._keys.pop(fields["setup"], None)
            return answered
        if step not in ("make_key", "take_key") or not isinstance(number, int):
            raise SumRefused(f"the step '{step}' needs a header, or a set-up's number")
        exchange = self.exchanges.finished(number)
        if step == "make_key":
            return self._make(number, exchange)
        return self._take(number, exchange, fields)

    def _make(self, number: int, exchange: Exchange) -> Fields:
        """Once for a set-up. The key is long and the same for all, so that it travels under one that is short."""
        if number in self._keys and not self._keys[number].answer:
            raise SumRefused(f"this silo has a key of set-up {number}, which another one made")
        if number not in self._keys:
            key, secret = SecretKey(self.terms.parameters()), secrets.token_bytes(KEY_BYTES)
            cover = secrets.token_bytes(KEY_BYTES)
            covered = ChaCha20Poly1305(cover).encrypt(bytes(12), key.dumped(), self._about(number))
            boxes = {
                silo: as_text(boxed(root, self._about(number), self.name, silo, cover + secret))
                for silo, root in exchange.roots.items()
            }
            self._remember(number, _Keys(key, secret, {"key": as_text(covered), "boxes": boxes}))
        return self._keys[number].answer

    def _take(self, number: int, exchange: Exchange, fields: Fields) -> Fields:
        if number in self._keys:
            raise SumRefused(f"this silo has a key of set-up {number} already")
        maker, about = fields.get("maker"), self._about(number)
        if not isinstance(maker, str) or maker not in exchange.roots:
            raise SumRefused(f"no keys were exchanged with {maker}, which is said to have made one")
        try:
            box, covered = as_bytes(fields.get("box")), as_bytes(fields.get("key"))
            content = unboxed(exchange.roots[maker], about, maker, self.name, box)
            saved = ChaCha20Poly1305(content[:KEY_BYTES]).decrypt(bytes(12), covered, about)
            key = SecretKey(self.terms.parameters(), saved)
        except (BadKeys, InvalidTag, SumRefused, ValueError):
            raise SumRefused(
                f"the key from {maker} was altered on its way, or belongs to another set-up", maker
            ) from None
        self._remember(number, _Keys(key, content[KEY_BYTES:]))
        return {}

    def _remember(self, number: int, keys: _Keys) -> None:
        self._keys[number] = keys
        while len(self._keys) > KEPT:
            del self._keys[next(iter(self._keys))]

    def _about(self, number: int) -> bytes:
        return f"siloray key of sums\0{self.run_id}\0{number}".encode()

    # sealing

    def _seal(self, header: SumHeader, vector: Vectors) -> Bytes:
        """Once for a sum: marks of two vectors, under the same pads, would show what they are made with."""
        tag = header.tag
        if tag in self._begun:
            raise SumRefused("this sum was sealed before: another attempt needs another number")
        keys = self._checked(header)
        begun = _Sum(header, keys, SumMac(keys.secret, tag), self.terms.lanes(header))
        self._begun.add(tag)
        sealed = self._sealed(begun, vector())
        self._sums[tag] = begun
        while len(self._sums) > KEPT:
            del self._sums[next(iter(self._sums))]
        return sealed

    def _checked(self, header: SumHeader) -> _Keys:
        """The keys that the sum uses, where it is a sum to take part in."""
        exchange = self.exchanges.finished(header.setup)
        keys = self._keys.get(header.setup)
        if keys is None:
            raise SumRefused(f"this silo has no key of set-up {header.setup}")
        strangers = sorted(set(header.silos) - {self.name, *exchange.roots})
        if strangers:
            raise SumRefused(f"no keys were exchanged with {', '.join(strangers)}")
        if self.name not in header.silos:
            raise SumRefused("this silo is not in the sum")
        self._check_number(len(header.silos), header)
        return keys

    def _check_number(self, number: int, header: SumHeader) -> None:
        least = max(FEWEST, self.rules.least, majority(len(header.silos)))
        if number < least:
            raise SumRefused(f"a sum of {number} silos; this one opens none of fewer than {least}")

    def _sealed(self, begun: _Sum, vector: RingVector) -> Bytes:
        lanes, member = begun.lanes, begun.header.member(self.name)
        assert member is not None
        chunks = lanes.num_chunks(vector.size)
        out = np.empty((chunks, self.terms.grain), np.uint8)
        for chunk in range(chunks):
            piece = vector[chunk * lanes.per_chunk : (chunk + 1) * lanes.per_chunk]
            numbers = lanes.lifted(piece, len(member.versions))
            marks = begun.mac.marks(self.name, chunk, numbers)
            ciphertext = begun.keys.key.encrypted(lanes.packed(numbers))
            out[chunk] = chunk_of(ciphertext, SEALED_BYTES, marks)
        return out.reshape(-1)

    # opening

    def _agree(self, header: SumHeader, fields: Fields) -> Fields:
        begun, survivors = self._found(header), frozenset(names_in(fields.get("survivors")))
        if begun.agreed is None:
            self._check_survivors(survivors, header)
            tag, own, weighing = header.tag, [self.name], self.terms.weighing
            self.memory.permit(
                tag,
                header.updates(own),
                header.brought(survivors),
                header.form(survivors, weighing),
                self.memory.marks(tag),
                header.scale(survivors, weighing),
                header.figures(own),
            )
            begun.agreed = survivors
        if begun.agreed != survivors:
            raise SumRefused("this silo has agreed to another list of silos for this sum")
        return {"consent": as_text(consent(begun.keys.secret, self.name, header.tag, survivors))}

    def _check_survivors(self, survivors: frozenset[SiloId], header: SumHeader) -> None:
        if self.name not in survivors:
            raise SumRefused("it leaves out this silo, which is asked to decrypt it")
        strangers = sorted(survivors - set(header.silos))
        if strangers:
            raise SumRefused(f"{', '.join(strangers)}: not in this sum")
        self._check_number(len(survivors), header)

    def _decrypt(self, header: SumHeader, fields: Fields) -> Fields:
        begun = self._found(header)
        self._check_consents(begun, fields.get("consents"))
        first, data = fields.get("first"), as_bytes(fields.get("chunks"))
        chunks = np.frombuffer(data, np.uint8)
        num = len(chunks) // SUM_CHUNK_BYTES
        last = begun.lanes.num_chunks(header.length)
        if (
            not isinstance(first, int)
            or len(chunks) % SUM_CHUNK_BYTES
            or not 0 <= first < first + num <= last
        ):
            raise SumRefused("no stretch of the sum's chunks")
        rows = chunks.reshape(num, SUM_CHUNK_BYTES)
        try:
            opened = [self._opened(begun, first + i, row) for i, row in enumerate(rows)]
        except (NoCiphertext, SumRefused) as error:
            del self._sums[header.tag]  # no second try
            raise SumRefused(f"{error}: nothing of this sum is decrypted any more") from None
        return {"sum": as_text(np.concatenate(opened).tobytes())}

    def _check_consents(self, begun: _Sum, given: object) -> None:
        if begun.agreed is None or not isinstance(given, Mapping):
            raise SumRefused("the silos of the sum agree on who they are before it is decrypted")
        secret, tag = begun.keys.secret, begun.header.tag
        good = [
            silo
            for silo, text in given.items()
            if silo in begun.agreed and _is(text, consent(secret, silo, tag, begun.agreed))
        ]
        enough = majority(len(begun.header.silos))
        if len(good) < enough:
            raise SumRefused(f"{len(good)} members agreed to this list of silos; {enough} must")

    def _opened(self, begun: _Sum, chunk: int, row: Bytes) -> RingVector:
        """The ring's elements of one chunk. Raises `SumRefused` where it is not the sum of these silos' ones."""
        lanes, header, agreed = begun.lanes, begun.header, begun.agreed
        assert agreed is not None
        sums = lanes.unpacked(begun.keys.key.decrypted(row[:SUM_BYTES].tobytes()))
        sums = sums[: header.length - chunk * lanes.per_chunk]
        if not begun.mac.fits(agreed, chunk, sums, marks_in(row)):
            raise SumRefused("it is not the sum of what these silos sealed, each once")
        updates = sum(len(member.versions) for member in header.members if member.silo in agreed)
        ring: RingVector = lanes.lowered(sums, updates, np.dtype(header.ring))
        return ring

    def _found(self, header: SumHeader) -> _Sum:
        found = self._sums.get(header.tag)
        if found is None:
            told = "given up" if header.tag in self._begun else "never sealed"
            raise SumRefused(f"the sum with this header was {told} at this silo")
        return found


def _is(given: object, wanted: bytes) -> bool:
    """What is no bytes at all is not; it is no reason to refuse what the others gave."""
    try:
        return compare_digest(as_bytes(given), wanted)
    except SumRefused:
        return False
