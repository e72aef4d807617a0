"""What a silo says of an update, or of an evaluation, that is to be summed, so that it can be held to it."""

import hashlib

from orchestrator.core.metrics import MetricSums
from silos.identity import Identity

MARK_BYTES = 16


def not_told(figures: MetricSums, told: MetricSums) -> tuple[str, ...]:
    """Names of figures that only a sum shows, or shows as exactly."""
    return tuple(name for name in sorted(figures) if told.get(name) != figures[name])


def mark_of(identity: Identity, packet_digest: str) -> str:
    """Ed25519 signatures are the same for the same message (RFC 8032), and nobody else can make them."""
    signature = identity.sign(b"siloray update in sums\0" + packet_digest.encode())
    return hashlib.sha256(signature).hexdigest()[: 2 * MARK_BYTES]
