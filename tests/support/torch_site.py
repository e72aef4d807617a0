"""Silos with torch and a small image task in memory, as the driver meets them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.metrics import MetricSums
from orchestrator.job import Job
from silos.assess import assess
from silos.config import Policy
from silos.kept_models import KeptModels
from silos.policy import released
from silos.silo import Silo
from silos.site import Assessment, Guard, Order, OwnModel
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs
from tests.support.quadratic import job_of

LOCAL = {"steps": 3, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}}


@dataclass
class TorchSite:
    """A site with a task, and of a policy what it says of metrics and counts."""

    name: str
    folder: Path
    task: Any
    policy: Policy = field(default_factory=Policy)
    guard: Guard = field(default_factory=Guard)
    assessed: list[int] = field(default_factory=list)
    """Versions, over all its processes."""

    def review(self, job: Job) -> str | None:
        return None

    def trainer(self, job: Job) -> TorchTrainer:
        return TorchTrainer(job, self.name, self.task, "cpu")

    def keep(self, run_id: str, own: OwnModel, card: Mapping[str, Any]) -> None:
        self.models.keep(run_id, own.tensors, card)

    @property
    def models(self) -> KeptModels:
        return KeptModels(self.folder / self.name)

    def assess(self, trainer: TorchTrainer, order: Order) -> Assessment:
        self.assessed.append(order.version)
        return assess(trainer, order)

    def fingerprint(self, job: Job) -> str:
        return f"data of {self.name}"

    def release(self, metrics: MetricSums) -> MetricSums:
        return released(metrics, self.policy)

    def counts(self, trainer: TorchTrainer) -> dict[str, int]:
        return trainer.num_examples if self.policy.share_counts else {}

    def state_folder(self, run_id: str) -> Path:
        return self.folder / self.name / run_id


def blob_sites(folder: Path, names: str = "abc", **given: Any) -> dict[str, TorchSite]:
    """One site for each letter, with data of its own."""
    return {name: TorchSite(name, folder, Blobs(seed), **given) for seed, name in enumerate(names)}


def makers(sites: dict[str, TorchSite]) -> dict[str, Callable[[], Silo]]:
    return {name: lambda site=site: Silo(site) for name, site in sites.items()}


def torch_job(names: str = "abc", total: int = 2, **sections: Any) -> Job:
    return job_of(list(names), total, **{"local": LOCAL, "stop": {"metric": "accuracy"}, **sections})
