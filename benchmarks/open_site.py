"""A silo's site without rules, for benchmarks in one process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.metrics import MetricSums
from orchestrator.job import Job
from silos.site import Assessment, Guard, Order
from silos.tasks.task import Task
from silos.trainer import TorchTrainer


@dataclass
class OpenSite:
    """Trains the task in memory on the CPU, by ``made``; nothing is compared at the end of a run."""

    name: str
    task: Task
    folder: Path
    made: type[TorchTrainer] = TorchTrainer
    guard: Guard = field(default_factory=Guard)

    def review(self, job: Job) -> str | None:
        return None

    def trainer(self, job: Job) -> TorchTrainer:
        return self.made(job, self.name, self.task, "cpu")

    def assess(self, trainer: Any, order: Order) -> Assessment:
        """Nothing: silos alone would have to train once more."""
        return Assessment(models={}, curve=(), accepted=0, num_steps=0, seconds={})

    def fingerprint(self, job: Job) -> str:
        return self.name

    def release(self, metrics: MetricSums) -> MetricSums:
        return metrics

    def counts(self, trainer: Any) -> dict[str, int]:
        return dict(trainer.num_examples)

    def describe(self) -> dict[str, Any]:
        return {}

    def state_folder(self, run_id: str) -> Path:
        return self.folder / self.name / run_id
