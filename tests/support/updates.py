"""Updates made by hand, for tests of what the driver does with them."""

import base64
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core.messages import Update
from orchestrator.core.receipts import Receipt
from orchestrator.keys import Signer
from orchestrator.receipts import Known, numbers_digest, signed

KEY = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
"""Of every silo here."""

DEFAULTS: dict[str, Any] = {
    "run_id": "run",
    "epoch": 1,
    "attempt": 1,
    "model_digest": "lineage",
    "job_digest": "job",
    "layout": (("delta", 3),),
    "weight": 10.0,
    "num_examples": 10,
    "num_steps": 1,
    "scalars": {},
    "metrics": {},
    "train_metrics": {},
    "seconds": {},
    "packet_bytes": 12,
    "received": "0" * 64,
}


def update(silo: str, version: int, **given: Any) -> Update:
    return Update(**{**DEFAULTS, "silo": silo, "version": version, **given})


def receipt_of(made: Update, **given: Any) -> Receipt:
    """As the silo signs it."""
    names = ("silo", "run_id", "job_digest", "epoch", "version", "attempt", "received", "num_examples")
    fields = {name: getattr(made, name) for name in names}
    fields["numbers"] = numbers_digest(made)
    about = {**fields, "update": "2" * 64, "sequence": 1, "head": "3" * 64, "head_length": 5, **given}
    return signed(Receipt(kind="update", **about), KEY.sign)


def receipted(made: Update, **given: Any) -> Update:
    return replace(made, receipt=receipt_of(made, **given))


def known_of(made: Update) -> Known:
    """What the driver knows before the update comes."""
    return Known(receipt_of(made), base64.b64encode(KEY.public).decode(), 0)
