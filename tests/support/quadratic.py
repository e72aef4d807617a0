"""Silos without torch: each minimises a quadratic in NumPy, through the real strategies, silo and pipeline.

``f_i(x) = 1/2 (x - b_i)' A_i (x - b_i)`` has closed forms for what federated algorithms converge to
(notes/algorithms.md section 9), so a test can compare with mathematics instead of with itself.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.protocols import LocalRun
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from silos.silo import Silo
from silos.site import Order, Tick, Trained
from silos.state import Kept


@dataclass
class Quadratic:
    """One silo's problem. float64 throughout the training; what travels is float32 unless ``exact``."""

    a: np.ndarray
    b: np.ndarray
    num_rows: int = 100
    steps: int = 5
    lr: float = 0.05
    momentum: float = 0.0
    sleep_s: float = 0.0


class QuadraticTrainer:
    """A `silos.site.Trainer` in plain NumPy."""

    schema_digest = "quadratic"
    device = "cpu"

    def __init__(self, job: Job, silo: str, problem: Quadratic, size: int | None = None) -> None:
        self.job, self.silo, self.problem = job, silo, problem
        self.num_parameters = self.num_shared = problem.b.size
        self.num_examples = {"train": problem.num_rows, "test": problem.num_rows}
        self.buffer = np.zeros(problem.b.size, np.float32)
        self.trained: list[int] = []

    def describe(self) -> dict[str, Any]:
        return {"entries": [], "input_shape": [self.problem.b.size], "input_dtype": "float32"}

    def initial(self) -> Parts:
        return {"params": np.zeros(self.problem.b.size, np.float32)}

    def evaluate(self, received: Parts, tick: Tick) -> MetricSums:
        tick("evaluating", 1, 1)
        off = received["params"].astype(np.float64) - self.problem.b
        loss = 0.5 * float(off @ self.problem.a @ off)
        return {"loss": Sums("mean", (loss * self.problem.num_rows, float(self.problem.num_rows)))}

    def train(self, order: Order) -> Trained:
        problem, strategy = self.problem, self.job.strategy
        metrics = self.evaluate(order.received, order.tick)
        np.copyto(self.buffer, order.received["params"])
        extra = {name: part for name, part in order.received.items() if name != "params"}
        kept = Kept(order.state, "strategy", self.buffer.size)
        run = LocalRun(params=self.buffer, anchor=order.received["params"], received=extra, kept=kept, lr=problem.lr)
        held, velocity = 0.0, np.zeros_like(self.buffer)
        for step in range(problem.steps):
            if problem.sleep_s:
                time.sleep(problem.sleep_s)
            direction = strategy.direction(run, self._gradient)
            velocity = np.float32(problem.momentum) * velocity + direction
            run.params -= np.float32(problem.lr) * velocity
            held = problem.momentum * held + 1.0
            run.path += problem.lr * held
            run.num_steps += 1
            order.tick("training", step + 1, problem.steps)
        report = strategy.report(run)
        self.trained.append(order.version)
        return Trained(
            parts=report.parts,
            scalars=dict(report.scalars),
            num_examples=problem.num_rows,
            num_steps=run.num_steps,
            metrics=metrics,
            train_metrics={},
            seconds={"train": 0.0},
        )

    def _gradient(self, point: np.ndarray) -> np.ndarray:
        return (self.problem.a @ (point.astype(np.float64) - self.problem.b)).astype(np.float32)


@dataclass
class PlainSite:
    """A site whose policy allows everything."""

    name: str
    problem: Quadratic
    folder: Path
    make: Callable[..., Any] = QuadraticTrainer
    trainers: list[Any] = field(default_factory=list)

    def review(self, job: Job) -> str | None:
        return None

    def trainer(self, job: Job) -> Any:
        self.trainers.append(self.make(job, self.name, self.problem))
        return self.trainers[-1]

    def fingerprint(self, job: Job) -> str:
        return f"data of {self.name}"

    def release(self, metrics: MetricSums) -> MetricSums:
        return metrics

    def counts(self, trainer: Any) -> dict[str, int]:
        return trainer.num_examples

    def state_folder(self, run_id: str) -> Path:
        return self.folder / self.name / run_id


def problems(num_silos: int = 4, size: int = 5, seed: int = 0, **options: Any) -> dict[str, Quadratic]:
    """Random well-conditioned quadratics (eigenvalues in [.5, 3]) with unequal numbers of rows."""
    rng = np.random.default_rng(seed)
    rows = (100, 300, 50, 550)
    made = {}
    for i in range(num_silos):
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        a = basis @ np.diag(rng.uniform(0.5, 3, size)) @ basis.T
        made[f"s{i}"] = Quadratic(a, rng.normal(size=size) * 2, rows[i % 4], **options)
    return made


def sites(problem_of: dict[str, Quadratic], folder: Path) -> dict[str, PlainSite]:
    return {name: PlainSite(name, problem, folder) for name, problem in problem_of.items()}


def silo_makers(site_of: dict[str, PlainSite]) -> dict[str, Callable[[], Silo]]:
    return {name: lambda site=site: Silo(site) for name, site in site_of.items()}


def job_of(silos: list[str], total: int = 5, **sections: Any) -> Job:
    """A job for quadratic silos; the task section only has to be valid."""
    rounds = {"total": total, "patience_s": 5.0, **sections.pop("rounds", {})}
    document = {
        "name": "quadratic",
        "task": {"name": "tabular", "dataset": "none", "target": "none", "features": ["x"]},
        "silos": silos,
        "rounds": rounds,
        **sections,
    }
    return Job.model_validate(document)
