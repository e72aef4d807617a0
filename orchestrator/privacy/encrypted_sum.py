"""The section ``combine: {name: encrypted_sum}``: the driver adds what it cannot read, and silos decrypt the sum."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.core.messages import SiloId
from orchestrator.core.vector import blocks
from orchestrator.privacy.encrypted_silo import EncryptedSilo
from orchestrator.privacy.encrypted_terms import SUM_CHUNK_BYTES, EncryptedTerms, majority
from orchestrator.privacy.fixed_point import RingVector
from orchestrator.privacy.key_exchange import exchange_keys
from orchestrator.privacy.sealing import (
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
)

CHUNKS_AT_A_TIME = 16
"""That a silo is asked to decrypt: 2.8 MB of text."""


class EncryptedSum(EncryptedTerms, frozen=True):
    """Homomorphic encryption (BFV) with one key, which all silos have and the driver has not.

    The driver learns the sum and nothing else. Silos must trust each other for that: one that works together with the
    driver, or whose key is stolen there, can read every silo's update of the run. Any silo may be lost at any time, as
    long as more than half of the members are left, and at least three.

    A key in shares, of which no silo alone decrypts anything (threshold BFV), needs OpenFHE, which has no wheel for
    this version of Python; `secure_sum` gives that protection.
    """

    def set_up(self, silos: Sequence[SiloId], number: int) -> Flow:
        took_part = yield from exchange_keys(silos, number)
        if not took_part:
            return
        maker, *others = sorted(took_part)
        made: Answers = yield Questions("make_key", {maker: {"setup": number}})
        boxes = made.fields.get(maker, {}).get("boxes")
        if not isinstance(boxes, dict):
            raise SumFailed(made.lost or {maker: "made no key"})
        box = {"setup": number, "maker": maker, "key": made.fields[maker].get("key")}
        yield Questions("take_key", {silo: {**box, "box": boxes.get(silo)} for silo in others})

    def open(self, header: SumHeader) -> Flow:
        common = {"header": header.fields()}
        sealed: Answers = yield Questions("seal", {silo: common for silo in header.silos})
        gathered: Answers = yield Gather(list(sealed.fields))
        lost = {**sealed.lost, **gathered.lost}
        survivors = [silo for silo in header.silos if silo not in lost]
        agreed: Answers = yield Questions(
            "agree", {silo: {**common, "survivors": survivors} for silo in survivors}
        )
        consents = {silo: fields.get("consent") for silo, fields in agreed.fields.items()}
        if len(consents) < majority(len(header.silos)):
            raise SumFailed({**lost, **agreed.lost}, bound=survivors)
        total = yield from self._decrypted(
            header, {**common, "consents": consents}, gathered.total, sorted(consents)
        )
        return Opened(total, survivors, lost)

    def _decrypted(self, header: SumHeader, common: Fields, total: Any, silos: list[SiloId]) -> Flow:
        """Stretch by stretch, spread over the silos; where one is lost, another one takes its stretch."""
        lanes = self.lanes(header)
        out = np.empty(header.length, header.ring)
        num = lanes.num_chunks(header.length)
        # no longer than that all silos have one
        longest = min(CHUNKS_AT_A_TIME, -(-num // len(silos)))
        waiting = list(blocks(num, longest))
        lost: dict[SiloId, str] = {}
        while waiting:
            if not silos:
                raise SumFailed(lost, bound=header.silos)
            given = dict(zip(silos, waiting, strict=False))
            answers: Answers = yield Questions(
                "decrypt",
                {silo: {**common, **_stretch(total, *stretch)} for silo, stretch in given.items()},
            )
            for silo, (first, last) in given.items():
                into = out[first * lanes.per_chunk : last * lanes.per_chunk]
                wrong = answers.lost.get(silo) or _put(answers.fields[silo], into)
                if wrong:
                    lost[silo] = wrong
                else:
                    waiting.remove((first, last))
            silos = [silo for silo in silos if silo not in lost]
        return out

    def half(self, identity: Identity, memory: Memory, rules: Rules, run_id: str) -> SiloHalf:
        return EncryptedSilo(self, identity, memory, rules, run_id)


def _stretch(total: Any, first: int, last: int) -> Fields:
    chunks = total[first * SUM_CHUNK_BYTES : last * SUM_CHUNK_BYTES]
    return {"first": first, "chunks": as_text(chunks.tobytes())}


def _put(fields: Fields, into: RingVector) -> str | None:
    """What is wrong with an answer; None where it is now in its place."""
    try:
        into[:] = np.frombuffer(as_bytes(fields.get("sum"), into.nbytes), into.dtype)
    except SumRefused as error:
        return str(error)
    return None
