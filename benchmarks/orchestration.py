"""Seconds per round with training replaced by an in-place addition: what orchestration itself costs.

    python -m benchmarks.orchestration [8x11M ...] [--rounds 10] [--json FILE]

Beside Siloray (real driver, round machine, silos, pipeline, journal; Ray actors and the object store) run, in the
same command, (a) the limit: forked processes with shared memory and one in-place mean, and (b) a plain Ray FedAvg.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import limit, measure
from benchmarks.open_site import OpenSite
from orchestrator.core.events import Event, RoundClosed
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.protocols import LocalRun
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from orchestrator.store import Store
from silos.site import Order, Trained
from silos.state import Kept

SHAPES = ("2x0.1M", "8x0.1M", "2x11M", "8x11M", "2x86M", "8x86M")
WARM_UP = 3
STEP = np.float32(0.5)


class AddTrainer:
    """Instead of training, adds a constant to the parameters, in place."""

    schema_digest = "add"
    device = "cpu"
    loaded = ""

    def __init__(self, job: Job, size: int) -> None:
        self.job = job
        self.num_parameters = self.num_shared = size
        self.num_examples = {"train": 1, "test": 1}
        self.params = np.zeros(size, np.float32)

    def describe(self) -> dict[str, Any]:
        return {"entries": [], "input_shape": [1], "input_dtype": "float32"}

    def initial(self) -> Parts:
        return {"params": np.zeros(self.num_shared, np.float32)}

    def evaluate(self, order: Order) -> MetricSums:
        return {"loss": Sums("mean", (float(order.received["params"][-1]), 1.0))}

    def settle(self, had: Any, run_id: str, order: Order | None = None) -> None:
        """Without noise there is nothing to find."""

    def most(self, version: int) -> None:
        return None

    def spends(self, order: Order) -> None:
        return None

    def train(self, order: Order) -> Trained:
        np.copyto(self.params, order.received["params"])
        kept = Kept(order.state, "strategy", self.num_shared)
        run = LocalRun(
            params=self.params, anchor=order.received["params"], received={}, kept=kept, num_steps=1, path=1.0
        )
        np.add(run.params, STEP, out=run.params)
        report = self.job.strategy.report(run)
        return Trained(
            parts=report.parts,
            scalars={},
            num_examples=1,
            num_steps=1,
            metrics=self.evaluate(order),
            train_metrics={},
            seconds={},
        )


class AddSite(OpenSite):
    """A site without data."""

    def __init__(self, name: str, size: int) -> None:
        folder = Path(tempfile.gettempdir()) / "siloray-benchmark"
        super().__init__(name, None, folder, lambda job, *_: AddTrainer(job, size))


class NoCheckpoints(Store):
    """Journal and lease as always; versions are not written to disk."""

    def commit(self, version: int, state: Any, event: Any, meta: Any) -> None:
        self.append(event)


STORES: dict[str, type[Store]] = {"Siloray": NoCheckpoints, "with checkpoints": Store}


@dataclass
class Rounds:
    """What one shape took."""

    seconds: list[float]
    phases: dict[str, float] = field(default_factory=dict)
    """Median seconds by phase at the driver."""
    final: float = 0.0


def job_of(num_silos: int, total: int) -> Job:
    return Job.model_validate(
        {
            "name": "orchestration",
            "task": {"name": "tabular", "dataset": "none", "target": "none", "features": ["x"]},
            "silos": [f"s{i}" for i in range(num_silos)],
            "rounds": {"total": total},
        }
    )


def silo_actor(size: int) -> type:
    """An actor class whose silos hold ``size`` parameters. Ray must be connected first."""
    from silos.actor import SiloActor
    from silos.silo import Silo

    class AddActor(SiloActor):
        preload = staticmethod(lambda: None)

        def __init__(self, name: str, silo_yaml: str | None, code: object) -> None:
            self._adds = Silo(AddSite(name, size))
            super().__init__(name, silo_yaml)

        def _opened(self) -> Silo:
            return self._adds

    return AddActor


def siloray(num_silos: int, size: int, rounds: int, store: type[Store], folder: Path) -> Rounds:
    """Run the real driver over Ray actors."""
    from orchestrator.driver import Driver
    from orchestrator.transport.ray_channel import RayChannel

    job = job_of(num_silos, WARM_UP + rounds)
    closed: list[RoundClosed] = []

    def observe(event: Event) -> None:
        if isinstance(event, RoundClosed):
            closed.append(event)

    async def run() -> Any:
        channel = RayChannel(folder.name, job.silos, {silo: "" for silo in job.silos}, actor=silo_actor(size))
        driver = Driver(job, channel, store(folder), "benchmark", observe)
        outcome = await driver.run()
        channel.close()
        assert outcome.status == "done", outcome
        return driver.model.state["params"]

    params = asyncio.run(run())
    expected = float(STEP) * (WARM_UP + rounds)
    assert float(params.min()) == float(params.max()) == expected, (params[:3], expected)
    counted = closed[WARM_UP:]
    phases = {name: median(each.seconds[name] for each in counted) for name in counted[0].seconds}
    return Rounds([each.seconds["round"] for each in counted], phases, expected)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--only", choices=STORES, nargs="+", help="print Siloray's figures of one shape as JSON"
    )
    options = parser.parse_args()
    if options.only:
        print(json.dumps(ours(options.shapes[0], options.rounds, options.only)))
        return
    rows = [measured(shape, options.rounds) for shape in options.shapes]
    print(measure.markdown_table(list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        measure.write_json(options.json, {"machine": measure.machine(), "rows": rows})


def ours(shape: str, rounds: int, titles: list[str]) -> dict[str, str]:
    """Siloray on a Ray of its own, as its own command starts it."""
    from orchestrator.transport import ray as transport

    num_silos, size = measure.parse_shape(shape)
    transport.connect(None, num_silos)
    row: dict[str, str] = {}
    for title in titles:
        with tempfile.TemporaryDirectory() as folder:
            found = siloray(num_silos, size, rounds, STORES[title], Path(folder))
        row[title] = ms(found.seconds)
        phases = " ".join(f"{name} {1e3 * value:.1f}" for name, value in found.phases.items())
        row.setdefault("phases, ms", phases)
    transport.shutdown()
    return row


def measured(shape: str, rounds: int) -> dict[str, str]:
    """A row: the limit, plain Ray, Siloray; each in a process of its own, for Ray reads its settings once."""
    num_silos, size = measure.parse_shape(shape)
    row = {"silos x parameters": shape, "(a) limit": ms(limit.seconds_per_round(num_silos, size, rounds))}
    plain = (
        f"from benchmarks import ray_fedavg as r; print(r.seconds_per_round({num_silos}, {size}, {rounds}))"
    )
    row["(b) plain Ray"] = ms(json.loads(_printed("-c", plain)))
    row |= json.loads(_printed("-m", *_only(shape, rounds, *STORES)))
    row["load"] = f"{os.getloadavg()[0]:.1f}"
    return {**row, **memory(shape, rounds)}


def memory(shape: str, rounds: int) -> dict[str, str]:
    """Most memory that Siloray took, in a run of its own, for looking slows it down. Largest private: the driver's,
    which has the model twice."""
    command = [sys.executable, "-m", *_only(shape, rounds, "with checkpoints")]
    watched = measure.run_command(command, watch_memory=True).peak
    assert watched is not None
    most, everything = watched.largest_private_bytes, watched.peak.total_bytes
    return {"largest private, GB": f"{most / 1e9:.2f}", "all, GB": f"{everything / 1e9:.2f}"}


def _only(shape: str, rounds: int, *titles: str) -> list[str]:
    return ["benchmarks.orchestration", shape, "--rounds", str(rounds), "--only", *titles]


def _printed(*arguments: str) -> str:
    """The last line that a Python process of its own prints."""
    return measure.run_command([sys.executable, *arguments]).stdout.strip().splitlines()[-1]


def ms(seconds: list[float]) -> str:
    """Median (lowest-highest) in milliseconds."""
    return f"{1e3 * median(seconds):.1f} ({1e3 * min(seconds):.1f}-{1e3 * max(seconds):.1f})"


if __name__ == "__main__":
    main()
