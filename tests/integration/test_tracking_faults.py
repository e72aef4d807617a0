"""A real MLflow server that is absent, killed or frozen, and a follower that is killed: nothing waits for it, and
afterwards every point is there once."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tracking_checks import check_complete, stored
from tests.support.tracking_run import Recorder, job
from tracking import ui
from tracking.cursor import load

ROUND_S = 0.1
LONGEST_APPEND_S = 0.05
DRAINED_S = 120.0


class MlflowServer:
    """A server of its own, in a session of its own, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "mlflow.db"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = ui.serve(f"sqlite:///{self.database}", self.port)
        assert ui.wait_until_up(self.url)

    def signal(self, number: int) -> None:
        """To the server and its worker."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def end(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is room: what is measured is the waiting for the tracker, not for a disk."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="siloray-test-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def server(folder: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(folder)
    yield server
    server.end()


@pytest.fixture
def recorder(folder: Path) -> Iterator[Recorder]:
    recorder = Recorder(folder / "run", job(200), run_id="faults-1")
    recorder.model = None
    recorder.open()
    recorder.longest_s = 0.0  # from here on a follower runs beside it
    yield recorder
    recorder.release()


def start_follower(recorder: Recorder, uri: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "tracking", str(recorder.run_dir), "--uri", uri, "--nice"],
        cwd=Path(__file__).parents[2],
        stderr=(recorder.run_dir / "tracking.log").open("ab"),
        start_new_session=True,
    )


def rounds(recorder: Recorder, first: int, last: int) -> None:
    for version in range(first, last + 1):
        recorder.round(version)
        time.sleep(ROUND_S)


def until(ready: object, timeout_s: float = DRAINED_S) -> None:
    give_up = time.monotonic() + timeout_s
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < give_up, "it took too long"
        time.sleep(0.1)


def posted(recorder: Recorder, uri: str) -> int:
    return load(recorder.run_dir, uri).seq


def check(recorder: Recorder, database: Path) -> None:
    count = check_complete(recorder.run_dir, database, recorder.run_id, recorder.job.silos)
    assert count > 1000
    assert recorder.longest_s < LONGEST_APPEND_S, f"an append waited {1000 * recorder.longest_s:.0f} ms"


@pytest.mark.slow
def test_a_server_that_comes_late_is_killed_and_frozen_gets_every_point_once(
    recorder: Recorder, server: MlflowServer
) -> None:
    follower = start_follower(recorder, server.url)
    try:
        rounds(recorder, 1, 10)
        assert posted(recorder, server.url) == -1
        server.start()
        until(lambda: posted(recorder, server.url) > 10)

        rounds(recorder, 11, 15)
        server.end()
        rounds(recorder, 16, 30)
        server.start()
        until(lambda: not load(recorder.run_dir, server.url).problem)

        server.signal(signal.SIGSTOP)
        rounds(recorder, 31, 110)  # longer than the time after which a request is given up
        server.signal(signal.SIGCONT)
        rounds(recorder, 111, 115)
        recorder.close(115)
        assert follower.wait(DRAINED_S) == 0
    finally:
        follower.kill()
        follower.wait()
    check(recorder, server.database)


@pytest.mark.slow
def test_a_follower_killed_at_random_moments_leaves_every_point_once(
    recorder: Recorder, folder: Path
) -> None:
    database = folder / "mlflow.db"
    uri, moments, version = f"sqlite:///{database}", random.Random(1), 1
    rounds(recorder, version, version)
    for _ in range(6):
        follower = start_follower(recorder, uri)
        until(lambda: posted(recorder, uri) > 0)
        end = time.monotonic() + moments.uniform(3.0, 7.0)
        while time.monotonic() < end:
            version += 1
            rounds(recorder, version, version)
        follower.kill()
        follower.wait()
    assert stored(database, recorder.run_id)
    recorder.close(version)
    assert start_follower(recorder, uri).wait(DRAINED_S) == 0
    check(recorder, database)


@pytest.mark.slow
def test_told_to_end_the_follower_ends_at_once_while_the_server_is_away(
    recorder: Recorder, server: MlflowServer
) -> None:
    follower = start_follower(recorder, server.url)
    rounds(recorder, 1, 3)
    until(lambda: load(recorder.run_dir, server.url).problem)
    assert "Connection" in load(recorder.run_dir, server.url).problem
    began = time.monotonic()
    follower.terminate()
    assert follower.wait(20) == 0
    assert time.monotonic() - began < 7
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


@pytest.mark.slow
def test_two_followers_do_not_work_side_by_side(recorder: Recorder, folder: Path) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    first, second = start_follower(recorder, uri), start_follower(recorder, uri)
    rounds(recorder, 1, 60)
    recorder.close(60)
    assert (first.wait(DRAINED_S), second.wait(DRAINED_S)) == (0, 0)
    check(recorder, folder / "mlflow.db")
