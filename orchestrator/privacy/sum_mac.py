"""A mark on a sum, which shows that a sum is of exactly these silos' numbers, each once.

A homomorphic message authentication code after Agrawal & Boneh 2009 ("Homomorphic MACs: MAC-based integrity for
network coding", ACNS), for sums: silo u's mark of a chunk q_u is sum_i alpha_i q_ui + beta_u mod p. Silos share the
secret from which alpha and beta come; the driver, which has not got it, adds marks as it adds ciphertexts. For numbers
S that are claimed to be the sum over U, sum_i alpha_i S_i + sum_{u in U} beta_u must be the sum of marks.

Every beta is used once and hides the rest, so that the driver knows nothing of alpha. Whatever else it puts in the
place of the sum (one silo's numbers, one silo twice, the sum of other silos, changed numbers) differs from the honest
sum modulo p > 2^32 somewhere, and fits with probability 2^-32 per copy: 2^-64 with the two there are.
"""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from orchestrator.core.messages import SiloId
from orchestrator.privacy.lanes import Numbers
from orchestrator.privacy.pair_keys import derived

P = 2**32 + 15
"""A prime above every number of 32 bits."""
COPIES = 2
"""Independent marks of a chunk."""
_LOW = np.uint64(0xFFFF)

Marks = np.ndarray[tuple[int], np.dtype[np.uint64]]


class SumMac:
    """The keys of one sum. ``context`` must never come twice for different numbers of one silo."""

    def __init__(self, secret: bytes, context: bytes) -> None:
        """``secret``: 32 bytes that all silos of the set-up have, and nobody else."""
        self._alpha = derived(secret, "sum mac alpha", context)
        self._beta = derived(secret, "sum mac beta", context)

    def marks(self, silo: SiloId, chunk: int, numbers: Numbers) -> Marks:
        """At the silo: of its numbers, all below 2^32. There are at most 2^15 in a chunk."""
        return np.array(
            [
                (product + self._pad(silo, chunk, copy)) % P
                for copy, product in enumerate(self._products(chunk, numbers))
            ],
            np.uint64,
        )

    def fits(self, silos: frozenset[SiloId], chunk: int, sums: Numbers, marks: Marks) -> bool:
        """Whether ``sums`` are those of these silos, given the sums of their marks."""
        if sums.size and int(sums.max()) >= 1 << 32:
            return False
        return all(
            (product + sum(self._pad(silo, chunk, copy) for silo in silos)) % P == int(mark) % P
            for copy, (product, mark) in enumerate(zip(self._products(chunk, sums), marks, strict=True))
        )

    def _products(self, chunk: int, numbers: Numbers) -> list[int]:
        """Of alpha with the numbers, modulo p. In halves of 16 bits: 2^15 products of 48 bits fit 64."""
        size = numbers.size
        start = modes.CTR((chunk << 20).to_bytes(16, "big"))  # 16 MiB of stream for each chunk
        stream = Cipher(algorithms.AES(self._alpha), start).encryptor().update(bytes(4 * COPIES * size))
        alpha = np.frombuffer(stream, np.uint32).reshape(COPIES, size).astype(np.uint64)
        low, high = alpha @ (numbers & _LOW), alpha @ (numbers >> np.uint64(16))
        return [(int(a) + (int(b) << 16)) % P for a, b in zip(low, high, strict=True)]

    def _pad(self, silo: SiloId, chunk: int, copy: int) -> int:
        """Beta: a keyed hash, to be used once."""
        place = f"{copy}\0{chunk}\0{silo}".encode()
        return int.from_bytes(hashlib.blake2b(place, key=self._beta, digest_size=32).digest()) % P


def added_marks(marks: list[Marks]) -> Marks:
    """On the driver."""
    total: Marks = np.stack(marks).sum(axis=0, dtype=np.uint64)
    return total % np.uint64(P)
