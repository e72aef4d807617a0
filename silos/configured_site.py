"""The site that ``silo.yaml`` describes: real data, torch, the organisation's policy."""

import os
import platform
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.at_rest import Key
from orchestrator.core.errors import BadInput
from orchestrator.core.metrics import MetricSums
from orchestrator.job import Job
from orchestrator.privacy.sealing import FEWEST, Rules
from orchestrator.strategies.fedmd import FedMD
from orchestrator.task import Task
from silos.approvals import Approvals
from silos.config import DatasetConfig, SiloConfig, load_silo
from silos.files import stamp
from silos.guard import PolicyGuard
from silos.identity import Identity
from silos.kept_models import KeptModels
from silos.metrics_rule import MetricsRule
from silos.odometer import Account, Odometer
from silos.policy import in_sums, released, review
from silos.site import Assessment, Cancelled, Findings, Order, OwnModel

if TYPE_CHECKING:
    from silos.freezing import Manifests
    from silos.job_data import JobData
    from silos.manifest import Manifest

DOCUMENT = "SILORAY_SILO"
"""Names, on a node, its silo document."""
NODE_FILE = "/etc/siloray/silo.yaml"
"""Where that lies if nothing names it."""


class ConfiguredSite:
    """Reads the document when it is made, and again when it has changed; torch and the data only when a job comes."""

    def __init__(self, path: Path, foreign_driver: bool = False, credentials: Path | None = None) -> None:
        """``foreign_driver``: the driver is another organisation's, also where the document has no ``connection``.
        ``credentials``: the folder that counts in place of the one named there."""
        self.path, self._foreign_driver, self._credentials = path, foreign_driver, credentials
        self._read_as = stamp(path)
        self.config: SiloConfig = load_silo(path)
        self.name = self.config.name
        self._opened: JobData | None = None

    def review(self, job: Job) -> str | None:
        """By the documents as they are now; raises `BadInput` where one cannot be read."""
        self._read_anew()
        return review(job, self.config) or self._unapproved(job)

    def _read_anew(self) -> None:
        """What the policy says binds a run in hand; data and machine are opened anew when the silo joins a run."""
        now = stamp(self.path)
        if now == self._read_as:
            return
        config = load_silo(self.path)
        if config.name != self.name:
            raise BadInput(f"{self.path}: names the silo '{config.name}', and this process is '{self.name}'")
        self.config, self._read_as = config, now
        self.guard.obey(config)

    def _unapproved(self, job: Job) -> str | None:
        if self.config.policy.approval == "none":
            return None
        return Approvals(self.own_folder).refusal(job, self.name)

    @cached_property
    def guard(self) -> PolicyGuard:
        return PolicyGuard(self.config, self.own_folder, foreign_driver=self._foreign_driver)

    @cached_property
    def identity(self) -> Identity:
        """Raises `BadInput` where its key can be neither read nor made."""
        return Identity.of(self.config, self.own_folder, self.path, self._credentials)

    @property
    def own_folder(self) -> Path:
        """What the silo writes: approvals, audit, ledger, state of runs."""
        return self._folder / ".siloray" / self.name

    @property
    def odometer(self) -> Odometer:
        """Of all its data."""
        return self.guard.odometer

    def accounts(self) -> list[Account]:
        """Its data sets as they are now; without a fingerprint where the files cannot be read."""
        return [
            Account(name, self._fingerprint_of(name), dataset.budget)
            for name, dataset in self.config.datasets.items()
        ]

    def _fingerprint_of(self, dataset: str) -> str:
        from silos.data import open_data

        try:
            return open_data(self.config.datasets[dataset], self._folder).fingerprint
        except BadInput:
            return ""

    @property
    def models(self) -> KeptModels:
        """Of its runs, for its owner."""
        return KeptModels(self.own_folder, self.key)

    @property
    def manifests(self) -> "Manifests":
        """Of its data sets, for its owner."""
        from silos.freezing import Manifests

        return Manifests(self.own_folder)

    def manifest(self, dataset: str) -> "Manifest":
        """Of the data set as it is now. Raises `BadInput`."""
        from silos.data import open_data

        return self.manifests.of(dataset, open_data(self.config.datasets[dataset], self._folder))

    def approve(
        self, job: Job, who: str, when: str, code: dict[str, str], data: "Mapping[str, Manifest]"
    ) -> None:
        """The job may run with this code and this data, which somebody has seen. Raises `BadInput`."""
        digests = {name: manifest.digest for name, manifest in data.items()}
        facts = {"job": job.name, "job_digest": job.digest, "who": who, "code": code, "data": digests}
        self.guard.audit.write("approved", **facts)
        for name, manifest in data.items():
            self.manifests.keep(name, manifest)
        Approvals(self.own_folder).add(job, who, when, code, digests)

    @cached_property
    def key(self) -> Key | None:
        at_rest = self.config.at_rest
        return None if at_rest is None else at_rest.key.key(self._folder)

    def trainer(self, job: Job) -> Any:
        from silos.trainer import TorchTrainer

        local = self.config.local
        self._opened = self._data(job, job.task.dataset)
        if isinstance(job.strategy, FedMD):
            return self._distiller(job, job.strategy)
        task = self._planted(job, self._task(job.task, self._opened.data))
        return TorchTrainer(job, self.name, task, local.device, local.applied(job.local), local.rhythm)

    def assess(self, trainer: Any, order: Order) -> Assessment:
        from silos.assess import assess

        return assess(trainer, order)

    def attack(self, trainer: Any, order: Order) -> Findings:
        if self.config.policy.attacks == "none":
            raise Cancelled("policy", f"{self.name} makes no attacks (policy.attacks)")
        from silos.attacks.attack import attack

        found = attack(trainer, order, trainer.job.release)
        figures = {"verdicts": dict(found.verdicts), "scores": dict(found.scores), "why": dict(found.why)}
        self.guard.audit.write("attacks made", version=order.version, rows=found.num_rows, **figures)
        return found

    def tell(self, found: Findings) -> Findings:
        from silos.attacks.telling import told_of

        budgeted = any(each.budget is not None for each in self.config.datasets.values())
        return told_of(found, self.config.policy, budgeted)

    def _distiller(self, job: Job, strategy: FedMD) -> Any:
        from silos.distiller import Distiller, Public

        local, data = self.config.local, self._data(job, strategy.public).data
        public = Public.of(self._task(job.task, data), data.fingerprint)
        task = self._task(local.with_model(job.task), self._opened.data)
        return Distiller(job, self.name, task, public, local.device, local.applied(job.local), local.rhythm)

    def _task(self, spec: Task, data: Any) -> Any:
        from silos.tasks.build import build_on

        return build_on(spec, data, self.config.local.workers, self.config.policy.allow_code)

    def _planted(self, job: Job, task: Any) -> Any:
        """With the canaries that the job asks for, unless the policy is against attacks."""
        if job.release is None or not job.release.canaries or self.config.policy.attacks == "none":
            return task
        from silos.attacks.canaries import planted, secret_in

        return planted(
            task, job.release.canaries, secret_in(self.own_folder / "canaries" / f"{job.digest}.key")
        )

    def keep(self, run_id: str, own: OwnModel, card: Mapping[str, Any]) -> None:
        digest = self.models.keep(run_id, own.tensors, card)
        self.guard.audit.write(
            "model kept", run=run_id, model=own.kind, version=card["version"], sha256=digest
        )

    def fingerprint(self, job: Job) -> str:
        """Of what `trainer` opened, whatever has become of it since."""
        assert self._opened is not None
        return self._opened.fingerprint

    def files_fingerprint(self, job: Job) -> str:
        assert self._opened is not None
        return str(self._opened.data.fingerprint)

    @property
    def metrics_rule(self) -> MetricsRule:
        policy = self.config.policy
        return MetricsRule(policy.metrics, policy.metrics_noise_multiplier or 0.0)

    def release(self, metrics: MetricSums) -> MetricSums:
        return released(metrics, self.config.policy)

    def release_in_sums(self, metrics: MetricSums) -> MetricSums:
        return in_sums(metrics, self.config.policy)

    @property
    def sum_rules(self) -> Rules:
        policy = self.config.policy
        seconds = None if policy.allow_second == "all" else policy.allow_second
        return Rules(least=max(FEWEST, policy.min_cohort), seconds=seconds)

    def counts(self, trainer: Any) -> dict[str, int]:
        return dict(trainer.num_examples) if self.config.policy.share_counts else {}

    def quarantined(self) -> dict[str, int]:
        known = self._opened.quarantined if self._opened is not None else {}
        return known if self.config.policy.share_counts else {}

    def labels(self) -> dict[str, int]:
        known = self._opened.labels if self._opened is not None else {}
        policy = self.config.policy
        return known if policy.share_labels and policy.share_counts else {}

    def describe(self) -> dict[str, Any]:
        self._read_anew()
        shared = self.config.datasets if self.config.policy.share_counts else {}
        return {
            "node": platform.node(),
            "device": self.config.local.device,
            "datasets": {name: self._rows(dataset) for name, dataset in shared.items()},
        }

    def _rows(self, dataset: DatasetConfig) -> dict[str, int]:
        from silos.data import open_data

        data = open_data(dataset, self._folder)
        return {split: len(data.rows(split)) for split in ("train", "test")}

    def state_folder(self, run_id: str) -> Path:
        return self.own_folder / "runs" / run_id

    @cached_property
    def _folder(self) -> Path:
        return self.path.absolute().parent

    def _data(self, job: Job, dataset: str) -> "JobData":
        """Anew for each run: rows may have changed since the last one."""
        from silos.job_data import open_job_data

        return open_job_data(job, dataset, self.config, self._folder, self.own_folder)


def site_here(name: str, path: str | None, foreign_driver: bool = False) -> ConfiguredSite:
    """The site of the silo that this process is to be; raises `BadInput` on another silo's machine."""
    where = Path(path or os.environ.get(DOCUMENT, NODE_FILE))
    site = ConfiguredSite(where, foreign_driver)
    if site.name != name:
        raise BadInput(f"{where} on this machine belongs to the silo '{site.name}', not to '{name}'")
    return site
