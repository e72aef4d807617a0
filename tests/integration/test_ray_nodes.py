"""Silos on nodes of their own: who may be which silo, whose data has changed, and a driver that nobody watches."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.messages import Ping
from orchestrator.job import Job
from orchestrator.transport.driver_process import Assignment
from tests.support.nodes import Nodes
from tests.support.running import LIMIT_S, Running, launched

pytestmark = pytest.mark.slow


def test_a_process_on_another_silos_node_refuses(ray_here: Any, heart_silos: Path) -> None:
    """By the node's label first, then by its document; each refusal is one line."""
    with Nodes({"va": heart_silos / "va.yaml", "hungarian": heart_silos / "cleveland.yaml"}):
        assert "by its label, not to 'cleveland'" in answer("cleveland", on="va")
        assert "belongs to the silo 'cleveland', not to 'hungarian'" in answer("hungarian", on="hungarian")
        assert answer("va", on="va") == ""


def answer(silo: str, on: str) -> str:
    """Why a process that is told to be ``silo`` on that node refuses; nothing if it does not."""
    import ray

    from orchestrator.transport.ray_channel import as_actor
    from silos.actor import IO_THREADS, SiloActor

    remote = as_actor(SiloActor, concurrency_groups={"io": IO_THREADS})
    actor = remote.options(num_cpus=0, label_selector={"siloray.silo": on}).remote(silo, None)
    reply = ray.get(actor.answer.remote(Ping(run_id="r", epoch=0)), timeout=LIMIT_S)
    ray.kill(actor)
    reason = str(getattr(reply, "reason", ""))
    assert "\n" not in reason
    return reason


def test_a_silo_that_comes_back_with_other_data_is_refused(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job]
) -> None:
    """Its process is killed in a run, and rows are taken away before Ray starts it again."""
    import pyarrow.parquet as parquet

    document = heart_silos / "va.yaml"
    silo = yaml.safe_load(document.read_text(encoding="utf-8"))
    rows = parquet.read_table(silo["datasets"]["heart"]["path"])
    mine = tmp_path / "va.parquet"
    parquet.write_table(rows, mine)
    silo["datasets"]["heart"]["path"] = str(mine)
    document.write_text(yaml.safe_dump(silo), encoding="utf-8")
    running = Running(ray_here, slow_job(), heart_silos, tmp_path / "runs")
    running.until(launched("va", 1))
    pid = running.silo_pid("va")
    parquet.write_table(rows.slice(5), mine)
    os.kill(pid, signal.SIGKILL)
    running.finish()
    outcome = running.run.outcome()
    assert outcome.exit_code == 2 and "its data changed since the run began" in outcome.reason


def test_a_round_that_outlasts_the_grace_is_given_up(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job]
) -> None:
    """What `ray job stop` asks for: the round in hand may end within so many seconds, and the run can go on."""
    running = Running(ray_here, slow_job(pause_s=3.0), heart_silos, tmp_path / "runs")
    running.until(launched("va", 0))
    began = time.monotonic()
    running.run.stop(within_s=2.0)
    summary = running.finish()
    assert 2.0 < time.monotonic() - began < 20.0
    assert summary["status"] == "stopped" and summary["versions"] == []


def test_a_driver_that_nobody_asks_any_more_leaves(
    ray_here: Any, heart_silos: Path, tmp_path: Path, slow_job: Callable[..., Job]
) -> None:
    """Its run has ended, and the command that started it is not there to let it go."""
    import ray

    from orchestrator.transport.ray_channel import NAMESPACE, as_actor
    from orchestrator.transport.ray_driver import DriverActor

    job = slow_job(total=1, pause_s=0.0)
    documents = {name: str(heart_silos / f"{name}.yaml") for name in job.silos}
    run_dir = tmp_path / "runs" / "unseen"
    assignment = Assignment("unseen", str(run_dir), job.model_dump_json(), documents, [], None)
    actor = as_actor(DriverActor, max_concurrency=16)
    options = {"name": "driver-unseen", "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
    driver = actor.options(max_restarts=-1, **options).remote(asdict(assignment), 3.0)
    until(lambda: ray.get(driver.outcome.remote()) is not None)
    until(lambda: not alive("driver-unseen"), 20)


def alive(name: str) -> bool:
    import ray

    try:
        ray.get_actor(name, namespace="siloray")
    except ValueError:
        return False
    return True


def until(true: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)
