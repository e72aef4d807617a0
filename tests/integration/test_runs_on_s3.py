"""Runs in a store with the real S3 protocol: a new machine goes on with the same command; the store may go away."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from orchestrator.job import Job
from tests.integration.conftest import write_silos
from tests.integration.test_ray_submit import SILOS, Shell, write_job
from tests.support.clusters import Cluster, free_ports
from tests.support.commands import Command

pytestmark = pytest.mark.slow

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Proxy:
    """A way to the store that can be taken away."""

    def __init__(self, to: int) -> None:
        (self.port,) = free_ports(1)
        self._to, self._open = to, list[socket.socket]()
        self.back()

    def back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def away(self) -> None:
        for each in [self._listener, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, there = listener.accept()[0], socket.create_connection(("127.0.0.1", self._to))
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with the bucket ``silos``; it keeps its data in memory."""
    (port,) = free_ports(1)
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **CREDENTIALS})
    try:
        for _ in range(300):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.1)
        client(port).create_bucket(Bucket="silos")
        yield port
    finally:
        server.terminate()
        server.wait(10)


def client(port: int) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test-secret"}
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys)


class Place:
    """A machine: a folder for its commands, and one for its copies of what is in stores."""

    def __init__(self, folder: Path, job: Job, uri: str) -> None:
        self.folder, self.uri = folder, uri
        folder.mkdir()
        (folder / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")), encoding="utf-8")
        write_silos(folder / "silos")
        self.commands: list[Command] = []

    def give(self, *arguments: str) -> Command:
        environ = {**CREDENTIALS, "SILORAY_CACHE": str(self.folder / "cache")}
        self.commands.append(Command(*arguments, "--runs-dir", self.uri, cwd=self.folder, environ=environ))
        return self.commands[-1]

    def run(self) -> Command:
        return self.give("run", "job.yaml", "--no-track")

    def show(self, *more: str) -> dict[str, Any]:
        command = self.give("show", "last", "--json", *more)
        assert command.end() == 0, command.told
        return dict(json.loads(command.out))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(job: Job, uri: str) -> Place:
        made.append(Place(tmp_path / f"machine{len(made)}", job, uri))
        return made[-1]

    yield make
    for command in [each for place in made for each in place.commands]:
        command.close()


def uri_of(port: int, prefix: str) -> str:
    return f"s3://silos/{prefix}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def test_a_new_machine_goes_on_with_the_same_command(
    machine: Callable[..., Place], slow_job: Callable[..., Job], s3: int
) -> None:
    job = slow_job(total=5)
    plain = machine(job, "runs")
    undisturbed = plain.run()
    assert undisturbed.end() == 0, undisturbed.told

    lost = machine(job, uri_of(s3, "heart"))
    command = lost.run()
    command.until("round 2")
    command.close()  # SIGKILL to everything of it
    shutil.rmtree(lost.folder / "cache")

    new = machine(job, uri_of(s3, "heart"))
    again = new.run()
    assert again.end() == 0, again.told
    summary = new.show()
    assert summary["parameters_digest"] == plain.show()["parameters_digest"]
    assert (summary["status"], summary["resumed"], len(summary["versions"])) == ("done", 1, 5)

    looker = machine(job, uri_of(s3, "heart"))
    listed = looker.give("list", "--json")
    assert listed.end() == 0, listed.told
    (row,) = json.loads(listed.out)
    assert (row["status"], row["version"]) == ("done", 5)
    assert not list((looker.folder / "cache").rglob("*.safetensors"))
    for text in (again.told, listed.told, json.dumps(summary)):
        assert "test-secret" not in text


@pytest.mark.long
def test_on_a_new_cluster_the_same_command_goes_on_from_the_store(tmp_path: Path, s3: int) -> None:
    """Whoever gives the command needs no credentials: the driver's node has them."""
    documents = write_silos(tmp_path / "documents")
    digests = []
    for number in range(2):
        stored = {**CREDENTIALS, "SILORAY_CACHE": str(tmp_path / f"cache{number}")}
        with Cluster(tmp_path, SILORAY_RUNS=uri_of(s3, "cluster"), **stored) as cluster:
            for silo in SILOS:
                cluster.join(silo, documents / f"{silo}.yaml")
            shell = Shell(cluster, tmp_path / "folder")
            write_job(shell.folder, 0.12)
            command = shell.ask("run", "job.yaml", "--no-track")
            if number == 0:
                command.until("round 2/")
                assert cluster.head is not None
                cluster.head.kill()
                assert command.end() == 4, command.told
                shutil.rmtree(tmp_path / "cache0")
            else:
                assert command.end() == 0 and "goes on from version" in command.out, command.told
                (row,) = shell.rows()
                assert (row["status"], row["resumed"]) == ("done", 1)
                plain = shell.ask("run", "job.yaml", "--no-track", "--runs-dir", str(tmp_path / "plain"))
                assert plain.end() == 0, plain.told
                found = [*(tmp_path / "cache1").rglob("summary.json"), *tmp_path.glob("plain/*/summary.json")]
                digests = [json.loads(each.read_text())["parameters_digest"] for each in found]
            shell.close()
    assert len(digests) >= 2 and len(set(digests)) == 1


@pytest.mark.long
def test_a_stopped_run_is_resumed_elsewhere(
    machine: Callable[..., Place], slow_job: Callable[..., Job], s3: int
) -> None:
    job = slow_job(total=4)
    first = machine(job, uri_of(s3, "stopped"))
    command = first.run()
    command.until("round 1")
    command.send(signal.SIGINT)
    assert command.end() == 3, command.told
    other = machine(job, uri_of(s3, "stopped"))
    resumed = other.give("resume", "last")
    assert resumed.end() == 0, resumed.told
    assert first.show()["status"] == "done"


def test_a_run_waits_for_a_store_that_is_away(
    machine: Callable[..., Place], slow_job: Callable[..., Job], s3: int
) -> None:
    proxy = Proxy(s3)
    place = machine(slow_job(total=5), uri_of(proxy.port, "away"))
    command = place.run()
    command.until("round 2")
    proxy.away()
    command.until("the store does not answer")
    proxy.back()
    assert command.end() == 0, command.told
    assert len(place.show()["versions"]) == 5


def test_what_cannot_be_used_ends_before_anything_starts(
    machine: Callable[..., Place], slow_job: Callable[..., Job], s3: int
) -> None:
    for uri in (
        f"s3://nobody/x?endpoint_override=127.0.0.1:{s3}&scheme=http&region=us-east-1",
        "foo://x/y",
        "s3://key:test-secret@silos/x",
    ):
        command = machine(slow_job(), uri).run()
        assert command.end() == 2, command.told
        assert "test-secret" not in command.told and "Traceback" not in command.told
        assert command.errors[-1].startswith("siloray: ")
