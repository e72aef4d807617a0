"""A silo's site without rules, for benchmarks in one process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.metrics import MetricSums
from orchestrator.job import Job
from orchestrator.privacy.sealing import Rules
from silos.identity import Identity
from silos.metrics_rule import MetricsRule
from silos.site import Assessment, Guard, Order

if TYPE_CHECKING:
    from silos.tasks.task import Task


@dataclass
class OpenSite:
    """Trains the task in memory on the CPU, by ``made``; nothing is compared at the end of a run."""

    name: str
    task: "Task | None"
    folder: Path
    made: Callable[..., Any] | None = None
    """A `silos.trainer.TorchTrainer`, if nothing is given."""
    guard: Guard = field(default_factory=Guard)
    key: None = None
    metrics_rule: MetricsRule = field(default_factory=MetricsRule)

    @cached_property
    def identity(self) -> Identity:
        return Identity.kept(self.name, self.folder / "keys" / self.name)

    def review(self, job: Job) -> str | None:
        return None

    def trainer(self, job: Job) -> Any:
        if self.made is None:
            from silos.trainer import TorchTrainer as made
        else:
            made = self.made
        return made(job, self.name, self.task, "cpu")

    def assess(self, trainer: Any, order: Order) -> Assessment:
        """Nothing: silos alone would have to train once more."""
        return Assessment(models={}, curve=(), accepted=0, num_steps=0, seconds={})

    def fingerprint(self, job: Job) -> str:
        return self.name

    def files_fingerprint(self, job: Job) -> str:
        return self.fingerprint(job)

    def release_in_sums(self, metrics: MetricSums) -> MetricSums:
        return metrics

    @property
    def sum_rules(self) -> Rules:
        return Rules()

    def release(self, metrics: MetricSums) -> MetricSums:
        return metrics

    def counts(self, trainer: Any) -> dict[str, int]:
        return dict(trainer.num_examples)

    def describe(self) -> dict[str, Any]:
        return {}

    def quarantined(self) -> dict[str, int]:
        return {}

    def labels(self) -> dict[str, int]:
        return {}

    def state_folder(self, run_id: str) -> Path:
        return self.folder / self.name / run_id
