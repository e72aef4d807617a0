"""Silos on hosts of their own, which dial a driver on another: who listens where, and cables pulled for a while."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.hosts import REPOSITORY, Hosts, cannot, wait_for
from tests.support.served import (
    HEART,
    audit_of,
    begun,
    check_counts,
    job_document,
    journal_of,
    silo_document,
)

pytestmark = [pytest.mark.slow, pytest.mark.hosts]

SILO_AT = {"silo-a": "cleveland", "silo-b": "va"}
CUT_HOST, CUT_SILO = "silo-b", "va"
PORT, SSH = 8815, 22
TOTAL, STEPS, PAUSE_S = 4, 10, 0.3
TRAIN_S = STEPS * PAUSE_S
SILORAY = f"{REPOSITORY}/.venv/bin/python -m orchestrator"
LIMIT_S = 90.0
ORGANISATION = "/etc/siloray"

LISTENERS = "ss -H -ltn | awk '{print $4}' | sed 's/.*://' | sort -un"
KNOCK = """
import socket, sys
found = []
for port in range(1, 65536):
    with socket.socket() as there:
        there.settimeout(1)
        if there.connect_ex((sys.argv[1], port)) == 0:
            found.append(port)
print(*found)
"""


class Runs:
    """Runs of one job after another, each with agents of its own."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder, self.number = hosts, folder, 0
        hosts.run(
            "driver",
            f"{SILORAY} certs init /root/ca --with-keys --host {hosts.address('driver')}",
            env=self.environ,
        )
        for host, silo in SILO_AT.items():
            self._found(host, silo)

    environ = {"PYTHONPATH": str(REPOSITORY)}  # noqa: RUF012

    def start(self, patience_s: float) -> None:
        self.number += 1
        task = {"task": "tests.support.served:Noted", "options": {"note": self.note}, "pause_s": PAUSE_S}
        document = job_document(
            list(SILO_AT.values()), total=TOTAL, steps=STEPS, patience_s=patience_s, **task
        )
        self.hosts.write("driver", f"{self.home}/job.yaml", yaml.safe_dump(document))
        listen = f"{self.hosts.address('driver')}:{PORT}"
        serve = f"serve job.yaml --listen {listen} --credentials /root/ca/driver --new --no-track"
        self.driver = self._give("driver", serve, self.home)
        agent = f"agent silo.yaml --driver {listen} --credentials credentials --once"
        self.agents = {host: self._give(host, agent, ORGANISATION) for host in SILO_AT}

    @property
    def home(self) -> str:
        """The driver's folder for this run."""
        return f"/root/run{self.number}"

    @property
    def note(self) -> str:
        """On each host: which trainings of this run began there."""
        return f"/srv/begun{self.number}"

    def begun(self, host: str) -> list[tuple[str, int]]:
        return begun(self.hosts.path(host, self.note))

    def journal(self, kind: str = "", silo: str = "") -> list[dict[str, Any]]:
        found = list(self.hosts.path("driver", f"{self.home}/runs").glob("*/journal.jsonl"))
        events = journal_of(found[0].parent) if found else []
        return [event for event in events if kind in ("", event["type"]) and silo in ("", event.get("silo"))]

    def audit(self, host: str, run_id: str) -> list[dict[str, Any]]:
        """The updates that left this host's silo in a run."""
        path = self.hosts.path(host, f"{ORGANISATION}/.siloray/{SILO_AT[host]}/audit.jsonl")
        return [line for line in audit_of(path, "update") if line["run"] == run_id]

    def until(self, kind: str, silo: str = "", times: int = 1, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The nth event of a type."""

        def look() -> bool:
            assert self.driver.poll() is None or len(self.journal(kind, silo)) >= times, self.told()
            return len(self.journal(kind, silo)) >= times

        wait_for(look, limit_s, self.told)
        return self.journal(kind, silo)[times - 1]

    def end(self) -> list[dict[str, Any]]:
        """The journal, once driver and agents have left by themselves, with exit code 0."""
        for process in (self.driver, *self.agents.values()):
            assert process.wait(LIMIT_S) == 0, self.told()
        return self.journal()

    def close(self) -> None:
        for process in (self.driver, *self.agents.values()):
            process.terminate()

    def told(self) -> str:
        logs = sorted(self.folder.glob(f"{self.number}-*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)

    def _found(self, host: str, silo: str) -> None:
        """An organisation: its credentials, document and data, and nothing of the others'."""
        self.hosts.run("driver", f"{SILORAY} certs issue {silo} --ca /root/ca --with-keys", env=self.environ)
        for file in self.hosts.path("driver", f"/root/ca/{silo}").iterdir():
            there = f"{ORGANISATION}/credentials/{file.name}"
            self.hosts.write(host, there, file.read_bytes(), file.stat().st_mode & 0o777)
        self.hosts.write(host, f"/srv/{silo}.parquet", (HEART / f"{silo}/{silo}.parquet").read_bytes())
        document = yaml.safe_dump(silo_document(silo, f"/srv/{silo}.parquet"))
        self.hosts.write(host, f"{ORGANISATION}/silo.yaml", document)

    def _give(self, host: str, command: str, cwd: str) -> Any:
        log = str(self.folder / f"{self.number}-{host}.log")
        return self.hosts.start(host, f"exec {SILORAY} {command}", env=self.environ, cwd=cwd, log=log)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """No host sees the examples' data, but for its own."""
    if why := cannot():
        pytest.skip(why)
    with Hosts(("driver", *SILO_AT), hide=[HEART]) as hosts:
        yield Runs(hosts, tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> dict[str, Any]:
    """How the run ends that nobody disturbs, and which ports were open while its silos trained."""
    runs.start(patience_s=30)
    runs.until("round_closed")
    hosts = {host: runs.hosts.run(host, LISTENERS).stdout.split() for host in runs.hosts.names}
    knocked = runs.hosts.run("driver", f"python3 -c '{KNOCK}' {runs.hosts.address(CUT_HOST)}").stdout.split()
    assert runs.driver.poll() is None, "the run went on meanwhile"
    journal = runs.end()
    return {"journal": journal, "ports": hosts, "knocked": knocked}


def digest(journal: list[dict[str, Any]]) -> str:
    closed = journal[-1]
    assert closed["type"] == "run_closed" and closed["status"] == "done", closed
    check_counts(journal, TOTAL)
    return str(closed["parameters_digest"])


def test_silos_on_hosts_of_their_own_make_a_model_and_open_no_port(undisturbed: dict[str, Any]) -> None:
    """The driver's port is open; at a silo there is but the sshd of these hosts, for the driver as well."""
    assert digest(undisturbed["journal"])
    joined = {
        event["silo"]: event["node"] for event in undisturbed["journal"] if event["type"] == "silo_joined"
    }
    assert joined == {silo: host for host, silo in SILO_AT.items()}
    silo_ports = {host: undisturbed["ports"][host] for host in SILO_AT}
    assert silo_ports == {host: [str(SSH)] for host in SILO_AT}
    assert str(PORT) in undisturbed["ports"]["driver"]
    assert undisturbed["knocked"] == [str(SSH)]


def test_a_cut_of_ten_seconds_in_mid_training_costs_nothing(runs: Runs, undisturbed: dict[str, Any]) -> None:
    runs.start(patience_s=30)
    runs.until("round_closed")
    time.sleep(TRAIN_S / 3)
    with runs.hosts.cut(CUT_HOST, seconds=10):
        pass
    journal = runs.end()
    assert digest(journal) == digest(undisturbed["journal"])
    assert not runs.journal("silo_down") and len(runs.journal("silo_joined")) == len(SILO_AT)


def test_a_cut_of_two_minutes_is_survived(runs: Runs, undisturbed: dict[str, Any]) -> None:
    """The silo is given up; it comes back as the one it was, with the update that it finished meanwhile."""
    runs.start(patience_s=20)
    run_id = runs.until("run_opened")["run_id"]
    runs.until("round_closed")
    time.sleep(TRAIN_S / 3)
    with runs.hosts.cut(CUT_HOST, seconds=120):
        pass
    down = runs.journal("silo_down")
    assert [event["silo"] for event in down] == [CUT_SILO]
    before = runs.journal("round_closed")
    runs.until("silo_joined", CUT_SILO, times=2)
    runs.until("round_closed", times=len(before) + 1)
    journal = runs.end()
    assert digest(journal) == digest(undisturbed["journal"])
    joined = runs.journal("silo_joined", CUT_SILO)
    assert len({(event["incarnation"], event["fingerprint"], event["node"]) for event in joined}) == 1
    assert len(joined) == 2 and len(runs.journal("silo_joined")) == len(SILO_AT) + 1
    assert runs.begun(CUT_HOST) == [(CUT_SILO, version) for version in range(TOTAL)], "none trained again"
    check_audit(runs.audit(CUT_HOST, run_id), down[0])


def check_audit(left: list[dict[str, Any]], down: dict[str, Any]) -> None:
    """What the silo's owner reads: the same update of one version left twice, the others once."""
    versions = [line["version"] for line in left]
    (twice,) = {version for version in versions if versions.count(version) > 1}
    assert twice == down["version"] and len(versions) == TOTAL + 1
    assert len({(line["norm"], line["model_digest"]) for line in left if line["version"] == twice}) == 1
