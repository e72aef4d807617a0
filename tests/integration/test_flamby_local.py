"""FLamby's published table, exactly: 6 rules x 5 seeds x (4 hospitals and the pooled test set).

Through real silos in this process.

Real data, `silos.configured_site`, the torch trainer, pipeline, store and driver; only the order of the batches and
the first weights are FLamby's (``tests/support/flamby.py``). "Equal" means that the same patients are classified
right. The same over Ray: ``test_flamby_ray.py``.
"""

import asyncio
import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.core import events
from orchestrator.core.faults import FaultInjected, arm
from orchestrator.driver import Driver
from orchestrator.job import Job
from orchestrator.task import Tabular
from orchestrator.transport.local import LocalChannel
from silos.config import load_silo
from silos.configured_site import ConfiguredSite
from silos.data import open_data
from silos.silo import Silo
from silos.tasks.tabular import TabularTask
from tests.support.federation import Ended, double_counts, federate, journal
from tests.support.flamby import HOSPITALS, RULES, SEEDS, SHARED, SPEC, job, published
from tests.support.scratch import scratch
from tests.support.shared_data import needs

pytestmark = needs(SHARED)
DATA = Path(__file__).parents[2] / "examples" / "heart_disease" / "silos"
QUICK = dict(zip(RULES, (42, 43, 44, 45, 46, 42), strict=True))
CELLS = [
    pytest.param(rule, seed, marks=[] if QUICK[rule] == seed else pytest.mark.slow)
    for rule in RULES
    for seed in SEEDS
]


def hospitals(folder: Path) -> dict[str, Any]:
    """Makers of the four silos, each from its own silo.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in HOSPITALS:
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\n"
            f"datasets:\n  heart: {{path: {DATA / name / name}.parquet, splits: {{column: fold}}}}\n"
            "policy: {allow_code: [tests.support.flamby], min_cohort: 3}\n"
        )
    return {name: lambda name=name: Silo(ConfiguredSite(folder / f"{name}.yaml")) for name in HOSPITALS}


def run(document: Mapping[str, Any], folder: Path, **options: Any) -> Ended:
    return federate(Job.model_validate(document), hospitals(folder / "silos"), folder, limit_s=300, **options)


def cells(ended: Ended) -> list[float]:
    """Accuracy of the last version at each hospital."""
    (last,) = ended.of(events.VersionEvaluated)
    return [last.evaluated.silos[name]["accuracy"] for name in HOSPITALS]


def check(ended: Ended, rule: str, seed: int) -> None:
    assert ended.outcome.status == "done" and not ended.refusals
    assert cells(ended) == pytest.approx(published()[rule, seed], abs=1e-5)


@cache
def pooled_rows() -> tuple[np.ndarray, np.ndarray]:
    """All test rows together, standardised by all training rows together: FLamby's pooled test set."""
    spec = Tabular.model_validate({**SPEC, "standardise": False})
    with scratch() as folder:
        hospitals(folder)
        described = [load_silo(folder / f"{name}.yaml").datasets["heart"] for name in HOSPITALS]
        raw = [TabularTask(spec, open_data(each, folder)) for each in described]
    train = torch.cat([task._tensors["train"][0] for task in raw]).double()
    rows, labels = (torch.cat([task._tensors["test"][i] for task in raw]) for i in (0, 1))
    return ((rows.double() - train.mean(0)) / (train.std(0) + 1e-9)).numpy(), labels.numpy() > 0.5


def pooled_accuracy(params: np.ndarray) -> float:
    inputs, labels = pooled_rows()
    return float(((inputs @ params[:13] + params[13] > 0) == labels).mean())


@cache
def published_pooled() -> dict[tuple[str, int], float]:
    with (SHARED / "flamby_published.csv").open() as file:
        return {(row["method"], int(row["seed"])): float(row["pooled_test"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("rule, seed", CELLS)
def test_the_published_cells(tmp_path: Path, rule: str, seed: int) -> None:
    ended = run(job(rule, seed), tmp_path)
    check(ended, rule, seed)
    assert ended.contributors == [list(HOSPITALS)] * 15
    assert pooled_accuracy(ended.params) == pytest.approx(published_pooled()[rule, seed], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule, seed", [("Scaffold", 43), *((rule, 44) for rule in RULES)])
def test_hospitals_that_answer_in_any_order(tmp_path: Path, rule: str, seed: int) -> None:
    ended = run(job(rule, seed, options={"pause_s": 0.03}), tmp_path)
    check(ended, rule, seed)
    arrivals = [event.silo for event in ended.of(events.UpdateArrived)]
    assert len({tuple(arrivals[at : at + 4]) for at in range(0, 60, 4)}) > 1, "the order must really vary"


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule, seed, point",
    [
        ("FedYogi", 44, "round.folded:7"),
        *(
            (rule, 45, f"{point}:{nth}")
            for rule, point, nth in zip(
                RULES,
                (
                    "round.closed",
                    "state.stepped",
                    "checkpoint.renamed",
                    "commit.done",
                    "update.arrived",
                    "silo.launched",
                ),
                (3, 14, 9, 5, 22, 41),
                strict=True,
            )
        ),
    ],
)
def test_resumed_in_mid_run(tmp_path: Path, rule: str, seed: int, point: str) -> None:
    """The driver dies, and with it all silo processes; the same command goes on."""
    try:
        arm(f"{point}:raise")
        with pytest.raises(FaultInjected):
            run(job(rule, seed), tmp_path)
    finally:
        arm(None)
    check(run(job(rule, seed), tmp_path), rule, seed)
    assert not double_counts(journal(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("rule, seed", [("Scaffold", 45), *((rule, 46) for rule in RULES)])
def test_one_hospital_restarted_in_mid_run(tmp_path: Path, rule: str, seed: int) -> None:
    """Its process ends while it trains version 5: it loses what it has in memory, and is asked again."""

    def during(driver: Driver, channel: LocalChannel, event: Any) -> None:
        if isinstance(event, events.SiloLaunched) and (event.silo, event.version, event.attempt) == (
            "va",
            5,
            1,
        ):
            asyncio.get_running_loop().create_task(channel.restart("va"))

    ended = run(job(rule, seed), tmp_path, during=during)
    check(ended, rule, seed)
    assert [(down.silo, down.version) for down in ended.of(events.SiloDown)] == [("va", 5)]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(42,), SEEDS], ids=["one seed", "five seeds"])
def test_weighted_and_unweighted_means_are_told_apart(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """FedAvg, converged (lr .03): accuracy on the pooled test rows .777 by examples, .720 with equal weights;
    each hospital's own, mean over seeds, .7500 .7551 .7500 .6000 and .6846 .6404 .8125 .7556."""
    found, own = {}, {}
    for weights in ("examples", "uniform"):
        ends = [
            run(job("FedAvg", seed, lr=0.03, combine={"weights": weights}), tmp_path / f"{weights}{seed}")
            for seed in seeds
        ]
        found[weights] = fmean(pooled_accuracy(ended.params) for ended in ends)
        own[weights] = [fmean(each) for each in zip(*map(cells, ends), strict=True)]
    print(found, own)
    assert found["examples"] == pytest.approx(0.777, abs=0.006)
    assert found["uniform"] == pytest.approx(0.720, abs=0.008)
    assert own["examples"] == pytest.approx([0.7500, 0.7551, 0.7500, 0.6000], abs=0.012)
    assert own["uniform"] == pytest.approx([0.6846, 0.6404, 0.8125, 0.7556], abs=0.012)
