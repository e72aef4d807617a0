"""What a secure sum costs a silo and the driver, beside Flower's SecAgg+ on the same vectors in the same minutes.

    python -m benchmarks.secure_sum [--size 11170000] [--silos 8] [--repeats 5] [--json FILE]

Seconds are of the processor on one core, the least of several repeats. A silo's: making whole numbers, masks, shares;
Flower's silo: sharing keys, making whole numbers, masks. Driver: adding up seven of eight vectors; then, from the
shares, the keys, the masks and the mean. Flower is fetched into an environment of its own under the temporary folder;
its functions are called in its own order, without its messages (`benchmarks/secure_sum_flower.py`).
"""

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.measure import machine, markdown_table, readable, write_json
from benchmarks.peers import interpreter_with
from orchestrator.core.vector import blocks
from orchestrator.privacy.fixed_point import FixedPoint
from orchestrator.privacy.sealing import Answers, Gather, Member, Rules, SumHeader
from orchestrator.privacy.secure_driver import Recovered
from orchestrator.privacy.secure_silo import SecureSilo
from orchestrator.privacy.secure_sum import SecureSum
from silos.identity import GivenPeers, Identity

FLOWER = "flwr==1.42.0"
BLOCK = 8 << 20
"""Elements that a driver fetches and adds at a time (`orchestrator.pipeline`)."""


class NoMemory:
    """Of opened sums: it is not measured."""

    def marks(self, tag: bytes) -> tuple[str, ...]:
        return ()

    def permit(self, *_: object) -> None:
        return None


class Silos:
    """Real halves, whose messages stay in this process."""

    def __init__(self, combine: SecureSum, num: int, length: int) -> None:
        self.combine, self.length, self.attempt = combine, length, 0
        self.names = [f"s{i:02}" for i in range(num)]
        keys = {silo: Ed25519PrivateKey.generate() for silo in self.names}
        known = GivenPeers({silo: key.public_key().public_bytes_raw() for silo, key in keys.items()}, "here")
        self.halves = {
            silo: SecureSilo(combine, Identity(silo, key, known), NoMemory(), Rules(), "bench")
            for silo, key in keys.items()
        }
        answers = None
        flow = combine.set_up(self.names, 1)
        while (step := next_step(flow, answers)) is not None:
            found = {
                silo: self.halves[silo].answer(step.step, fields, None, None)[0]
                for silo, fields in step.fields.items()
            }
            answers = Answers(found)

    def header(self) -> SumHeader:
        """Of a new sum."""
        self.attempt += 1
        members = tuple(Member(silo, (1,), ("model",), (1.0,)) for silo in self.names)
        return SumHeader(
            run_id="bench", job_digest="job", epoch=1, version=2, attempt=self.attempt, setup=1, members=members,
            size=self.length, shapes=(), ring=self.combine.ring, value_bits=16, range=1.0,
        )  # fmt: skip


def next_step(flow: Any, answers: Answers | None) -> Any:
    """None at the end, whose outcome is lost."""
    try:
        return next(flow) if answers is None else flow.send(answers)
    except StopIteration:
        return None


def least(repeats: int, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(repeats):
        began = process_time()
        work()
        seconds.append(process_time() - began)
    return min(seconds)


def vector(silo: int, size: int) -> Any:
    return np.random.default_rng(silo).standard_normal(size, np.float32) * np.float32(0.1)


def ours(size: int, num: int, ring: Literal["uint32", "uint16"], repeats: int) -> dict[str, Any]:
    """One of ``num`` silos, and the driver with one of them lost before its vector came."""
    combine = SecureSum(ring=ring)
    point = combine.fixed_point(num)
    point = FixedPoint(point.ring, point.value_bits, point.max_weight, point.max_updates, 1.0)
    silos, x = Silos(combine, num, size), vector(1, size)
    first = silos.names[0]
    kept: dict[str, Any] = {}

    def seal() -> None:
        kept.clear()
        kept["sealed"] = silos.halves[first].answer(
            "seal", {}, silos.header(), lambda: point.encode(x, 1, {}, ())
        )

    silo_s = least(repeats, seal)
    fields, packet = kept["sealed"]
    adding, unmasking = [], []
    for _ in range(max(2, repeats // 2)):
        parts = driver(silos, point, [vector(i + 1, size) for i in range(num)])
        adding.append(parts[0])
        unmasking.append(parts[1])
    return {
        "silo_s": silo_s,
        "upload_bytes": packet.nbytes + len(json.dumps(fields)),
        "adding_s": min(adding),
        "unmasking_s": min(unmasking),
    }


def driver(silos: Silos, point: FixedPoint, vectors: list[Any]) -> tuple[float, float]:
    """Seconds of adding up, and of all that follows; the mean is checked."""
    header, answers, packets, unmasking, adding = silos.header(), None, {}, 0.0, 0.0
    flow, total, lost = silos.combine.open(header, ("all",)), None, silos.names[-1]
    while True:
        began = process_time()
        step = next_step(flow, answers)
        unmasking += process_time() - began
        if step is None:
            break
        answers = Answers()
        if isinstance(step, Gather):
            names = [silo for silo in step.silos if silo != lost]
            rows = [packets[silo] for silo in names]
            total = np.empty_like(rows[0])

            def add(rows: list[Any] = rows, total: Any = total) -> None:
                for start, stop in blocks(total.size, BLOCK):
                    total[start:stop] = silos.combine.add([row[start:stop] for row in rows])

            adding = least(3, add)
            packets.clear()
            answers.total, answers.lost = total, {lost: "gone"}
            continue
        for silo, fields in step.fields.items():
            x = vectors[silos.names.index(silo)]
            found, packet = silos.halves[silo].answer(
                step.step, fields, header, lambda x=x: point.encode(x, 1, {}, ())
            )
            answers.fields[silo] = found
            if packet is not None:
                packets[silo] = packet
    out = np.empty(vectors[0].size, np.float32)
    began = process_time()
    point.decode(total, out.size, out)
    unmasking += process_time() - began
    mean = np.mean(vectors[:-1], axis=0)
    assert np.abs(out - mean).max() <= point.quantum
    return adding, unmasking


def recovery(num: int, dropped: int, repeats: int) -> float:
    """Seconds for all keys of a sum, from the shares of its members."""
    silos = Silos(SecureSum(), num, 10)
    header, names = silos.header(), silos.names
    sealed = {
        silo: half.answer("seal", {}, header, lambda: np.zeros(14, np.uint32))[0]
        for silo, half in silos.halves.items()
    }
    left, gone = names[dropped:], names[:dropped]
    told = {
        silo: silos.halves[silo].answer(
            "unmask",
            {
                "survivors": left,
                "boxes": {each: sealed[each]["boxes"][silo] for each in left if each != silo},
            },
            header,
            lambda: np.zeros(0, np.uint32),
        )[0]
        for silo in left
    }
    enough = silos.combine.enough(num)
    return least(
        repeats, lambda: Recovered(header, enough, left, gone, Answers(sealed), Answers(told)).masks()
    )


def flower(size: int, num: int, threshold: int, repeats: int) -> dict[str, Any] | None:
    python = interpreter_with(FLOWER)
    if python is None:
        return None
    script = Path(__file__).with_name("secure_sum_flower.py")
    argv = [str(python), str(script), *map(str, (size, num, threshold, repeats))]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=11_170_000, help="parameters")
    parser.add_argument("--silos", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    given = parser.parse_args()
    size, num, repeats = given.size, given.silos, given.repeats
    enough = SecureSum().enough(num)
    found: dict[str, Any] = {
        "uint32": ours(size, num, "uint32", repeats),
        "uint16": ours(size, num, "uint16", repeats),
        "flower": flower(size, num, enough, repeats),
        "recovery_50_3_s": recovery(50, 3, repeats),
    }
    columns = [found["uint32"], found["uint16"], found["flower"]]

    def row(name: str, key: str, shown: Callable[[float], str] = readable) -> list[str]:
        cells = [shown(each[key]) if each else "-" for each in columns]
        ratio = f"{columns[2][key] / columns[0][key]:.1f}" if columns[2] else "-"
        return [name, *cells, ratio]

    def megabytes(count: float) -> str:
        return f"{count / 1e6:.1f} MB"

    print(
        markdown_table(
            [f"{size / 1e6:g} M parameters, {num} silos", "uint32", "uint16", FLOWER, "Flower / uint32"],
            [
                row("silo", "silo_s"),
                row("upload", "upload_bytes", megabytes),
                row("driver: adding", "adding_s"),
                row("driver: one dropout, keys, masks, mean", "unmasking_s"),
            ],
        )
    )
    print(f"\nkeys of 50 silos, 3 of them lost: {readable(found['recovery_50_3_s'])}")
    if given.json:
        write_json(given.json, {"machine": machine(), **found})


if __name__ == "__main__":
    main()
