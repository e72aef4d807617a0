"""The head of a real cluster killed, all its processes at once, in the middle of a run."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.summary import read_summary
from tests.integration.conftest import write_silos
from tests.integration.test_ray_submit import SILOS, Shell, until, write_job
from tests.support.clusters import Cluster, free_ports
from tests.support.commands import session

pytestmark = [pytest.mark.slow, pytest.mark.long]

SLOW_S = 0.12
"""Pause per step: a round of 1.4 s."""

GONE_S = 60.0
BACK_S = 90.0


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_silos(tmp_path / "documents")


def test_on_a_new_cluster_the_same_command_goes_on(tmp_path: Path, documents: Path) -> None:
    """Without Redis a cluster ends with its head. The run directory has all that counts."""
    lost = Cluster(tmp_path)
    with lost:
        join(lost, documents)
        shell = Shell(lost, tmp_path / "folder")
        write_job(shell.folder, SLOW_S)
        first = shell.ask("run", "job.yaml", "--no-track")
        first.until("round 2/")
        assert lost.head is not None
        lost.head.kill()
        assert first.end(GONE_S) == 4, first.told
        assert "goes on with the run" in first.err, first.told
        shell.close()
    with Cluster(tmp_path) as new:
        join(new, documents)
        shell = Shell(new, tmp_path / "folder")
        second = shell.ask("run", "job.yaml", "--no-track")
        assert second.end() == 0 and "goes on from version" in second.out, second.told
        (row,) = shell.rows()
        summary = read_summary(tmp_path / "runs" / row["run_id"])
        fresh = shell.ask("run", "job.yaml", "--no-track")
        assert fresh.end() == 0, fresh.told
        undisturbed = read_summary(shell.last())
        shell.close()
    assert summary["resumed"] == 1 and undisturbed["resumed"] == 0
    assert summary["parameters_digest"] == undisturbed["parameters_digest"]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """A Redis server of the test's own; its address."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    (port,) = free_ports(1)
    folder = tmp_path / "redis"
    folder.mkdir()
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--appendonly",
        "yes",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    yield f"127.0.0.1:{port}"
    server.terminate()
    server.wait(10)


def test_with_redis_silos_outlive_the_head(tmp_path: Path, documents: Path, redis: str) -> None:
    """The head comes back, the silos' processes were there all the time, and the driver goes on by itself."""
    keeps = {
        "RAY_REDIS_ADDRESS": redis,
        "RAY_external_storage_namespace": f"siloray{os.getpid()}",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    }
    with Cluster(tmp_path, **keeps) as cluster:
        join(cluster, documents)
        shell = Shell(cluster, tmp_path / "folder")
        write_job(shell.folder, SLOW_S, total=12)
        started = shell.ask("run", "job.yaml", "--no-track", "--detach")
        assert started.end() == 0, started.told
        until(lambda: shell.rows()[-1]["version"] >= 1)
        before = silo_pids(cluster)
        assert len(before) == len(SILOS)
        assert cluster.head is not None
        cluster.head.kill()
        time.sleep(5)
        cluster.start_head()
        row = shell.until_status("done", BACK_S)
        assert silo_pids(cluster) == before
        shell.close()
    summary = read_summary(tmp_path / "runs" / row["run_id"])
    assert summary["status"] == "done" and summary["resumed"] == 1
    versions = [each["version"] for each in summary["versions"]]
    assert versions == list(range(1, len(versions) + 1)), "each version once"


def join(cluster: Cluster, documents: Path) -> None:
    for silo in SILOS:
        cluster.join(silo, documents / f"{silo}.yaml")


def silo_pids(cluster: Cluster) -> set[int]:
    """Of the actors' processes, by the sessions of the silos' nodes."""
    names = {pid: name for node in cluster.silos for pid, name in session(node.process.pid).items()}
    return {pid for pid in names if b"SiloActor" in Path(f"/proc/{pid}/cmdline").read_bytes()}
