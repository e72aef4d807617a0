"""BFV encryption for sums: ciphertexts that anybody can add and only holders of the secret key can read.

Fan & Vercauteren 2012 (eprint 2012/144), in SEAL as TenSEAL carries it (extra ``encrypted``). Ring of 8192
coefficients modulo one 60-bit prime (SEAL keeps the second prime of the chain for keys that are not needed here), so
that one ciphertext carries 8192 numbers below a 45-bit prime. Security by the table of homomorphicencryption.org:
8192 coefficients allow a modulus of 218 bits at 128 bits of security; all of the chain here has 120.

Silos encrypt with the secret key itself. Half of such a ciphertext is random and travels as its seed, which halves the
upload; the sum of several has no seed and is twice as long. The noise of n ciphertexts is at most n times 22 (SEAL's
errors are at most 21, rounding adds a half), and a sum is exact while 2 n 22 t < q: up to n = 744 for the prime t here.
`self_test` shows on this machine that it is, whatever library is installed.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.errors import BadInput

SLOTS = 8192
"""Numbers in a ciphertext."""
PLAIN_BITS = 45
"""Of the prime below which these numbers are: all numbers of 44 bits are."""
SEALED_BYTES = SLOTS * 8 + 256
"""Of a silo's ciphertext: random half as a seed, headers, and room to spare so that all are of one length."""
SUM_BYTES = 2 * SLOTS * 8 + 256
"""Of a sum."""

_COEFFICIENT_BITS = [60, 60]
_LACKS = "encrypted sums need TenSEAL: pip install 'siloray[encrypted]'"

Bytes = NDArray[np.uint8]
Slots = NDArray[np.uint64]


class NoCiphertext(ValueError):
    """Bytes that are no ciphertext of these parameters: truncated, damaged, or of another kind."""

    index = 0
    """Which of several."""


class Parameters:
    """What everybody knows, the driver too: there is nothing secret in it, and nothing that is made anew."""

    def __init__(self, plain_bits: int = PLAIN_BITS) -> None:
        """Raises `BadInput` where TenSEAL is missing. ``plain_bits`` is given by tests of `self_test`."""
        self.seal = seal = _sealapi()
        wanted = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        wanted.set_poly_modulus_degree(SLOTS)
        wanted.set_coeff_modulus(seal.CoeffModulus.Create(SLOTS, _COEFFICIENT_BITS))
        wanted.set_plain_modulus(seal.PlainModulus.Batching(SLOTS, plain_bits))
        self.plain_modulus: int = wanted.plain_modulus().value()
        self.context = seal.SEALContext(wanted, True, seal.SEC_LEVEL_TYPE.TC128)
        self._evaluator = seal.Evaluator(self.context)

    def added(self, ciphertexts: Sequence[bytes]) -> bytes:
        """The ciphertext of the sum. Raises `NoCiphertext`, with the index of the one that is none."""
        total: Any = None
        for index, each in enumerate(ciphertexts):
            try:
                found = self.loaded(each)
            except NoCiphertext as error:
                error.index = index
                raise
            if total is None:
                total = found
            else:
                self._evaluator.add_inplace(total, found)
        return self.saved(total)

    def loaded(self, data: bytes) -> Any:
        """SEAL's own object. Raises `NoCiphertext`."""
        found = self.seal.Ciphertext()
        try:
            with _file(data) as (_, path):
                found.load(self.context, path)
        except (RuntimeError, ValueError) as error:
            raise NoCiphertext(f"no ciphertext of these parameters ({error})") from None
        if found.size() != 2 or found.is_transparent():
            raise NoCiphertext("no ciphertext as encryption and addition make it")
        return found

    @staticmethod
    def saved(thing: Any) -> bytes:
        """SEAL's bytes of a ciphertext or a key."""
        with _file() as (descriptor, path):
            thing.save(path)
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


class SecretKey:
    """Encrypts and decrypts. Only silos have one."""

    def __init__(self, parameters: Parameters, saved: bytes | None = None) -> None:
        """``saved``: a key as `dumped` gives it; None makes a new one, from the operating system's randomness. Raises
        `ValueError` for bytes that are no key."""
        seal, context = parameters.seal, parameters.context
        self.parameters = parameters
        if saved is None:
            self._key = seal.KeyGenerator(context).secret_key()
        else:
            self._key = seal.SecretKey()
            try:
                with _file(saved) as (_, path):
                    self._key.load(context, path)
            except RuntimeError as error:
                raise ValueError(f"no secret key of these parameters ({error})") from None
        self._encryptor = seal.Encryptor(context, self._key)
        self._decryptor = seal.Decryptor(context, self._key)
        self._encoder = seal.BatchEncoder(context)

    def dumped(self) -> bytes:
        """All that the key is: for silos' eyes only."""
        return self.parameters.saved(self._key)

    def encrypted(self, slots: Slots) -> bytes:
        """The ciphertext of 8192 numbers below the plain modulus."""
        plain = self.parameters.seal.Plaintext()
        self._encoder.encode(slots.tolist(), plain)
        return self.parameters.saved(self._encryptor.encrypt_symmetric(plain))

    def decrypted(self, ciphertext: bytes) -> Slots:
        """The 8192 numbers. Raises `NoCiphertext`."""
        plain = self.parameters.seal.Plaintext()
        self._decryptor.decrypt(self.parameters.loaded(ciphertext), plain)
        return np.array(self._encoder.decode_uint64(plain), np.uint64)

    def budget(self, ciphertext: bytes) -> int:
        """Bits of noise that the ciphertext could still take; at 0 decryption may be wrong."""
        return int(self._decryptor.invariant_noise_budget(self.parameters.loaded(ciphertext)))


@lru_cache
def self_test(most: int, plain_bits: int = PLAIN_BITS) -> Parameters:
    """Parameters of which it is shown here and now that sums of ``most`` ciphertexts are exact: of the largest numbers
    whose sum still fits, of zeros and of mixed ones, each added to itself again and again, which adds up noise as no
    honest sum does. Raises `BadInput` where one is not. The result is kept: a process tests once."""
    parameters = Parameters(plain_bits)
    key = SecretKey(parameters)
    doublings = max(1, (most - 1).bit_length())
    largest = (parameters.plain_modulus - 1) >> doublings
    mixed = np.arange(SLOTS, dtype=np.uint64) * np.uint64(largest // SLOTS)
    for slots in (np.full(SLOTS, largest, np.uint64), np.zeros(SLOTS, np.uint64), mixed):
        total = key.encrypted(slots)
        for _ in range(doublings):
            total = parameters.added([total, total])
        exact = bool((key.decrypted(total) == slots << np.uint64(doublings)).all())
        if not exact or key.budget(total) < 1 or len(total) > SUM_BYTES:
            raise BadInput(
                f"encrypted_sum: a sum of {most} ciphertexts is not exact with the TenSEAL that is installed "
                f"({plain_bits} bits of plain modulus): another version, or fewer silos"
            )
    return parameters


def padded(data: bytes, size: int) -> Bytes:
    """As many bytes as all others have; SEAL's own header says how many of them count. Raises `BadInput`."""
    if len(data) > size:
        raise BadInput(f"encrypted_sum: a ciphertext of {len(data)} bytes, {size} foreseen: another TenSEAL?")
    out = np.zeros(size, np.uint8)
    out[: len(data)] = np.frombuffer(data, np.uint8)
    return out


def _sealapi() -> Any:
    try:
        from tenseal import sealapi
    except ImportError as error:
        raise BadInput(f"{_LACKS} ({error})", public=_LACKS) from None
    return sealapi


@contextmanager
def _file(content: bytes = b"") -> Iterator[tuple[int, str]]:
    """A descriptor and a path of a file in memory, since SEAL's Python interface reads and writes files only. Where
    the system has none, one without a name in the folder for temporary files: keys touch the disk there."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as nameless:
            descriptor = os.dup(nameless.fileno())
    try:
        if content:
            os.pwrite(descriptor, content, 0)
        yield descriptor, f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)
