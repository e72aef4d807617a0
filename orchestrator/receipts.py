"""Making and checking receipts (`orchestrator.core.receipts`)."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from orchestrator.core.events import SiloAttacked
from orchestrator.core.messages import Attacked, Update
from orchestrator.core.receipts import Receipt
from orchestrator.keys import is_signed


def signed(receipt: Receipt, sign: Callable[[bytes], bytes]) -> Receipt:
    """The receipt with its signature."""
    return replace(receipt, signature=base64.b64encode(sign(receipt.text)).decode())


def is_signed_by(receipt: Receipt, key: str) -> bool:
    """Whether the owner of this public key, in base64, signed exactly this."""
    return is_signed(key, receipt.text, receipt.signature)


def contributors_digest(silos: Iterable[str]) -> str:
    """SHA-256 of the silos' names, in order, each once."""
    return hashlib.sha256(json.dumps(sorted(set(silos))).encode()).hexdigest()


def numbers_digest(update: Update) -> str:
    """SHA-256 of an update's steps, public numbers and parts: what a strategy makes of its packet depends on them."""
    scalars = {name: float(number) for name, number in update.scalars.items()}
    text = json.dumps([update.num_steps, scalars, update.layout], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def vote_digest(said: Attacked | SiloAttacked) -> str:
    """SHA-256 of the vote, with the verdicts and scores that the silo told beside it."""
    scores = {name: float(score) for name, score in said.scores.items()}
    text = json.dumps([said.vote, dict(said.verdicts), scores], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def commitment(digest: str, salt: bytes) -> str:
    """What stands in a receipt for the digest of an update that nobody may see."""
    return hashlib.sha256(salt + bytes.fromhex(digest)).hexdigest()


@dataclass(frozen=True, slots=True)
class Known:
    """What the driver knows of the work that a receipt is to be about."""

    receipt: Receipt
    """As it must be, but for what only the silo knows."""
    key: str
    """The silo's, from when it joined."""
    after: int
    """Number of its newest statement so far."""


def flaw(receipt: Receipt | None, known: Known) -> str | None:
    """Why the receipt does not count, in a sentence; None if it does."""
    if receipt is None:
        return "came without a receipt"
    wanted = replace(
        known.receipt,
        received=receipt.received,
        update=receipt.update,
        policy=receipt.policy,
        ledger=receipt.ledger,
        ledger_length=receipt.ledger_length,
        sequence=receipt.sequence,
        signature=receipt.signature,
    )
    if receipt != wanted:
        odd = [name for name in Receipt.__slots__ if getattr(receipt, name) != getattr(wanted, name)]
        return f"its receipt is about another {' and '.join(odd)}"
    if not is_signed_by(receipt, known.key):
        return "its receipt is not signed with the key that it joined with"
    if receipt.sequence <= known.after:
        return f"its receipt has number {receipt.sequence}, after {known.after}: an old one, or its clock went back"
    return None
