"""The data that a job gets at a silo: opened, as it was approved, and without what is quarantined."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.job import Job
from silos.approvals import Approvals
from silos.config import SiloConfig
from silos.data import open_data
from silos.files import places
from silos.freezing import Manifests
from silos.quarantine import Quarantine, contract_of


@dataclass(frozen=True)
class JobData:
    """One data set of a job."""

    data: Any
    """`TableData` or `ImageFolder`."""
    fingerprint: str
    """Of the manifest, where the organisation has the data frozen; else of the files."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Samples by split; empty where there is no contract."""
    labels: dict[str, int] = field(default_factory=dict)
    """Training rows by class; empty where there is no contract."""


def open_job_data(job: Job, dataset: str, config: SiloConfig, folder: Path, own_folder: Path) -> JobData:
    """``folder``: that of ``silo.yaml``; ``own_folder``: where the silo keeps its records. Raises `BadInput`: the data
    cannot be read, changed since it was approved, or breaks the contract."""
    described = config.datasets[dataset]
    _check_one_account(dataset, config, folder)
    data = open_data(described, folder)
    fingerprint = _as_approved(job, dataset, config, data, own_folder)
    contract = contract_of(job, described) if dataset == job.task.dataset else None
    if contract is None:
        return JobData(data, fingerprint or data.fingerprint)
    from silos.inspection import inspect

    quarantine = Quarantine(own_folder, dataset)
    found = quarantine.found(
        job, described, data.files, contract, lambda: inspect(job.task, data, contract, config.local.workers)
    )
    quarantine.judge(contract, found, config.policy)
    return JobData(
        data.without(each.row for each in found.findings),
        fingerprint or data.fingerprint,
        dict(found.facts.quarantined),
        dict(found.facts.labels),
    )


def _as_approved(job: Job, dataset: str, config: SiloConfig, data: Any, own_folder: Path) -> str:
    """Digest of the manifest that the organisation has seen; empty where it does not ask for one."""
    policy = config.policy
    if policy.approval == "none" and policy.freeze == "none":
        return ""
    manifests, counts = Manifests(own_folder), policy.share_counts
    now = manifests.of(dataset, data)
    if policy.approval == "required":
        approval = Approvals(own_folder).all().get(job.digest)
        pinned = approval.data.get(dataset) if approval is not None else None
        remedy = "run 'siloray approve job.yaml' at the silo again"
        manifests.check(dataset, now, pinned, "the job was approved", remedy, counts)
    if policy.freeze == "required":
        frozen = manifests.frozen().get(dataset)
        remedy = "run 'siloray silo freeze' at the silo"
        manifests.check(
            dataset, now, frozen.digest if frozen else None, "the data was frozen", remedy, counts
        )
    return now.digest


def _check_one_account(dataset: str, config: SiloConfig, folder: Path) -> None:
    """Raises `BadInput` where another entry reads the same files, and one of the two has a budget: what is asked under
    one name would not count under the other."""
    budgets = {name: described.budget for name, described in config.datasets.items()}
    others = [name for name in sorted(budgets) if name != dataset and (budgets[name] or budgets[dataset])]
    ours = _places(dataset, config, folder) if others else set()
    for other in others:
        theirs = _places(other, config, folder)
        if ours & _with_folders(theirs) or theirs & _with_folders(ours):
            what = f"datasets: '{dataset}' and '{other}' read the same files, and a privacy budget is of one entry"
            raise BadInput(f"silo.yaml: {what}; give the rows one entry", f"{what}; give the rows one entry")


def _places(dataset: str, config: SiloConfig, folder: Path) -> set[Path]:
    """Files and folders that it names; none where one is not there."""
    try:
        return {place.path.resolve() for place in places(config.datasets[dataset], folder)}
    except BadInput:
        return set()


def _with_folders(paths: set[Path]) -> set[Path]:
    return paths | {folder for path in paths for folder in path.parents}
