"""The received model is hashed while it is trained from: SHA-256 does not hold the interpreter."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from orchestrator.core.vector import Parts, digest_of

SMALL = 1 << 16
"""Elements that are hashed at once: a thread would cost more."""


def hashed(parts: Parts) -> Callable[[], str]:
    """Begin with the digest of these vectors, which stay as they are meanwhile; the returned function waits for it."""
    if sum(part.size for part in parts.values()) <= SMALL:
        digest = digest_of(parts)
        return lambda: digest
    thread = ThreadPoolExecutor(1, "hash")
    found = thread.submit(digest_of, parts)
    thread.shutdown(wait=False)
    return found.result
