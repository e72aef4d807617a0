"""FLamby's published table, exactly, through real silo processes on Ray.

With the published initial weights and order of batches, every hospital must get the very patients right that it
got right in the published run: 6 rules x 5 seeds x 4 hospitals = 120 accuracies. Again with hospitals that answer
in any order, with one killed while it trains, with the driver killed, and after stopping and going on.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.job import Job
from tests.support import flamby
from tests.support.nodes import Nodes
from tests.support.running import Running, launched

RULES_AND_SEEDS = [
    pytest.param(rule, seed, id=f"{rule}-{seed}") for rule in flamby.RULES for seed in flamby.SEEDS
]
EACH_RULE = [pytest.param(rule, 42 + number % 5, id=rule) for number, rule in enumerate(flamby.RULES)]

pytestmark = pytest.mark.skipif(
    not (flamby.SHARED / "flamby_schedule.npz").is_file(), reason=f"no published runs in {flamby.SHARED}"
)


def published_job(rule: str, seed: int, **options: Any) -> Job:
    return Job.model_validate(flamby.job(rule, seed, options=options))


def check_cells(summary: dict[str, Any], rule: str, seed: int) -> None:
    """All rounds once, everybody in each, and the four published accuracies."""
    assert summary["status"] == "done", summary["reason"]
    assert [version["version"] for version in summary["versions"]] == list(range(1, 16))
    assert all(len(version["contributors"]) == 4 for version in summary["versions"])
    found = summary["versions"][-1]["metrics"]["silos"]
    cells = [found[name]["accuracy"] for name in flamby.HOSPITALS]
    assert cells == pytest.approx(flamby.published()[rule, seed], abs=1e-5, rel=0)


@pytest.mark.parametrize(
    ("rule", "seed"), [("FedAvg", 42), pytest.param("Scaffold", 44, marks=pytest.mark.slow)]
)
def test_published_cells(ray_here: Any, heart_silos: Path, tmp_path: Path, rule: str, seed: int) -> None:
    """Two published runs, each with silo processes of its own."""
    running = Running(ray_here, published_job(rule, seed), heart_silos, tmp_path / "runs")
    check_cells(running.finish(), rule, seed)


@pytest.fixture(scope="module")
def hospitals(ray_here: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A node of its own for each hospital; its silo process stays from run to run."""
    from tests.integration.conftest import write_silos

    silos = write_silos(tmp_path_factory.mktemp("hospitals") / "silos")
    with Nodes({name: silos / f"{name}.yaml" for name in flamby.HOSPITALS}):
        yield


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("rule", "seed"), RULES_AND_SEEDS)
def test_every_published_cell(ray_here: Any, hospitals: None, tmp_path: Path, rule: str, seed: int) -> None:
    """The whole table, each hospital on a node of its own."""
    running = Running(ray_here, published_job(rule, seed), None, tmp_path / "runs")
    check_cells(running.finish(), rule, seed)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("rule", "seed"), EACH_RULE)
def test_in_any_order(ray_here: Any, hospitals: None, tmp_path: Path, rule: str, seed: int) -> None:
    """Hospitals answer in another order in each round: the same cells."""
    running = Running(ray_here, published_job(rule, seed, pause_s=0.08), None, tmp_path / "runs")
    check_cells(running.finish(), rule, seed)
    assert len(set(orders(running.seen))) >= 3, "the pauses did not change the order"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("rule", "seed"), EACH_RULE)
def test_with_a_hospital_killed_while_it_trains(
    ray_here: Any, hospitals: None, tmp_path: Path, rule: str, seed: int
) -> None:
    """SIGKILL in the middle of round 8: the process comes back on its node and trains that version again."""
    victim = flamby.HOSPITALS[seed % 4]
    running = Running(ray_here, published_job(rule, seed, slow=7), None, tmp_path / "runs")
    running.until(launched(victim, 7))
    time.sleep(0.4)
    os.kill(running.silo_pid(victim), signal.SIGKILL)
    summary = running.finish()
    assert [(lost["silo"], lost["version"]) for lost in summary["lost"]] == [(victim, 7)]
    check_cells(summary, rule, seed)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("rule", "seed"), EACH_RULE)
def test_with_the_driver_killed(ray_here: Any, hospitals: None, tmp_path: Path, rule: str, seed: int) -> None:
    """SIGKILL in the middle of round 6: Ray starts it anew, and it goes on by itself."""
    running = Running(ray_here, published_job(rule, seed, slow=5, slow_s=0.5), None, tmp_path / "runs")
    running.until(launched("va", 5))
    time.sleep(0.2)
    os.kill(running.driver_pid(), signal.SIGKILL)
    summary = running.finish()
    assert summary["resumed"] == 1 and summary["redone_rounds"] <= 1
    check_cells(summary, rule, seed)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("rule", "seed"), EACH_RULE)
def test_stopped_and_gone_on_with(
    ray_here: Any, hospitals: None, tmp_path: Path, rule: str, seed: int
) -> None:
    """Stopped after round 5, then the same command again."""
    job = published_job(rule, seed, slow=4, slow_s=0.3)
    running = Running(ray_here, job, None, tmp_path / "runs")
    running.until(launched("va", 4))
    running.run.stop()
    stopped = running.finish()
    assert stopped["status"] == "stopped" and len(stopped["versions"]) == 5
    again = Running(ray_here, job, None, tmp_path / "runs")
    assert again.run.run_id == running.run.run_id
    check_cells(again.finish(), rule, seed)


def orders(events: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The order in which the silos' updates arrived, version by version."""
    arrived: dict[int, list[str]] = {}
    for event in events:
        if event["type"] == "update_arrived":
            arrived.setdefault(event["version"], []).append(event["silo"])
    return [tuple(silos) for silos in arrived.values()]
