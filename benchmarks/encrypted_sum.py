"""An encrypted sum beside FLARE's homomorphic encryption, of the same vectors, on one core after the other.

    python -m benchmarks.encrypted_sum [--size 1000000] [--silos 8] [--repeats 5] [--json FILE]

Ours: from float32 to the packet that leaves a silo (whole numbers, marks, BFV ciphertexts), the driver's additions, and
the decryption with the check that it is the sum of these silos. FLARE: `benchmarks/flare_he.py`, in an environment of
its own that is installed when there is none. Seconds are of CPU, the least of the repeats, per million parameters;
adding is per silo.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from benchmarks.measure import machine, markdown_table, write_json
from benchmarks.peers import interpreter_with
from orchestrator.privacy.bfv import SEALED_BYTES, SUM_BYTES, SecretKey
from orchestrator.privacy.encrypted_sum import EncryptedSum
from orchestrator.privacy.encrypted_terms import CHUNK_BYTES, SUM_CHUNK_BYTES, chunk_of, marks_in
from orchestrator.privacy.lanes import Lanes
from orchestrator.privacy.sum_mac import SumMac

FLARE = "nvflare[HE]==2.9.0"
STEPS = ("quantise", "mark", "encrypt", "serialise", "add", "decrypt", "check")


class Clock(dict[str, float]):
    """Seconds of CPU by step."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = process_time()
        yield
        self[name] = self.get(name, 0.0) + process_time() - began


def ours(vectors: np.ndarray, silos: int, value_bits: int | None) -> tuple[Clock, dict[str, Any]]:
    """One sum of all vectors, in a job of so many silos."""
    combine, clock, per_silo = EncryptedSum(value_bits=value_bits, range=1.0), Clock(), Clock()
    point = combine.fixed_point(silos)
    key, mac = SecretKey(combine.parameters()), SumMac(bytes(32), b"benchmark")
    packets, rings = [], []
    for number, vector in enumerate(vectors):
        with per_silo.step("quantise"):
            ring = point.encode(vector, 1, {}, ())
        lanes = combine.lanes_of(point.value_bits, silos)
        packets.append(sealed(ring, lanes, key, mac, str(number), per_silo))
        rings.append(ring)
    with per_silo.step("add"):
        total = combine.add(packets)
    names, size, opened = frozenset(map(str, range(len(vectors)))), rings[0].size, []
    for chunk, row in enumerate(total.reshape(-1, SUM_CHUNK_BYTES)):
        with clock.step("decrypt"):
            slots = key.decrypted(row[:SUM_BYTES].tobytes())
        with clock.step("check"):
            sums = lanes.unpacked(slots)[: size - chunk * lanes.per_chunk]
            assert mac.fits(names, chunk, sums, marks_in(row))
            opened.append(lanes.lowered(sums, len(vectors), np.dtype(point.ring)))
    assert np.array_equal(np.concatenate(opened), np.sum(rings, axis=0, dtype=point.ring)), (
        "the sum is not exact"
    )
    for name, spent in per_silo.items():
        clock[name] = spent / len(vectors)
    return clock, {
        "value_bits": point.value_bits,
        "bytes_up": packets[0].size,
        "bytes_down": total.size,
        "budget": key.budget(total[:SUM_BYTES].tobytes()),
    }


def sealed(ring: Any, lanes: Lanes, key: SecretKey, mac: SumMac, silo: str, clock: Clock) -> Any:
    """As `orchestrator.privacy.encrypted_silo` does it, with a clock at each step."""
    seal, out = key.parameters.seal, []
    for chunk in range(lanes.num_chunks(ring.size)):
        with clock.step("mark"):
            numbers = lanes.lifted(ring[chunk * lanes.per_chunk : (chunk + 1) * lanes.per_chunk])
            marks = mac.marks(silo, chunk, numbers)
        with clock.step("encrypt"):
            plain, slots = seal.Plaintext(), lanes.packed(numbers)
            key._encoder.encode(slots.tolist(), plain)
            ciphertext = key._encryptor.encrypt_symmetric(plain)
        with clock.step("serialise"):
            out.append(chunk_of(key.parameters.saved(ciphertext), SEALED_BYTES, marks))
    packet = np.concatenate(out)
    assert packet.size % CHUNK_BYTES == 0
    return packet


def flare(vectors: np.ndarray, repeats: int) -> dict[str, Any] | None:
    """None where it cannot be fetched."""
    python = interpreter_with(FLARE)
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        np.save(path, vectors[:2].astype(np.float32))
        script = Path(__file__).with_name("flare_he.py")
        done = subprocess.run(
            [python, script, path, str(repeats)], check=True, stdout=subprocess.PIPE, text=True
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--silos", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((given.silos, given.size)).astype(np.float32) / 10
    million = given.size / 1e6
    rows, measured = [], []
    for label, bits in (("two numbers a slot", None), ("24-bit values, one a slot", 24)):
        runs = [ours(vectors, given.silos, bits) for _ in range(given.repeats)]
        least = {step: min(clock[step] for clock, _ in runs) / million for step in STEPS}
        facts = runs[0][1]
        name = f"Siloray, {label} ({facts['value_bits']} bits)"
        rows.append(row_of(name, least, facts, given.size, "exact"))
        measured.append({"name": name, "seconds": least, **facts})
    peer = flare(vectors, given.repeats)
    if peer is not None:
        least = {step: seconds / million for step, seconds in peer["seconds"].items()}
        rows.append(row_of(f"FLARE {peer['version']}", least, peer, given.size, f"{peer['error']:.1g}"))
        measured.append({"name": "FLARE", **peer, "seconds": least})
    heads = ["per 1 M parameters, CPU s", *STEPS, "encrypt + serialise", "B up", "B down", "error"]
    print(markdown_table(heads, rows))
    if given.json:
        write_json(given.json, {"machine": machine(), "size": given.size, "measured": measured})


def row_of(name: str, seconds: dict[str, float], facts: dict[str, Any], size: int, error: str) -> list[Any]:
    """``encrypt + serialise`` is all that a silo does before its packet leaves."""
    silo = sum(seconds.get(step, 0.0) for step in STEPS[:4])
    cells = [f"{seconds[step]:.3f}" if step in seconds else "" for step in STEPS]
    return [
        name,
        *cells,
        f"{silo:.3f}",
        f"{facts['bytes_up'] / size:.2f}",
        f"{facts['bytes_down'] / size:.2f}",
        error,
    ]


if __name__ == "__main__":
    main()
