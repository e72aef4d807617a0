"""A federation of torch silos on the images of `tests.support.blobs`, in this process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.job import Job
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs
from tests.support.federation import Ended, federate
from tests.support.quadratic import PlainSite, job_of, silo_makers

LOCAL = {
    "epochs": 1,
    "batch_size": 8,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2},
}


def blob_job(total: int = 3, silos: tuple[str, ...] = ("a", "b"), **sections: Any) -> Job:
    """Patience enough for a busy machine."""
    rounds = {"patience_s": 60.0, **sections.pop("rounds", {})}
    return job_of(silos, total, local=LOCAL, rounds=rounds, stop={"metric": "accuracy"}, **sections)


def blob_sites(
    job: Job, folder: Path, make: Callable[[int], Any] = Blobs, **seeds: int
) -> Mapping[str, PlainSite]:
    """One per silo of the job; ``make`` builds the task from the silo's number, or from the seed given for it."""

    def site(name: str, seed: int) -> PlainSite:
        task = make(seed)
        return PlainSite(
            name, task, folder, make=lambda job, silo, task: TorchTrainer(job, silo, task, "cpu")
        )

    return {name: site(name, seeds.get(name, number)) for number, name in enumerate(job.silos)}


def run_blobs(job: Job, folder: Path, make: Callable[[int], Any] = Blobs, **options: Any) -> Ended:
    """Run the job to its end, or go on with it."""
    sites = dict(blob_sites(job, folder / "silos", make))
    return federate(job, silo_makers(sites), folder, limit_s=120.0, **options)
