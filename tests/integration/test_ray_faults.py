"""Real processes killed for real, on Ray: the run goes on, and a synchronous one ends with the same bits."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.job import Job
from tests.support.running import Running, launched

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(ray_here: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job], dict[str, Any]]:
    """Summary of a job that nobody disturbs, made once per job."""
    from tests.integration.conftest import write_silos

    known: dict[str, dict[str, Any]] = {}

    def summary(job: Job) -> dict[str, Any]:
        if job.digest not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            known[job.digest] = Running(
                ray_here, job, write_silos(folder / "silos"), folder / "runs"
            ).finish()
        return known[job.digest]

    return summary


def test_a_silo_killed_while_training_is_asked_again(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job], undisturbed: Any
) -> None:
    job = slow_job()
    running = Running(ray_here, job, heart_silos, tmp_path / "runs")
    running.until(launched("va", 1))
    time.sleep(0.2)
    os.kill(running.silo_pid("va"), signal.SIGKILL)
    summary = running.finish()
    assert summary["status"] == "done"
    assert [(lost["silo"], lost["version"]) for lost in summary["lost"]] == [("va", 1)]
    assert all(len(version["contributors"]) == 4 for version in summary["versions"])
    assert summary["parameters_digest"] == undisturbed(job)["parameters_digest"]


def test_a_silo_killed_at_nine_tenths_goes_on(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job], undisturbed: Any
) -> None:
    """From its last checkpoint: of 20 batches at most four are trained on twice, and the bits are the same."""
    document, counted = heart_silos / "va.yaml", tmp_path / "counted"
    silo = yaml.safe_load(document.read_text(encoding="utf-8"))
    silo["local"] = {"checkpoint_steps": 4}
    document.write_text(yaml.safe_dump(silo), encoding="utf-8")
    options = {"pause_s": 0.05, "counted": str(counted)}
    task = {"name": "tests.support.slow_task:CountedTask", "dataset": "heart", "options": options}
    alone = {
        "silos": ["va"],
        "report": {"silos": False},
    }  # the file counts its batches, and no others
    job = slow_job(total=2, task=task, **alone)
    running = Running(ray_here, job, heart_silos, tmp_path / "runs")
    running.until(launched("va", 1))
    while len(counted.read_text().split()) < 20 + 18:
        time.sleep(0.01)
    os.kill(running.silo_pid("va"), signal.SIGKILL)
    summary = running.finish()
    assert [(lost["silo"], lost["version"]) for lost in summary["lost"]] == [("va", 1)]
    pids = counted.read_text().split()
    assert pids.count(pids[0]) >= 38 and 0 < pids.count(pids[-1]) <= 4, pids
    assert summary["parameters_digest"] == undisturbed(job)["parameters_digest"]


def test_a_quorum_closes_without_a_silo_that_was_killed(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job]
) -> None:
    job = slow_job(rounds={"mode": "quorum", "deadline_s": 1.5, "min_updates": 3})
    running = Running(ray_here, job, heart_silos, tmp_path / "runs")
    running.until(launched("hungarian", 0))
    os.kill(running.silo_pid("hungarian"), signal.SIGKILL)
    summary = running.finish()
    assert summary["status"] == "done"
    assert summary["lost"][0]["silo"] == "hungarian"
    assert all(len(version["contributors"]) >= 3 for version in summary["versions"])


def test_a_silo_that_hangs_is_found_named_and_restarted(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job], undisturbed: Any
) -> None:
    job = slow_job(rounds={"patience_s": 3})
    running = Running(ray_here, job, heart_silos, tmp_path / "runs")
    running.until(launched("cleveland", 1))
    time.sleep(0.2)
    os.kill(running.silo_pid("cleveland"), signal.SIGSTOP)
    down = running.until(lambda event: event["type"] == "silo_down")
    assert down["silo"] == "cleveland" and "no progress for 3 s" in down["why"]
    summary = running.finish()
    assert summary["status"] == "done"
    assert summary["parameters_digest"] == undisturbed(job)["parameters_digest"]


@pytest.mark.parametrize("version", [0, 2])
def test_a_killed_driver_is_restarted_by_ray_and_goes_on(
    version: int,
    ray_here: Any,
    heart_silos: Path,
    tmp_path: Path,
    slow_job: Callable[..., Job],
    undisturbed: Any,
) -> None:
    job = slow_job()
    running = Running(ray_here, job, heart_silos, tmp_path / "runs")
    running.until(launched("va", version))
    time.sleep(0.3)
    os.kill(running.driver_pid(), signal.SIGKILL)
    summary = running.finish()
    assert summary["status"] == "done" and summary["resumed"] == 1
    versions = [each["version"] for each in summary["versions"]]
    assert versions == list(range(1, 5)), "each version once"
    assert summary["parameters_digest"] == undisturbed(job)["parameters_digest"]


def test_a_required_silo_that_never_comes_fails_the_run_by_name(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job]
) -> None:
    job = slow_job(rounds={"mode": "quorum", "deadline_s": 1, "min_updates": 2}, required_silos=["va"])
    document = heart_silos / "va.yaml"
    silo = yaml.safe_load(document.read_text(encoding="utf-8"))
    silo["policy"]["allow_code"] = []
    document.write_text(yaml.safe_dump(silo), encoding="utf-8")
    running = Running(ray_here, job, heart_silos, tmp_path / "runs")
    running.finish()
    outcome = running.run.outcome()
    assert outcome.exit_code == 4 and "va" in outcome.reason and "allow_code" in outcome.reason


def test_a_stopped_run_goes_on_to_the_same_bits(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job], undisturbed: Any
) -> None:
    job = slow_job()
    running = Running(ray_here, job, heart_silos, tmp_path / "runs")
    running.until(launched("va", 1))
    running.run.stop()
    assert running.finish()["status"] == "stopped"
    assert running.run.outcome().exit_code == 3
    again = Running(ray_here, job, heart_silos, tmp_path / "runs")
    assert again.run.run_id == running.run.run_id
    summary = again.finish()
    assert summary["status"] == "done"
    assert summary["parameters_digest"] == undisturbed(job)["parameters_digest"]
