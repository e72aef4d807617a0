"""``siloray serve`` and ``siloray agent`` where something is wrong before there is a line: one line, code 2."""

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.at_rest import STORE_KEY
from orchestrator.cli.ending import conclude
from orchestrator.cli.main import app
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.store import Store
from orchestrator.transport.authority import Authority
from orchestrator.transport.certs import Credentials
from orchestrator.transport.driver_process import Assignment, DriverProcess
from orchestrator.transport.served import Door
from silos.agent import Agent
from silos.workplace import InThread
from tests.support.clusters import free_ports
from tests.support.consortium import until

JOB: dict[str, Any] = {
    "name": "served",
    "task": {"name": "tabular", "dataset": "heart", "target": "num", "features": ["age", "chol"]},
    "silos": ["va"],
    "rounds": {"total": 3},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An organisation and a driver in one folder, for the command line at both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    write_silo()
    Authority.create(tmp_path / "certs", "hearts").issue_silo("va")
    return tmp_path


def write_silo(**connection: str) -> None:
    document: dict[str, Any] = {"name": "va", "datasets": {"heart": {"path": "x.csv"}}}
    Path("silo.yaml").write_text(
        yaml.safe_dump(document | ({"connection": connection} if connection else {}))
    )


def refused(line: str) -> str:
    ended = CliRunner().invoke(app, line.split())
    assert ended.exit_code == 2 and ended.output.count("\n") == 1, ended.output
    return ended.output


@pytest.fixture
def busy() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_busy_port_is_told_before_a_run_begins(
    busy: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused(f"serve job.yaml --listen 127.0.0.1:{busy} --runs-dir runs --no-track")
    assert said == f"siloray: 127.0.0.1:{busy}: cannot listen here (Address already in use)\n"
    assert not (here / "runs").exists(), "no folder of a run that never was"
    assert capfd.readouterr().err == "", "nothing of gRPC's"


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "[2001:db8::1]"])
def test_hosts_that_are_not_this_machine(host: str, here: Path) -> None:
    said = refused(f"serve job.yaml --listen {host}:8815 --runs-dir runs --no-track")
    assert f"{host}:8815: cannot listen here (" in said and not (here / "runs").exists()


def driven(here: Path, open_channel: Any) -> Outcome:
    assignment = Assignment(
        run_id="r",
        run_dir=str(here / "runs" / "r"),
        job=Job.model_validate(JOB).model_dump_json(),
        documents=None,
        code=[],
        tracking_uri=None,
    )
    process = DriverProcess(assignment, open_channel)
    until(lambda: process.outcome() is not None)
    outcome = process.outcome()
    assert outcome is not None
    return outcome


def test_a_port_that_is_taken_meanwhile_leaves_no_run(
    busy: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a driver on a Ray of its own meets it: nothing was made yet, and the last words offer nothing."""
    door = Door("127.0.0.1", busy, str(here / "certs" / "driver"))
    outcome = driven(here, lambda _, job, record: door.open(job, record))
    assert outcome.exit_code == 2 and "cannot listen here" in outcome.reason
    assert not (here / "runs").exists()
    conclude(here / "runs" / "r", outcome, [], as_json=False)
    told = capfd.readouterr()
    assert told.err == f"siloray: failed: {outcome.reason}\n" and told.out == ""


def test_a_key_that_cannot_be_used_leaves_no_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster, where the driver's node alone can tell."""
    monkeypatch.setenv(STORE_KEY, str(here / "none.key"))
    outcome = driven(here, lambda *_: Line())
    assert outcome.exit_code == 2 and "none.key: the key cannot be read" in outcome.reason
    assert not (here / "runs").exists()


class Line:
    """A channel that only remembers that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_driver_that_fails_closes_its_channel(here: Path) -> None:
    """Nobody dials a driver that is not there any more, and no silo's process stays behind."""
    (here / "runs").write_text("a file, where the folder of runs should be")
    line = Line()
    assert driven(here, lambda *_: line).exit_code == 1
    assert line.closed


def test_a_driver_that_finds_another_one_at_work_leaves_it_its_silos(here: Path) -> None:
    (here / "runs" / "r").mkdir(parents=True)
    line = Line()
    held = Store(here / "runs" / "r")
    held.acquire("another")
    assert driven(here, lambda *_: line).exit_code == 4 and held.epoch == 1
    assert not line.closed


def test_a_roster_that_cannot_be_read_is_on_record(here: Path) -> None:
    """Whoever revoked a silo with a slip of the pen learns that it still counts."""
    (port,), seen = free_ports(1), []
    door = Door("127.0.0.1", port, str(here / "certs" / "driver"))
    channel = door.open(Job.model_validate(JOB), seen.append)
    credentials = Credentials.load(here / "certs" / "va")
    agent = Agent("va", f"grpc+tls://127.0.0.1:{port}", credentials, InThread(lambda: None))  # type: ignore[arg-type, return-value]
    try:
        (here / "certs" / "driver" / "roster.yaml").write_text("silos: {")
        threading.Thread(target=agent.run, daemon=True).start()
        until(lambda: channel.connected() == {"va"})
    finally:
        agent.close()
        channel.close()
    (event,) = seen
    assert (event.who, event.code) == ("roster.yaml", "roster") and "the roster of before" in event.reason


@pytest.mark.parametrize("driver", [":8815", "host:999999", "host:0", "grpc://host:1", "host"])
def test_drivers_that_nobody_could_dial(driver: str) -> None:
    said = refused(f"agent silo.yaml --driver {driver} --credentials certs/va")
    assert f"--driver {driver}: expected HOST:PORT" in said
    assert "expected HOST:PORT" in refused(f"serve job.yaml --listen {driver}")


def test_credentials_stay_inside_the_silos_folder(here: Path) -> None:
    """As its data does; where an absolute path leads is the owner's explicit word."""
    (here / "hospital").mkdir()
    (here / "hospital" / "silo.yaml").touch()
    write_silo(driver="127.0.0.1:1", credentials="../certs/va")
    (here / "silo.yaml").rename(here / "hospital" / "silo.yaml")
    assert "out of" in refused("agent hospital/silo.yaml")
    (here / "hospital" / "link").symlink_to(here / "certs" / "va")
    for named in ("link", "../hospital/../certs/va"):
        write_silo(driver="127.0.0.1:1", credentials=named)
        (here / "silo.yaml").rename(here / "hospital" / "silo.yaml")
        assert "give the absolute path" in refused("agent hospital/silo.yaml")
    for named in (str(here / "certs" / "driver"), "certs/../own"):
        write_silo(driver="127.0.0.1:1", credentials=named)
        (here / "silo.yaml").rename(here / "hospital" / "silo.yaml")
        said = refused("agent hospital/silo.yaml")
        assert "not of the silo 'va'" in said or "own: no such folder" in said
