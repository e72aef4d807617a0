"""The machines of one room: three hosts on which a real ``ray up cluster.yaml`` runs, the repository's own file.

``hosts_here`` and ``room`` are fixtures of the whole test session: a test module that names this one in
``pytest_plugins`` has them, and all of them share one room. It is started by the first test and removed at the end.
"""

import json
import os
import re
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.hosts import REPOSITORY, Hosts, cannot, wait_for

HEART = REPOSITORY / "examples/heart_disease"
SILO_AT = {"silo-a": "cleveland", "silo-b": "hungarian"}
ACCOUNT = "siloray"
"""That of ``cluster.yaml``: Ray runs as this one."""
RUNS = f"/home/{ACCOUNT}/siloray/runs"
TRACKING = f"/home/{ACCOUNT}/siloray/mlflow.db"
"""Where a cluster puts them unless it is told otherwise."""
TOKEN = "/etc/siloray/auth_token"
START_S, LIMIT_S = 120.0, 180.0
ROUNDS = 14
"""Of the job ``heart-room``: about a second each."""

SLOW_HEART = '''
"""The heart task with a pause before each batch: a task of the user's own, installed at the silos that allow it."""
import time

from orchestrator.task import Tabular
from silos.tasks.tabular import TabularTask


class SlowHeart(TabularTask):
    def __init__(self, data, pause_s: float, **spec) -> None:
        super().__init__(Tabular(name="tabular", dataset="heart", **spec), data)
        self._pause_s = pause_s

    def train_batches(self, at, batch_size):
        for batch in super().train_batches(at, batch_size):
            time.sleep(self._pause_s)
            yield batch
'''


@pytest.fixture(scope="session")
def hosts_here() -> Iterator[Hosts]:
    """A driver's machine and two silos'. No host sees the examples' data, but for its own."""
    if why := cannot() or (None if shutil.which("rsync") else "no rsync here: 'ray up' copies with it"):
        pytest.skip(why)
    with Hosts(("head", *SILO_AT), hide=[HEART / "silos"]) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def _room(hosts_here: Hosts) -> Iterator["Room"]:
    room = Room(hosts_here)
    yield room
    room.close()


@pytest.fixture
def room(_room: "Room") -> "Room":
    """With the cluster up."""
    _room.up()
    return _room


@pytest.fixture
def room_down(_room: "Room") -> "Room":
    """The machines, without a cluster."""
    if _room.is_up:
        _room.down()
        for host in SILO_AT:
            _room.hosts.run(host, "ray stop --force", check=False)
    return _room


@pytest.fixture(scope="session")
def undisturbed(_room: "Room") -> dict[str, Any]:
    """How the job ``heart-room`` ends when nobody disturbs it, and on which machine each silo was."""
    _room.up()
    known = _room.run_ids()
    _room.submit(_room.job("heart-room", total=ROUNDS), "--new")
    run = _room.new_run(known)
    joined = [event for event in _room.journal(run) if event["type"] == "silo_joined"]
    summary = _room.summary(run)
    assert summary["status"] == "done" and len(summary["versions"]) == ROUNDS, summary["reason"]
    return {**summary, "machines": {event["silo"]: event["node"] for event in joined}}


class Room:
    """A cluster of ``cluster.yaml``, as its operator sees it from this machine."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.folder = hosts.folder / "operator"
        self.is_up = False
        self._tunnel: subprocess.Popen[bytes] | None = None
        self._last_job = ""
        for host in hosts.names:
            prepare(hosts, host)
        token = secrets.token_hex(32)
        for host in hosts.names:
            hosts.write(host, TOKEN, token, 0o600)
            hosts.run(host, f"chown {ACCOUNT} {TOKEN}")
        self.cluster_yaml = self._own_cluster_yaml()
        self.token_file = self.folder / "auth_token"
        self.token_file.write_text(token)
        (self.folder / "tmp/ray").mkdir(parents=True)

    @property
    def environ(self) -> dict[str, str]:
        """The operator's environment: Ray's commands, the token, nothing of this process's own Ray."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        ray = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.folder / "tmp"),
        }
        return {**plain, **ray, "PATH": f"{REPOSITORY}/.venv/bin:{plain.get('PATH', '')}"}

    def up(self) -> float:
        """``ray up``, and wait for the silos; seconds that took. Again does nothing."""
        began = time.monotonic()
        if not self.is_up:
            self.operate("ray", "up", "-y", "--no-config-cache", str(self.cluster_yaml))
            self.is_up = True
            wait_for(lambda: self.alive() == set(SILO_AT.values()), START_S, self._told)
        return time.monotonic() - began

    def down(self) -> None:
        """``ray down``."""
        self._close_tunnel()
        self.operate("ray", "down", "-y", str(self.cluster_yaml))
        self.is_up = False

    def close(self) -> None:
        self._close_tunnel()

    def operate(
        self,
        *command: str,
        check: bool = True,
        environ: dict[str, str] | None = None,
        cwd: Path | None = None,
        limit_s: float = LIMIT_S,
    ) -> subprocess.CompletedProcess[str]:
        """A command on the operator's own machine."""
        done = subprocess.run(
            command,
            env={**self.environ, **(environ or {})},
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{self._told()}"
        return done

    def exec(self, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``ray exec``: a command on the driver's machine, as the cluster's account, in a login shell."""
        return self.operate("ray", "exec", str(self.cluster_yaml), command, **options)

    def left_here(self) -> list[str]:
        """What the operator's commands have left running on the operator's machine."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                if str(self.folder).encode() in words and int(folder.name) != os.getpid():
                    found.append((folder / "comm").read_text().strip())
        return sorted(found)

    def on_head(self, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command on the driver's machine, with the token."""
        known = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={TOKEN} PATH=/opt/siloray/.venv/bin:$PATH"
        return self.hosts.run("head", f"export {known}; {command}", **options)

    def siloray(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A ``siloray`` command on the driver's machine, where the runs are."""
        return self.on_head(f"siloray {' '.join(words)} --runs-dir {RUNS}", **options)

    def alive(self) -> set[str]:
        """The silos whose node is in the cluster."""
        return set(self.nodes())

    def nodes(self) -> dict[str, set[str]]:
        """Silo -> ids of the nodes in the cluster that have its label."""
        told = self.on_head("ray list nodes --format json --detail 2>/dev/null", check=False).stdout
        found: dict[str, set[str]] = {}
        for node in json.loads(told) if told.startswith("[") else []:
            silo = node["labels"].get("siloray.silo")
            if silo and node["state"] == "ALIVE":
                found.setdefault(silo, set()).add(node["node_id"])
        return found

    def jobs_url(self) -> str:
        """The jobs' address, through ``ray dashboard``: it is on the loopback of the driver's machine."""
        if self._tunnel is None:
            self._port = _free_port()
            command = ["ray", "dashboard", str(self.cluster_yaml), "--port", str(self._port)]
            with (self.folder / "dashboard.log").open("ab") as log:
                self._tunnel = subprocess.Popen(
                    command, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            wait_for(lambda: _listens(self._port), 60, "'ray dashboard' opens no tunnel")
        return f"http://127.0.0.1:{self._port}"

    def job(self, name: str, **rounds: Any) -> Path:
        """A folder with a job: two hospitals, a second for each training."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        example = yaml.safe_load((HEART / "job.yaml").read_text(encoding="utf-8"))
        spec = {key: example["task"][key] for key in ("target", "features", "categories")}
        task = {"name": "slow_heart:SlowHeart", "dataset": "heart", "options": {"pause_s": 0.05, **spec}}
        job = {
            **{key: example[key] for key in ("strategy", "stop", "seed")},
            "name": name,
            "task": task,
            "silos": sorted(SILO_AT.values()),
            "rounds": {"patience_s": 30, **rounds},
            "local": {**example["local"], "steps": 20},
            "report": {"silos": False},
            "tracking": {"experiment": "room"},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        return folder

    def submit(self, folder: Path, *words: str, wait: bool = True) -> str:
        """``siloray submit`` of the folder's job, from this machine; the name that Ray has for it."""
        told = self.operate(
            *("siloray", "submit", "job.yaml", "--address", self.jobs_url(), *words),
            *(() if wait else ("--no-wait",)),
            cwd=folder,
        ).stderr
        (self._last_job,) = re.findall(r"^(siloray-\S+) (?:was )?submitted", told, re.MULTILINE)
        return self._last_job

    def job_status(self, job: str) -> str:
        return self.operate("ray", "job", "status", "--address", self.jobs_url(), job).stdout

    def stop_job(self, job: str) -> None:
        self.operate("ray", "job", "stop", "--address", self.jobs_url(), job)

    def run_ids(self) -> list[str]:
        """Oldest first."""
        there = self.hosts.path("head", RUNS)
        journals = there.glob("*/journal.jsonl") if there.is_dir() else ()
        return [journal.parent.name for journal in sorted(journals, key=lambda path: path.stat().st_ctime)]

    def new_run(self, known: list[str]) -> str:
        """The run that was not there before, once it is."""
        return str(wait_for(lambda: [run for run in self.run_ids() if run not in known], 60, self._told)[0])

    def journal(self, run: str) -> list[dict[str, Any]]:
        """The events of a run that are on the disk of the driver's machine."""
        from orchestrator.journal import read_journal

        return list(read_journal(self.hosts.path("head", f"{RUNS}/{run}/journal.jsonl"))[0])

    def until(self, run: str, condition: Any, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The first event of the run's journal, from its beginning, that satisfies the condition."""

        def look() -> dict[str, Any] | None:
            events = self.journal(run)
            found = next((event for event in events if condition(event)), None)
            assert found or not events or events[-1].get("status") != "failed", events[-1]
            return found

        return dict(wait_for(look, limit_s, lambda: f"{self.journal(run)[-3:]}\n{self._told()}"))

    def summary(self, run: str) -> dict[str, Any]:
        from orchestrator.summary import read_summary

        return read_summary(self.hosts.path("head", f"{RUNS}/{run}"))

    def metrics(self, run: str, key: str) -> dict[str, dict[int, float]]:
        """What MLflow on the driver's machine has of a run: MLflow run name -> step -> value."""
        copy = self.folder / f"mlflow-{secrets.token_hex(3)}.db"
        shutil.copy(self.hosts.path("head", TRACKING), copy)
        question = (
            "select r.name, m.step, m.value from metrics m join runs r using (run_uuid) "
            "join tags t using (run_uuid) where t.key = 'siloray.run_id' and t.value = ? and m.key = ?"
        )
        rows = []
        with suppress(sqlite3.Error), sqlite3.connect(copy) as database:  # it may just be written
            rows = database.execute(question, (run, key)).fetchall()
        found: dict[str, dict[int, float]] = {}
        for name, step, value in rows:
            found.setdefault(name, {})[step] = value
        return found

    def _own_cluster_yaml(self) -> Path:
        """The repository's file with these machines' addresses and key: nothing else is changed."""
        self.folder.mkdir(exist_ok=True)
        cluster = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
        addresses = [self.hosts.address(host) for host in self.hosts.names]
        cluster["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
        cluster["auth"]["ssh_private_key"] = str(self.hosts.key)
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(cluster, width=10_000), encoding="utf-8")
        return path

    def _close_tunnel(self) -> None:
        if self._tunnel is not None:
            for child in _children(self._tunnel.pid):
                os.kill(child, 15)
            self._tunnel.kill()
            self._tunnel.wait()
            self._tunnel = None

    def _told(self) -> str:
        """The end of what Ray and the newest job say on the driver's machine."""
        logs = "cd /tmp/ray/session_latest/logs && tail -n 15 monitor.log monitor.out"
        return self.hosts.run("head", f"{logs} job-driver-{self._last_job}.log", check=False).stdout


def prepare(hosts: Hosts, host: str) -> None:
    """What a site's administrator puts on a machine, once: Siloray, an account that may read it, labels, and at a silo
    its document and data."""
    hosts.run(host, f"ln -s {REPOSITORY} /opt/siloray")
    hosts.run(host, f"useradd --create-home --shell /bin/bash --password '*' {ACCOUNT}")
    hosts.run(host, f"chmod o+x {' '.join(sorted(_parents()))}")
    hosts.run(host, f"install -d -o {ACCOUNT} /var/lib/siloray")
    hosts.run(host, "ln -s /opt/siloray/.venv/bin/siloray /opt/siloray/.venv/bin/ray /usr/local/bin/")
    if host not in SILO_AT:
        hosts.write(host, "/etc/siloray/labels.yaml", "siloray.role: driver\n")
        return
    silo = SILO_AT[host]
    hosts.write(host, "/etc/siloray/labels.yaml", f"siloray.role: silo\nsiloray.silo: {silo}\n")
    document = yaml.safe_load((HEART / f"silos/{silo}/silo.yaml").read_text(encoding="utf-8"))
    document["datasets"]["heart"]["path"] = f"/srv/{silo}.parquet"
    document["policy"] |= {"allow_code": ["slow_heart"], "min_cohort": 1}
    hosts.write(host, f"{sysconfig.get_path('purelib')}/slow_heart.py", SLOW_HEART)
    hosts.run(host, f"install -d -o {ACCOUNT} /etc/siloray/.siloray")
    hosts.write(host, "/etc/siloray/silo.yaml", yaml.safe_dump(document))
    hosts.write(host, f"/srv/{silo}.parquet", (HEART / f"silos/{silo}/{silo}.parquet").read_bytes())


def _parents() -> set[str]:
    """The folders in which the installation lies: often root's own, and open on the hosts only."""
    lie_in = (REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())
    return {str(folder) for place in lie_in for folder in (place, *place.parents)}


def closed(version: int, silo: str = "") -> Any:
    """A condition: this version or a later one is closed, with an update of this silo."""

    def holds(event: dict[str, Any]) -> bool:
        if event["type"] != "round_closed" or event["version"] < version:
            return False
        return not silo or silo in [each["silo"] for each in event["contributors"]]

    return holds


def _listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return int(there.getsockname()[1])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
