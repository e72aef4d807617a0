"""The site that ``silo.yaml`` describes: real data, torch, the organisation's policy."""

import os
import platform
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.metrics import MetricSums
from orchestrator.job import Job
from orchestrator.strategies.fedmd import FedMD
from orchestrator.task import Task
from silos.approvals import Approvals
from silos.config import DatasetConfig, SiloConfig, load_silo
from silos.guard import PolicyGuard
from silos.kept_models import KeptModels
from silos.policy import released, review
from silos.site import Assessment, Order, OwnModel

DOCUMENT = "SILORAY_SILO"
"""Names, on a node, its silo document."""
NODE_FILE = "/etc/siloray/silo.yaml"
"""Where that lies if nothing names it."""


class ConfiguredSite:
    """Reads the document when it is made, and again when it has changed; torch and the data only when a job comes."""

    def __init__(self, path: Path, foreign_driver: bool = False) -> None:
        """``foreign_driver``: the driver is another organisation's, also where the document has no ``connection``."""
        self.path, self._foreign_driver = path, foreign_driver
        self._read_as = _stamp(path)
        self.config: SiloConfig = load_silo(path)
        self.name = self.config.name
        self._opened: Any = None

    def review(self, job: Job) -> str | None:
        """By the documents as they are now; raises `BadInput` where one cannot be read."""
        self._read_anew()
        return review(job, self.config) or self._unapproved(job)

    def _read_anew(self) -> None:
        """What the policy says binds a run in hand; data and machine are opened anew when the silo joins a run."""
        stamp = _stamp(self.path)
        if stamp == self._read_as:
            return
        config = load_silo(self.path)
        if config.name != self.name:
            raise BadInput(f"{self.path}: names the silo '{config.name}', and this process is '{self.name}'")
        self.config, self._read_as = config, stamp
        self.guard.policy = config.policy

    def _unapproved(self, job: Job) -> str | None:
        if self.config.policy.approval == "none":
            return None
        return Approvals(self.own_folder).refusal(job, self.name)

    @cached_property
    def guard(self) -> PolicyGuard:
        return PolicyGuard(self.config, self.own_folder, foreign_driver=self._foreign_driver)

    @property
    def own_folder(self) -> Path:
        """What the silo writes: approvals, audit, ledger, state of runs."""
        return self._folder / ".siloray" / self.name

    @property
    def models(self) -> KeptModels:
        """Of its runs, for its owner."""
        return KeptModels(self.own_folder)

    def trainer(self, job: Job) -> Any:
        from silos.trainer import TorchTrainer

        local = self.config.local
        self._opened = self._data(job.task.dataset)
        if isinstance(job.strategy, FedMD):
            return self._distiller(job, job.strategy)
        task = self._task(job.task, self._opened)
        return TorchTrainer(job, self.name, task, local.device, local.applied(job.local), local.rhythm)

    def assess(self, trainer: Any, order: Order) -> Assessment:
        from silos.assess import assess

        return assess(trainer, order)

    def _distiller(self, job: Job, strategy: FedMD) -> Any:
        from silos.distiller import Distiller, Public

        local, data = self.config.local, self._data(strategy.public)
        public = Public.of(self._task(job.task, data), data.fingerprint)
        task = self._task(local.with_model(job.task), self._opened)
        return Distiller(job, self.name, task, public, local.device, local.applied(job.local), local.rhythm)

    def _task(self, spec: Task, data: Any) -> Any:
        from silos.tasks.build import build_on

        return build_on(spec, data, self.config.local.workers, self.config.policy.allow_code)

    def keep(self, run_id: str, own: OwnModel, card: Mapping[str, Any]) -> None:
        digest = self.models.keep(run_id, own.tensors, card)
        self.guard.audit.write(
            "model kept", run=run_id, model=own.kind, version=card["version"], sha256=digest
        )

    def fingerprint(self, job: Job) -> str:
        """Of what `trainer` opened, whatever has become of it since."""
        fingerprint: str = self._opened.fingerprint
        return fingerprint

    def release(self, metrics: MetricSums) -> MetricSums:
        return released(metrics, self.config.policy)

    def counts(self, trainer: Any) -> dict[str, int]:
        return dict(trainer.num_examples) if self.config.policy.share_counts else {}

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

    def _data(self, dataset: str) -> Any:
        """Anew for each run: rows may have changed since the last one."""
        from silos.data import open_data

        return open_data(self.config.datasets[dataset], self._folder)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Another one when the file has changed; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def site_here(name: str, path: str | None, foreign_driver: bool = False) -> ConfiguredSite:
    """The site of the silo that this process is to be; raises `BadInput` on another silo's machine."""
    where = Path(path or os.environ.get(DOCUMENT, NODE_FILE))
    site = ConfiguredSite(where, foreign_driver)
    if site.name != name:
        raise BadInput(f"{where} on this machine belongs to the silo '{site.name}', not to '{name}'")
    return site
