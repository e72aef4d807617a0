"""Silos without torch: each minimises a quadratic in NumPy, through the real strategies, silo and pipeline.

``f_i(x) = 1/2 (x - b_i)' A_i (x - b_i)`` has closed forms for what federated algorithms converge to
(notes/algorithms.md section 9), so a test can compare with mathematics instead of with itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.at_rest import Key
from orchestrator.core.messages import CohortInfo, Judged
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.protocols import LocalRun, Report
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from orchestrator.privacy.sealing import Rules
from silos.identity import Identity
from silos.metrics_rule import MetricsRule
from silos.silo import Silo
from silos.site import Assessment, Guard, Order, OwnModel, Tick, Trained
from silos.spending import Spend
from silos.state import Kept


@dataclass
class Quadratic:
    """One silo's problem, and how it trains."""

    a: np.ndarray
    b: np.ndarray
    num_rows: int = 100
    steps: int = 5
    lr: float = 0.05
    momentum: float = 0.0
    adam: bool = False
    """Adam (beta 0.9, 0.999) in place of SGD."""
    sleep_s: float = 0.0

    def gradient(self, point: np.ndarray, part: str = "all", contrast: None = None) -> np.ndarray:
        """In float64, rounded to the precision of ``point``; the same on any part of the rows."""
        return (self.a @ (point.astype(np.float64) - self.b)).astype(point.dtype)

    def loss(self, point: np.ndarray) -> float:
        off = point.astype(np.float64) - self.b
        return 0.5 * float(off @ self.a @ off)


def descend(
    strategy: Any,
    problem: Quadratic,
    run: LocalRun,
    tick: Tick = lambda *_: None,
    steps: int | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Report:
    """Local training in the precision of ``run.params``: the strategy's direction, SGD with momentum, or Adam."""
    run.lr, run.exact_path = problem.lr, not problem.adam
    optimizer = Adam(problem) if problem.adam else Sgd(problem)
    total = steps or problem.steps
    for step in range(total):
        if problem.sleep_s:
            time.sleep(problem.sleep_s)
        run.params -= problem.lr * optimizer.step(strategy.direction(run, problem.gradient))
        run.path += problem.lr * optimizer.strength
        run.num_steps += 1
        tick("training", step + 1, total)
        if enough():
            break
    return strategy.report(run)


class Sgd:
    """With momentum."""

    def __init__(self, problem: Quadratic) -> None:
        self.momentum, self.velocity, self.strength = problem.momentum, 0.0, 0.0

    def step(self, direction: np.ndarray) -> np.ndarray:
        self.velocity = self.momentum * self.velocity + direction
        self.strength = self.momentum * self.strength + 1.0
        return self.velocity


class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    strength = 1.0

    def __init__(self, problem: Quadratic) -> None:
        self.m = self.v = 0.0
        self.steps = 0

    def step(self, direction: np.ndarray) -> np.ndarray:
        self.steps += 1
        self.m = 0.9 * self.m + 0.1 * direction
        self.v = 0.999 * self.v + 0.001 * direction**2
        v = self.v / (1 - 0.999**self.steps)
        return (self.m / (1 - 0.9**self.steps) / (np.sqrt(v) + 1e-8)).astype(direction.dtype)


class QuadraticTrainer:
    """A `silos.site.Trainer` in plain NumPy."""

    schema_digest = "quadratic"
    device = "cpu"
    loaded = ""

    def __init__(self, job: Job, silo: str, problem: Quadratic) -> None:
        self.job, self.silo, self.problem = job, silo, problem
        self.num_parameters = self.num_shared = problem.b.size
        self.num_examples = {"train": problem.num_rows, "test": problem.num_rows}
        self.buffer = np.zeros(problem.b.size, np.float32)
        self.trained: list[int] = []
        """Versions, in the order of the trainings."""
        self.assessed: list[int] = []

    def describe(self) -> dict[str, Any]:
        return {"entries": [], "input_shape": [self.problem.b.size], "input_dtype": "float32"}

    def begin_with(self, weights: Any, digest: str) -> None:
        raise ValueError("no tensors here")

    def initial(self) -> Parts:
        return {"params": np.zeros(self.problem.b.size, np.float32)}

    def evaluate(self, order: Order) -> MetricSums:
        order.tick("evaluating", 1, 1)
        count = float(self.problem.num_rows)
        return {"loss": Sums("mean", (self.problem.loss(order.received["params"]) * count, count))}

    def assess(self, order: Order) -> Assessment:
        self.assessed.append(order.version)
        models = {"global": Judged(self.evaluate(order), {}, {}, {})}
        return Assessment(models=models, curve=(), accepted=0, num_steps=0, seconds={})

    def most(self, version: int) -> Spend | None:
        return None

    def spends(self, order: Order) -> Spend | None:
        return None

    def train(self, order: Order) -> Trained:
        metrics = self.evaluate(order)
        np.copyto(self.buffer, order.received["params"])
        extra = {name: part for name, part in order.received.items() if name != "params"}
        kept = Kept(order.state, "strategy", self.buffer.size)
        run = LocalRun(params=self.buffer, anchor=order.received["params"], received=extra, kept=kept)
        began = time.perf_counter()
        report = descend(self.job.strategy, self.problem, run, order.tick, order.num_steps, order.enough)
        self.trained.append(order.version)
        return Trained(
            parts=report.parts,
            scalars=dict(report.scalars),
            num_examples=self.problem.num_rows,
            num_steps=run.num_steps,
            metrics=metrics,
            train_metrics={},
            seconds={"train": time.perf_counter() - began},
        )


class Drawing(QuadraticTrainer):
    """Each draw moves its update a little, as another order of batches does."""

    def train(self, order: Order) -> Trained:
        trained = super().train(order)
        trained.parts["delta"][:] += np.float32(1e-3 * order.draw)
        return trained


@dataclass
class PlainSite:
    """A site whose policy allows everything, unless ``refusal`` says why not."""

    name: str
    problem: Quadratic
    folder: Path
    make: Callable[..., Any] = QuadraticTrainer
    trainers: list[Any] = field(default_factory=list)
    refusal: str | None = None
    data: str = "data"
    guard: Guard = field(default_factory=Guard)
    key: Key | None = None
    metrics_rule: MetricsRule = field(default_factory=MetricsRule)
    kept: dict[str, tuple[OwnModel, Mapping[str, Any]]] = field(default_factory=dict)
    """Models by run, and what is known of them."""

    @cached_property
    def identity(self) -> Identity:
        return Identity.kept(self.name, self.folder / "keys" / self.name)

    def review(self, job: Job) -> str | None:
        return self.refusal

    def trainer(self, job: Job) -> Any:
        self.trainers.append(self.make(job, self.name, self.problem))
        return self.trainers[-1]

    def keep(self, run_id: str, own: OwnModel, card: Mapping[str, Any]) -> None:
        self.kept[run_id] = own, card

    def assess(self, trainer: Any, order: Order) -> Assessment:
        found: Assessment = trainer.assess(order)
        return found

    def fingerprint(self, job: Job) -> str:
        return f"{self.data} of {self.name}"

    def files_fingerprint(self, job: Job) -> str:
        return self.fingerprint(job)

    def release(self, metrics: MetricSums) -> MetricSums:
        return metrics if self.metrics_rule.mode in ("open", "noised") else {}

    def release_in_sums(self, metrics: MetricSums) -> MetricSums:
        return metrics

    @property
    def sum_rules(self) -> Rules:
        return Rules()

    def counts(self, trainer: Any) -> dict[str, int]:
        return trainer.num_examples

    def quarantined(self) -> dict[str, int]:
        return {}

    def labels(self) -> dict[str, int]:
        return {}

    @property
    def own_folder(self) -> Path:
        return self.folder / self.name

    def state_folder(self, run_id: str) -> Path:
        return self.folder / self.name / run_id

    @property
    def trained(self) -> list[int]:
        """Versions that this silo trained, over all its processes."""
        return [version for trainer in self.trainers for version in trainer.trained]


ROWS = (100, 300, 50, 550)
STEPS = (1, 5, 10, 3)


def problems(num_silos: int = 4, size: int = 5, seed: int = 0, **options: Any) -> dict[str, Quadratic]:
    """Random well-conditioned quadratics (eigenvalues in [.5, 3]) with unequal numbers of rows.

    ``steps`` may be a sequence: one number for each silo.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(num_silos):
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        a = basis @ np.diag(rng.uniform(0.5, 3, size)) @ basis.T
        own = {
            name: value[i % len(value)] if isinstance(value, tuple) else value
            for name, value in options.items()
        }
        made[f"s{i}"] = Quadratic(a, rng.normal(size=size) * 2, **{"num_rows": ROWS[i % 4], **own})
    return made


def sites(problem_of: dict[str, Quadratic], folder: Path) -> dict[str, PlainSite]:
    return {name: PlainSite(name, problem, folder) for name, problem in problem_of.items()}


def silo_makers(site_of: dict[str, PlainSite]) -> dict[str, Callable[[], Silo]]:
    return {name: lambda site=site: Silo(site) for name, site in site_of.items()}


def job_of(silos: Sequence[str], total: int = 5, **sections: Any) -> Job:
    """A job for quadratic silos; the task section only has to be valid."""
    rounds = {"total": total, "patience_s": 5.0, **sections.pop("rounds", {})}
    document = {
        "name": "quadratic",
        "task": {"name": "tabular", "dataset": "none", "target": "none", "features": ["x"]},
        "silos": list(silos),
        "rounds": rounds,
        **sections,
    }
    return Job.model_validate(document)


# What the algorithms must converge to.


def shares(problem_of: Mapping[str, Quadratic]) -> dict[str, float]:
    """The silos' weights by their numbers of rows, normalised."""
    total = sum(problem.num_rows for problem in problem_of.values())
    return {name: problem.num_rows / total for name, problem in problem_of.items()}


def optimum(problem_of: Mapping[str, Quadratic], weights: Mapping[str, float] | None = None) -> np.ndarray:
    """Minimiser of the weighted sum of the silos' losses."""
    weights = weights or shares(problem_of)
    left = sum(weights[name] * problem.a for name, problem in problem_of.items())
    right = sum(weights[name] * problem.a @ problem.b for name, problem in problem_of.items())
    return np.linalg.solve(left, right)


def fixed_point(
    problem_of: Mapping[str, Quadratic], weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """Where weighted means of ``steps`` gradient steps stay: ``(sum w M)^-1 sum w M b``,
    ``M = I - (I - lr A)^steps`` (notes, oracle 2)."""
    weights = weights or shares(problem_of)
    left, right = 0.0, 0.0
    for name, problem in problem_of.items():
        identity = np.eye(problem.b.size)
        moved = identity - np.linalg.matrix_power(identity - problem.lr * problem.a, problem.steps)
        left, right = left + weights[name] * moved, right + weights[name] * moved @ problem.b
    return np.linalg.solve(left, right)


class Zeros(dict[str, np.ndarray]):
    """A strategy's memory at one silo, in float64."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __missing__(self, name: str) -> np.ndarray:
        return np.zeros(self._size)


def desk(
    strategy: Any,
    problem_of: Mapping[str, Quadratic],
    rounds: int,
    initial: np.ndarray | None = None,
    weights: Mapping[str, float] | None = None,
    part_weights: Mapping[str, Mapping[str, float]] | None = None,
    memory: Mapping[str, Zeros] | None = None,
) -> list[np.ndarray]:
    """The strategy by itself in float64, without transport: parameters of version 0, 1, ...

    ``part_weights`` gives a part of the update other weights than the rest: a mistake that a test plants.
    ``memory``: what the silos keep, for a test that looks at it.
    """
    size = next(iter(problem_of.values())).b.size
    weights = weights or shares(problem_of)
    state = strategy.init({"params": np.zeros(size) if initial is None else initial})
    memory = memory or {name: Zeros(size) for name in problem_of}
    path = [state["params"]]
    for _ in range(rounds):
        received = strategy.broadcast(state)
        extra = {name: part for name, part in received.items() if name != "params"}
        reports = {}
        for name, problem in problem_of.items():
            run = LocalRun(received["params"].copy(), received["params"], extra, memory[name])
            reports[name] = descend(strategy, problem, run)
        names = next(iter(reports.values())).parts
        by_part = {part: (part_weights or {}).get(part, weights) for part in names}
        mean = {
            part: sum(by_part[part][name] * reports[name].parts[part] for name in reports) for part in names
        }
        info = CohortInfo(
            len(problem_of), tuple(weights.values()), tuple(dict(r.scalars) for r in reports.values())
        )
        state = strategy.step(state, mean, info)
        path.append(state["params"])
    return path
