"""What record-level differential privacy costs in accuracy: `python -m benchmarks.dp_digits`.

The eight organisations of ``examples/digits`` with ``dp_sgd.yaml`` (epsilon 8 at delta 1e-5 for every record of every
silo, over the whole job), with the same job without noise, and with ``job.yaml``. Accuracy of the last version on all
silos' test rows, mean and standard deviation over seeds of the job. The noise is new in every run.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
import yaml

from benchmarks import measure
from orchestrator.core import events
from orchestrator.driver import Driver
from orchestrator.job import Job, load_job
from orchestrator.store import Store
from orchestrator.transport.local import LocalChannel
from silos.configured_site import ConfiguredSite
from silos.silo import Silo

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"


def silo_of(name: str, folder: Path) -> Callable[[], Silo]:
    """The example's silo, which keeps what it writes in another folder."""
    given = yaml.safe_load((EXAMPLE / "silos" / name / "silo.yaml").read_text(encoding="utf-8"))
    for dataset in given["datasets"].values():
        dataset["path"] = str(EXAMPLE / "silos" / name / dataset["path"])
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    return lambda: Silo(ConfiguredSite(path))


def accuracy(job: Job) -> float:
    """Of the last version, over all silos' test rows."""
    seen: list[events.Event] = []
    with tempfile.TemporaryDirectory(prefix="dp-digits") as name:
        folder = Path(name)
        channel = LocalChannel({silo: silo_of(silo, folder) for silo in job.silos})
        try:
            asyncio.run(Driver(job, channel, Store(folder / "run"), "run", observe=seen.append).run())
        finally:
            channel.close()
    (last,) = [event for event in seen if isinstance(event, events.VersionEvaluated)]
    return last.evaluated.overall["accuracy"]


def variants(seed: int) -> dict[str, Job]:
    """The three jobs with this seed."""
    private = load_job(EXAMPLE / "dp_sgd.yaml")
    common = {"seed": seed, "report": private.report.model_copy(update={"silos": False})}
    return {
        "job.yaml": load_job(EXAMPLE / "job.yaml").model_copy(update=common),
        "dp_sgd.yaml without its noise": private.model_copy(update={**common, "privacy": ()}),
        "dp_sgd.yaml": private.model_copy(update=common),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for seed in given.seeds:
        for name, job in variants(seed).items():
            found.setdefault(name, []).append(accuracy(job))
    plain = mean(found["job.yaml"])
    rows = [
        (name, f"{mean(each):.4f} ± {stdev(each) if len(each) > 1 else 0:.4f}", f"{mean(each) / plain:.1%}")
        for name, each in found.items()
    ]
    print(measure.markdown_table(["job", "accuracy", "of job.yaml's"], rows))
    if given.json is not None:
        measure.write_json(given.json, {"machine": measure.machine(), "accuracy": found})


if __name__ == "__main__":
    main()
