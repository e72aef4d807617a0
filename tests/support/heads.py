"""Heads of a silo's ledger, as a driver signs them."""

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core.messages import LedgerHead


def signed(head: LedgerHead, silo: str) -> LedgerHead:
    """With a key of its own."""
    key = Ed25519PrivateKey.generate()
    pair = key.public_key().public_bytes_raw(), key.sign(head.statement(silo))
    return LedgerHead(head.length, head.hash, *(base64.b64encode(each).decode() for each in pair))
