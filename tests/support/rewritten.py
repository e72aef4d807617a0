"""A run's journal as a dishonest driver would leave it."""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.keys import Signer

DRIVER = Signer(Ed25519PrivateKey.from_private_bytes(b"driver".ljust(32, b"0")))
Line = dict[str, Any]


def lines(run: Path) -> list[bytes]:
    return (run / "journal.jsonl").read_bytes().splitlines()


def write(run: Path, raw: list[bytes]) -> None:
    (run / "journal.jsonl").write_bytes(b"".join(line + b"\n" for line in raw))


def rewritten(
    raw: list[bytes], change: Callable[[int, Line], Line | None], sign: bool = False
) -> list[bytes]:
    """By somebody who knows how the journal is made: numbers, links and checksums are right again."""
    made: list[bytes] = []
    for place, line in enumerate(json.loads(each) for each in raw):
        new = change(place, line)
        if new is None:
            continue
        del new["crc"]
        was_signed = new.pop("sig", None) is not None
        new["prev"] = hashlib.sha256(made[-1]).hexdigest() if made else ""
        new["event"]["seq"] = len(made)
        body = json.dumps(new, sort_keys=True, separators=(",", ":")).encode()[1:]
        if was_signed and sign:
            body = b'"sig":"%s",%s' % (base64.b64encode(DRIVER.sign(body)), body)
        made.append(b'{"crc":"%08x",%s' % (zlib.crc32(body), body))
    return made
