"""Silos with torch and a small image task in memory, as the driver meets them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.at_rest import Key
from orchestrator.core.metrics import MetricSums
from orchestrator.job import Job
from orchestrator.privacy.sealing import Rules
from silos.assess import assess
from silos.attacks.attack import attack
from silos.attacks.canaries import planted, secret_in
from silos.attacks.telling import told_of
from silos.config import Policy
from silos.identity import Identity
from silos.kept_models import KeptModels
from silos.metrics_rule import MetricsRule
from silos.policy import released
from silos.silo import Silo
from silos.site import Assessment, Cancelled, Findings, Guard, Order, OwnModel
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
    key: Key | None = None
    assessed: list[int] = field(default_factory=list)
    """Versions, over all its processes."""
    attacked: list[int] = field(default_factory=list)
    """The same."""

    @cached_property
    def identity(self) -> Identity:
        return Identity.kept(self.name, self.folder / "keys" / self.name)

    def review(self, job: Job) -> str | None:
        return None

    def trainer(self, job: Job) -> TorchTrainer:
        task = self.task
        if job.release is not None and job.release.canaries and self.policy.attacks != "none":
            task = planted(task, job.release.canaries, secret_in(self.folder / self.name / "canaries.key"))
        return TorchTrainer(job, self.name, task, "cpu")

    def attack(self, trainer: TorchTrainer, order: Order) -> Findings:
        assert trainer.job.release is not None
        if self.policy.attacks == "none":
            raise Cancelled("policy", f"{self.name} makes no attacks (policy.attacks)")
        self.attacked.append(order.version)
        return attack(trainer, order, trainer.job.release)

    def tell(self, found: Findings) -> Findings:
        return told_of(found, self.policy)

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

    @property
    def metrics_rule(self) -> MetricsRule:
        return MetricsRule(self.policy.metrics, self.policy.metrics_noise_multiplier or 0.0)

    def files_fingerprint(self, job: Job) -> str:
        return self.fingerprint(job)

    def release(self, metrics: MetricSums) -> MetricSums:
        return released(metrics, self.policy)

    def release_in_sums(self, metrics: MetricSums) -> MetricSums:
        return metrics

    @property
    def sum_rules(self) -> Rules:
        return Rules()

    def counts(self, trainer: TorchTrainer) -> dict[str, int]:
        return trainer.num_examples if self.policy.share_counts else {}

    def quarantined(self) -> dict[str, int]:
        return {}

    def labels(self) -> dict[str, int]:
        return {}

    @property
    def own_folder(self) -> Path:
        return self.folder / self.name

    def state_folder(self, run_id: str) -> Path:
        return self.folder / self.name / run_id


def blob_sites(folder: Path, names: str = "abc", **given: Any) -> dict[str, TorchSite]:
    """One site for each letter, with data of its own."""
    return {name: TorchSite(name, folder, Blobs(seed), **given) for seed, name in enumerate(names)}


def makers(sites: dict[str, TorchSite]) -> dict[str, Callable[[], Silo]]:
    return {name: lambda site=site: Silo(site) for name, site in sites.items()}


def torch_job(names: str = "abc", total: int = 2, **sections: Any) -> Job:
    return job_of(list(names), total, **{"local": LOCAL, "stop": {"metric": "accuracy"}, **sections})
