"""Bytes per second between a driver and a silo that dials out, against raw Arrow Flight between the same processes.

    python -m benchmarks.flight [86 ...] [--repeats 7] [--json FILE] [--line 1gbit]

Both speak mutual TLS with the same certificates over loopback, and both sides end with the numbers in an array of
their own. Raw: one ``DoPut`` / ``DoGet`` stream of batches of 4 MB. Siloray: signed frames with their digests checked,
chunks of 4 MB, the silo's mailbox, the driver's blocks. ``--line`` makes loopback as slow as a line between
organisations (in a network namespace of its own: Linux, root); without it nothing limits the two ends but the cores
that they share.
"""

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from benchmarks import measure
from orchestrator.core.messages import (
    Fetch,
    Join,
    Joined,
    Piece,
    Ping,
    Progress,
    Refused,
    Reply,
    Request,
    Train,
)
from orchestrator.core.vector import blocks
from orchestrator.pipeline import BLOCK
from orchestrator.transport.authority import Authority
from orchestrator.transport.certs import Credentials
from orchestrator.transport.flight import FlightChannel
from silos.agent import Agent

SCHEMA = pa.schema([("values", pa.float32())])
BATCH = 1 << 20
HEADER: dict[str, Any] = {"run_id": "bench", "epoch": 1}


class Raw(fl.FlightServerBase):
    """The least that Flight needs: numbers in, numbers out."""

    def __init__(self, credentials: Credentials, size: int) -> None:
        self.values, self.out = np.random.default_rng(0).random(size, np.float32), np.zeros(size, np.float32)
        super().__init__(
            "grpc+tls://127.0.0.1:0",
            tls_certificates=[(credentials.certificate, credentials.key)],
            verify_client=True,
            root_certificates=credentials.ca,
        )

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        at = 0
        for chunk in reader:
            values = chunk.data.column(0).to_numpy()
            self.out[at : at + values.size] = values
            at += values.size

    def do_get(self, context: Any, ticket: Any) -> Any:
        batch = pa.record_batch([pa.array(self.values)], schema=SCHEMA)
        slices = (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))
        return fl.GeneratorStream(SCHEMA, slices)


class EchoSilo:
    """Keeps a vector for the driver to fetch; a model that comes is there once `Train` is answered."""

    def __init__(self, size: int) -> None:
        self.values = np.random.default_rng(1).random(size, np.float32)

    def handle(self, request: Request) -> Reply:
        match request:
            case Join():
                text = dict.fromkeys(("schema_digest", "fingerprint", "device", "node"), "")
                told = {"num_examples": {}, "model": {}, "versions": {}, **text}
                size = self.values.size
                return Joined(silo="a", incarnation="", num_parameters=size, num_shared=size, **told)
            case Fetch():
                return Piece(packet={"values": self.values[request.start : request.stop]})
            case Ping():
                return Progress(
                    silo="a", incarnation="", phase="", version=0, num_steps=0, total_steps=0, marks=0
                )
        return Refused(silo="a", code="cancelled", reason="the model has come")

    def restart(self) -> None:
        """Nothing hangs here."""


def silo(folder: str, port: int, raw_port: int, size: int, pipe: Any) -> None:
    """The silo's process: the agent in a thread, and raw transfers when it is told to."""
    credentials = Credentials.load(Path(folder) / "a")
    workplace = EchoSilo(size)
    agent = Agent("a", f"grpc+tls://127.0.0.1:{port}", credentials, workplace)
    import threading

    threading.Thread(target=agent.run, daemon=True).start()
    client = fl.FlightClient(
        f"grpc+tls://127.0.0.1:{raw_port}",
        tls_root_certs=credentials.ca,
        cert_chain=credentials.certificate,
        private_key=credentials.key,
    )
    work = {"up": lambda: put(client, workplace.values), "down": lambda: get(client, size)}
    out = np.zeros(size, np.float32)

    def get(client: Any, size: int) -> None:
        at = 0
        for chunk in client.do_get(fl.Ticket(b"values")):
            values = chunk.data.column(0).to_numpy()
            out[at : at + values.size] = values
            at += values.size

    while (what := pipe.recv()) != "end":
        work[what]()
        pipe.send("done")


def put(client: Any, values: Any) -> None:
    batch = pa.record_batch([pa.array(values)], schema=SCHEMA)
    writer, _ = client.do_put(fl.FlightDescriptor.for_path("values"), SCHEMA)
    for start in range(0, batch.num_rows, BATCH):
        writer.write_batch(batch.slice(start, BATCH))
    writer.close()


async def fetched(channel: FlightChannel, size: int) -> None:
    """As the pipeline fetches: the next block is under way while one is folded, from the array that it came into."""

    async def one(start: int, stop: int) -> None:
        reply = await channel.call("a", Fetch(**HEADER, version=0, start=start, stop=stop))
        assert isinstance(reply, Piece) and reply.packet["values"].size == stop - start, reply

    ranges = list(blocks(size, BLOCK))
    coming = asyncio.ensure_future(one(*ranges[0]))
    for after in [*ranges[1:], None]:
        current, coming = coming, asyncio.ensure_future(one(*after)) if after else coming
        await current


async def sent(channel: FlightChannel, model: Any) -> None:
    given = {"attempt": 1, "model_digest": "m", "counted": -1, "inline": 0}
    await channel.call("a", Train(**HEADER, version=0, model=model, **given))


def compare(millions: float, repeats: int) -> dict[str, Any]:
    size = int(millions * 1e6)
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create(Path(folder) / "ca", "bench")
        authority.issue_silo("a")
        own = Credentials.load(Path(folder) / "ca" / "driver")
        channel, raw = FlightChannel(("a",), own, ("127.0.0.1", 0), 60.0), Raw(own, size)
        spawn = mp.get_context("spawn")
        ours, theirs = spawn.Pipe()
        arguments = (str(Path(folder) / "ca"), channel.port, raw.port, size, theirs)
        process = spawn.Process(target=silo, args=arguments, daemon=True)
        process.start()
        try:
            return {"parameters": size, **asyncio.run(_timed(channel, raw, ours, size, repeats))}
        finally:
            ours.send("end")
            channel.close()
            raw.shutdown()
            process.join(10)
            process.kill()


async def _timed(channel: FlightChannel, raw: Raw, pipe: Any, size: int, repeats: int) -> dict[str, Any]:
    while channel.connected() != {"a"}:
        await asyncio.sleep(0.1)
    await channel.call("a", Join(**HEADER, job="", job_digest=""))
    model = await channel.publish({"params": raw.values})

    def told(what: str) -> Callable[[], Any]:
        async def wait() -> None:
            pipe.send(what)
            while not pipe.poll():
                await asyncio.sleep(0.001)
            pipe.recv()

        return wait

    work = {
        "raw up": told("up"),
        "siloray up": lambda: fetched(channel, size),
        "raw down": told("down"),
        "siloray down": lambda: sent(channel, model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, do in work.items():
            began = perf_counter()
            await do()
            seconds[name].append(perf_counter() - began)
    return {name: measure.timing(taken[1:]).__dict__ for name, taken in seconds.items()}


SHAPED = 'ip link set lo up && tc qdisc add dev lo root tbf rate "$0" burst 1mb latency 50ms && exec "$@"'


def over_line(rate: str, arguments: list[str]) -> None:
    """This command again, where loopback has this rate."""
    again = [sys.executable, "-m", "benchmarks.flight", *arguments]
    os.execvp("unshare", ["unshare", "--net", "sh", "-c", SHAPED, rate, *again])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("millions", nargs="*", type=float, default=[11, 86])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--line", help="rate of the line, as tc writes it: 1gbit, 100mbit")
    given = parser.parse_args()
    if given.line:
        json_file = ["--json", str(given.json)] if given.json else []
        over_line(given.line, [*map(str, given.millions), "--repeats", str(given.repeats), *json_file])
    found = [compare(millions, given.repeats) for millions in given.millions]
    for each in found:
        gb = each["parameters"] * 4 / 1e9
        for way in ("up", "down"):
            ours, raw = each[f"siloray {way}"]["median_s"], each[f"raw {way}"]["median_s"]
            rates = f"siloray {gb / ours:.2f} GB/s, raw {gb / raw:.2f} GB/s, ratio {raw / ours:.2f}"
            print(f"{each['parameters'] / 1e6:g} M parameters, {way}: {rates}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
