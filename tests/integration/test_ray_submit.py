"""Jobs given to a real cluster with a node for each silo: submitted once, stopped, gone on with from another shell.

The cluster is ``ray start`` processes; every command is a process, as a person would start it.
"""

import json
import os
import re
import shlex
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.at_rest import MAGIC, STORE_KEY, make_key
from orchestrator.core.events import EVENT, SiloJoined
from orchestrator.summary import read_summary
from tests.integration.conftest import write_silos
from tests.support.clusters import Cluster
from tests.support.commands import LIMIT_S, Command
from tests.support.federation import double_counts
from tests.support.served import journal_of

pytestmark = pytest.mark.slow

TOTAL = 6
SILOS = ("cleveland", "va")
PROMETHEUS_S = 30.0
"""Figures are on the node's page within this time, about 8 s usually; the run lasts longer."""

FIGURES = {
    "version",
    "silos_joined",
    "bytes_up_total",
    "bytes_down_total",
    "updates_total",
    "round_seconds_count",
    "train_seconds_bucket",
    "last_round_seconds",
    "metric",
    "silo_metric",
}


def write_job(folder: Path, pause_s: float = 0.0, total: int = TOTAL, silos: tuple[str, ...] = SILOS) -> None:
    document = {
        "name": "slow-heart",
        "task": {
            "name": "tests.support.slow_task:SlowTask",
            "dataset": "heart",
            "options": {"pause_s": pause_s},
        },
        "silos": list(silos),
        "rounds": {"total": total, "patience_s": 20},
        "local": {"steps": 12, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.03}},
        "stop": {"metric": "accuracy"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")


class Shell:
    """A folder in which commands about one cluster are given."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cluster, self.folder = cluster, folder
        self.commands: list[Command] = []

    def give(self, *arguments: str, **environ: str) -> Command:
        command = Command(*arguments, cwd=self.folder, environ=environ)
        self.commands.append(command)
        return command

    def ask(self, name: str, *arguments: str) -> Command:
        """A command with the cluster's address."""
        return self.give(name, *arguments, "--address", self.cluster.address)

    def submit(self, *more: str, **environ: str) -> Command:
        own = ("--address", self.cluster.dashboard, "--python", sys.executable, "--no-track")
        return self.give("submit", "job.yaml", *own, *more, **environ)

    def rows(self) -> list[dict[str, Any]]:
        listed = self.ask("list", "--json")
        assert listed.end() == 0, listed.told
        rows: list[dict[str, Any]] = json.loads(listed.out)
        return rows

    def last(self) -> Path:
        """Directory of the run that was active last."""
        return self.cluster.folder / "runs" / str(self.rows()[-1]["run_id"])

    def until_status(self, status: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        end = time.monotonic() + limit_s
        while (row := self.rows()[-1])["status"] != status:
            assert time.monotonic() < end, row
            time.sleep(0.5)
        return row

    def close(self) -> None:
        for command in self.commands:
            command.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    documents = write_silos(folder / "documents")
    with Cluster(folder) as started:
        for silo in SILOS:
            started.join(silo, documents / f"{silo}.yaml")
        yield started


@pytest.fixture
def shell(cluster: Cluster, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(cluster, tmp_path / "folder")
    yield made
    made.close()


@pytest.fixture
def jobs(cluster: Cluster) -> Any:
    """Ray's own client: ``ray job submit``, ``stop``."""
    from orchestrator.transport.ray_jobs import Jobs

    return Jobs(cluster.dashboard)._client


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the job, submitted and not disturbed; and that giving it twice does it once."""
    shell = Shell(cluster, tmp_path_factory.mktemp("undisturbed"))
    write_job(shell.folder)
    (shell.folder / "silos").mkdir()
    (shell.folder / "silos" / "secret.csv").write_text("private")
    try:
        before = len(shell.rows())
        first = shell.submit()
        assert first.end() == 0, first.told
        assert "done: all 6 rounds are closed" in first.out
        again = shell.submit()
        assert again.end() == 0 and "is done" in again.out, again.told
        (row,) = shell.rows()[before:]
        assert row["status"] == "done" and row["version"] == TOTAL
        packages = list(Path(cluster.temp).glob("session_latest/**/working_dir_files/*/job.yaml"))
        assert packages and not list(Path(cluster.temp).glob("session_latest/**/secret.csv"))
        return str(read_summary(shell.last())["parameters_digest"])
    finally:
        shell.close()


@pytest.mark.long
def test_another_token_or_new_submits_it_again(shell: Shell, undisturbed: str) -> None:
    write_job(shell.folder)
    second = shell.submit("--token", "second")
    second.until("run slow-heart")
    for command in (second, shell.submit("--new")):
        assert command.end() == 0, command.told
    done = [row for row in shell.rows() if row["status"] == "done"]
    assert len(done) == 3
    assert read_summary(shell.last())["parameters_digest"] == undisturbed


def test_checkpoints_are_encrypted_with_the_key_that_is_named_where_it_is_submitted(
    shell: Shell, cluster: Cluster
) -> None:
    """Its file is on the driver's node; one that is not there leaves no run, and the same command goes on."""
    write_job(shell.folder, total=2)
    known, key = len(shell.rows()), cluster.folder / "store.key"
    refused = shell.submit(**{STORE_KEY: str(key)})
    assert refused.end() == 2, refused.told
    assert f"{key}: the key cannot be read: No such file or directory" in refused.told
    assert len(shell.rows()) == known
    make_key(key)
    done = shell.submit(**{STORE_KEY: str(key)})
    assert done.end() == 0, done.told
    vectors = list(shell.last().rglob("*.safetensors"))
    assert len(vectors) == 3 and all(each.read_bytes().startswith(MAGIC) for each in vectors)


def test_a_stopped_job_leaves_a_run_that_a_later_shell_goes_on_with(
    shell: Shell, jobs: Any, undisturbed: str, tmp_path: Path
) -> None:
    """`ray job stop` ends the round; `siloray resume` needs neither this folder nor the job file."""
    write_job(shell.folder, pause_s=0.4)
    submitted = shell.submit()
    submitted.until("round 2/")
    followed = shell.submit("--wait")
    followed.until("round 2/")
    name = re.search(r"(siloray-\S+) submitted", submitted.err)
    assert name is not None, submitted.told
    jobs.stop_job(name[1])
    assert submitted.end(40) == 3, submitted.told
    assert followed.end(40) == 3, followed.told
    assert shell.until_status("stopped", 40)["version"] >= 2
    elsewhere = Shell(shell.cluster, tmp_path / "elsewhere")
    (shell.folder / "job.yaml").unlink()
    resumed = elsewhere.ask("resume", "last")
    assert resumed.end() == 0, resumed.told
    summary = read_summary(shell.last())
    assert summary["parameters_digest"] == undisturbed and summary["resumed"] == 1
    refused = elsewhere.ask("resume", "last")
    assert refused.end() == 2 and "is done" in refused.err, refused.told
    elsewhere.close()


@pytest.mark.long
def test_the_same_submission_again_goes_on_with_a_stopped_run(shell: Shell, undisturbed: str) -> None:
    """watch, stop and list know the run by its driver, from any folder."""
    write_job(shell.folder, pause_s=0.4)
    submitted = shell.submit("--no-wait")
    assert submitted.end() == 0, submitted.told
    time.sleep(4)
    shell.until_status("running")
    watching = shell.ask("watch", "last")
    watching.until("round ")
    stop = shell.ask("stop", "last")
    assert stop.end(40) == 0 and "stopped" in stop.out, stop.told
    assert watching.end(40) == 3, watching.told
    again = shell.submit()
    assert again.end() == 0, again.told
    assert "goes on from version" in again.out
    assert read_summary(shell.last())["parameters_digest"] == undisturbed


@pytest.mark.long
def test_a_job_that_ray_kills_after_three_seconds_has_told_the_driver_to_stop(
    shell: Shell, jobs: Any, undisturbed: str
) -> None:
    """As `ray job submit -- python -m orchestrator run job.yaml` without more; a round lasts six seconds."""
    write_job(shell.folder, pause_s=0.5, total=5)
    command = f"{sys.executable} -m orchestrator run job.yaml --no-track"
    name = jobs.submit_job(entrypoint=command, runtime_env={"working_dir": str(shell.folder)})
    until(lambda: "round 1/" in jobs.get_job_logs(name))
    jobs.stop_job(name)
    until(lambda: jobs.get_job_status(name).is_terminal())
    row = shell.until_status("stopped", 30)
    assert 1 <= row["version"] < 5 and "on request" in row["reason"]


def test_doctor_and_the_dashboard_know_the_nodes_by_name(
    shell: Shell, cluster: Cluster, undisturbed: str
) -> None:
    write_job(shell.folder)
    healthy = shell.ask("doctor", "job.yaml")
    assert healthy.end() == 0, healthy.told
    for words in (
        "a node for each of the job's 2",
        "(va)",
        "heart: 85 train, 45 test",
        "one trust domain",
    ):
        assert words in healthy.out, healthy.told
    assert re.search(r"clock [+-]0\.0", healthy.out), healthy.told
    write_job(shell.folder, silos=(*SILOS, "switzerland"))
    lacking = shell.ask("doctor", "job.yaml")
    assert lacking.end() == 1 and "no node of switzerland" in lacking.out, lacking.told
    names = actors(cluster)
    assert {"silo cleveland", "silo va"} <= names


def actors(cluster: Cluster) -> set[str]:
    from ray.util.state import list_actors

    found: Any = list_actors(address=cluster.dashboard, detail=True)
    return {str(each.repr_name) for each in found}


def test_figures_of_a_run_are_on_the_nodes_page_for_prometheus(
    shell: Shell, cluster: Cluster, undisturbed: str
) -> None:
    write_job(shell.folder, pause_s=0.5)
    submitted = shell.submit()
    submitted.until("round 1/")
    tag = f'run="{shell.last().name}"'

    def found() -> set[str]:
        lines = [line for line in page(cluster).splitlines() if tag in line and 'job="slow-heart"' in line]
        return {line.partition("{")[0].removeprefix("ray_siloray_") for line in lines}

    until(lambda: found() >= FIGURES, PROMETHEUS_S)
    assert shell.ask("stop", "last").end() == 0
    assert submitted.end() == 3, submitted.told


def page(cluster: Cluster) -> str:
    """The figures of all nodes."""
    listed = Path(cluster.temp, "prom_metrics_service_discovery.json")
    found = json.loads(listed.read_text()) if listed.is_file() else []
    targets = [target for each in found for target in each["targets"]]
    return "\n".join(_read(f"http://{target}/metrics") for target in targets)


def _read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_a_node_lost_and_back_in_a_run(shell: Shell, cluster: Cluster, undisturbed: str) -> None:
    """All its processes are killed while its silo trains; a node with the same label takes its place."""
    write_job(shell.folder, pause_s=0.13)
    submitted = shell.submit()
    submitted.until("round 2/")
    cluster.silos[SILOS.index("va")].kill()
    submitted.until("va lost")
    cluster.join("va", cluster.folder / "documents" / "va.yaml")
    assert submitted.end() == 0, submitted.told
    run_dir = shell.last()
    assert read_summary(run_dir)["parameters_digest"] == undisturbed
    history = [EVENT.validate_python(event) for event in journal_of(run_dir)]
    assert double_counts(history) == []
    joined = [event for event in history if isinstance(event, SiloJoined) and event.silo == "va"]
    assert len({event.incarnation for event in joined}) == 2
    assert len({event.fingerprint for event in joined}) == 1


def test_nodes_that_are_not_what_they_say_cost_one_line(
    shell: Shell, cluster: Cluster, undisturbed: str, tmp_path: Path
) -> None:
    """A label of one silo and the document of another; no document at all. `run` refuses before it starts anything."""
    documents = write_silos(tmp_path / "documents")
    cluster.join("hungarian", documents / "va.yaml")
    cluster.join("switzerland", tmp_path / "none.yaml")
    for silo, words in (
        ("hungarian", "belongs to the silo 'va', not to 'hungarian'"),
        ("switzerland", "none.yaml"),
    ):
        write_job(shell.folder, silos=(*SILOS, silo))
        refused = shell.ask("run", "job.yaml", "--no-track")
        assert refused.end() == 2 and words in refused.err, refused.told
        assert len(refused.errors) >= 2 and not refused.lines, refused.told
    tried = shell.ask("run", "job.yaml", "--no-track", "--no-checks")
    assert tried.end() in (2, 4) and "none.yaml" in tried.told, tried.told
    doctor = shell.ask("doctor", "job.yaml")
    assert doctor.end() == 1 and "none.yaml" in doctor.out, doctor.told


def test_a_submission_is_trained_once_however_its_command_ends(
    shell: Shell, jobs: Any, undisturbed: str
) -> None:
    """Killed, Ray has it as failed while the driver goes on; forgotten by Ray, its run still knows it."""
    write_job(shell.folder, pause_s=0.4)
    before = len(shell.rows())
    first = shell.submit("--token", "killed")
    first.until("round 2/")
    name = re.search(r"(siloray-\S+) submitted", first.err)
    assert name is not None, first.told
    for pid in commands_of(f"--submission {name[1]} "):
        os.kill(pid, signal.SIGKILL)
    assert first.end() == 1, first.told
    again = shell.submit("--token", "killed")
    assert again.end() == 0, again.told
    assert f"{name[1]}-2 submitted" in again.err and "was submitted before and is done" not in again.out
    assert len(shell.rows()) == before + 1
    assert read_summary(shell.last())["parameters_digest"] == undisturbed
    for each in (name[1], f"{name[1]}-2"):
        jobs.delete_job(each)
    last = shell.submit("--token", "killed")
    assert last.end() == 0, last.told
    assert f"{name[1]} submitted" in last.err and "was submitted before and is done" in last.out
    assert f"done: all {TOTAL} rounds" in last.out and "cleveland" in last.out
    assert len(shell.rows()) == before + 1 and read_summary(shell.last())["resumed"] == 0


def test_another_token_is_another_run_while_one_runs(shell: Shell, undisturbed: str) -> None:
    """The second one waits for the silos that the first one has."""
    write_job(shell.folder, pause_s=0.45)
    before = len(shell.rows())
    first = shell.submit("--token", "d1")
    first.until("round 1/")
    second = shell.submit("--token", "d2")
    line = second.until("works for the run")
    assert "slow-heart-" in line and first.process.poll() is None
    for command in (first, second):
        assert command.end() == 0, command.told
    rows = shell.rows()[before:]
    assert [(row["status"], row["version"], row["resumed"]) for row in rows] == [("done", TOTAL, 0)] * 2
    assert read_summary(shell.last())["parameters_digest"] == undisturbed


def test_last_is_the_run_at_work_and_hints_work_as_they_are_typed(
    shell: Shell, undisturbed: str, tmp_path: Path
) -> None:
    """Its folder is not the one in which the cluster's runs lie; who gave the command has left."""
    write_job(shell.folder, pause_s=0.3)
    runs = tmp_path / "own runs"
    submitted = shell.submit("--runs-dir", str(runs))
    submitted.until("round 1/")
    submitted.send(signal.SIGINT)
    assert submitted.end(20) == 130 and "goes on; the same command" in submitted.err, submitted.told
    elsewhere = Shell(shell.cluster, tmp_path / "elsewhere")
    stopped = elsewhere.ask("stop", "last")
    assert stopped.end(40) == 0, stopped.told
    (run_dir,) = (each for each in runs.iterdir() if each.is_dir())
    hint = re.search(r"'siloray (resume .*)'", stopped.out)
    assert hint is not None and run_dir.name in hint[1], stopped.told
    resumed = elsewhere.give(*shlex.split(hint[1]))
    assert resumed.end() == 0, resumed.told
    summary = read_summary(run_dir)
    assert summary["parameters_digest"] == undisturbed and summary["resumed"] == 1
    elsewhere.close()


def commands_of(words: str) -> list[int]:
    """Processes with these words in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if words in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                found.append(int(folder.name))
    return found


def until(true: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.3)
