"""The follower against a real MLflow database, interrupted at every single thing that it asks of it."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from orchestrator.core.events import SiloDown
from tests.support.tracking_checks import check_complete, run_count, stored
from tests.support.tracking_run import Recorder, job
from tracking import cursor as cursors
from tracking.follower import Follower, driver_lives, follow
from tracking.points import RUN
from tracking.server import Server, absolute

pytestmark = pytest.mark.filterwarnings("ignore")
ASKS = ("experiment", "share_view", "runs", "create_run", "delete_runs", "send")


class Interrupted(Exception):
    """In place of a kill: whoever asked never learns whether it was done."""


class FragileServer(Server):
    """A server whose answer to the ``nth`` question is lost, before or after doing what was asked."""

    def __init__(self, uri: str, nth: int = -1, done: bool = True) -> None:
        super().__init__(uri)
        self.left, self.done = nth, done

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in ASKS:
            return value

        def ask(*arguments: Any) -> Any:
            self.left -= 1
            if self.left == -1 and not self.done:
                raise Interrupted
            answer = value(*arguments)
            if self.left == -1:
                raise Interrupted
            return answer

        return ask


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making the tables takes MLflow seconds, so all tests share one database."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def recorder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "run", job(6), run_id=re.sub(r"\W", "-", request.node.name))
    recorder.model = None
    recorder.open()
    yield recorder
    recorder.release()


def new(recorder: Recorder, database: Path, server: Server | None = None) -> Follower:
    follower = Follower(recorder.run_dir, f"sqlite:///{database}")
    follower._server = server
    return follower


def drain(recorder: Recorder, database: Path) -> Follower:
    follower = new(recorder, database)
    assert follow(follower, "now", Flag(), poll_s=0.01) == 0
    return follower


def check(recorder: Recorder, database: Path) -> int:
    return check_complete(recorder.run_dir, database, recorder.run_id, recorder.job.silos)


def test_points_arrive_while_the_run_goes_on(recorder: Recorder, database: Path) -> None:
    follower, counts = new(recorder, database), []
    for version in (1, 2, 3):
        recorder.round(version)
        while follower.step():
            pass
        counts.append(check(recorder, database))
    assert counts[0] < counts[1] < counts[2]
    assert not follower.done
    recorder.close(3)
    assert follow(follower, "left", Flag(), poll_s=0.01) == 0
    assert follower.done
    check(recorder, database)


def test_what_went_wrong_at_the_end_is_forgotten_once_it_went_well(
    recorder: Recorder, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that could not be posted at first is there in the end, and nobody is told otherwise."""
    recorder.round(1)
    follower = new(recorder, database)
    while follower.step():
        pass
    recorder.close(1)
    follower.step()
    with monkeypatch.context() as patched:
        patched.setattr("tracking.publish._finish", _away)
        assert follow(follower, "now", _stopping(follower), poll_s=0.01) == 0
        assert "ConnectionError: away" in str(cursors.trouble(recorder.run_dir))
    assert follow(follower, "now", Flag(), poll_s=0.01) == 0
    assert follower.done and cursors.trouble(recorder.run_dir) is None


def _away(*_: object) -> None:
    raise ConnectionError("away")


def _stopping(follower: Follower) -> Flag:
    """Set as soon as the follower has noted a problem."""

    class Noted(Flag):
        def is_set(self) -> bool:
            return bool(follower.cursor.problem)

    return Noted()


@pytest.mark.parametrize(
    "done",
    [pytest.param(True, id="answer-lost"), pytest.param(False, id="question-lost", marks=pytest.mark.slow)],
)
def test_interrupted_anywhere_every_point_is_there_once(
    recorder: Recorder, database: Path, done: bool
) -> None:
    for version in (1, 2, 3):
        recorder.round(version)
    for nth in range(100):
        first = new(recorder, database, FragileServer(f"sqlite:///{database}", nth, done))
        try:
            while first.step():
                pass
        except Interrupted:
            drain(recorder, database)
            check(recorder, database)
            _forget(database, recorder)
        else:
            assert nth > 10
            return
    pytest.fail("it never came to its end")


def _forget(database: Path, recorder: Recorder) -> None:
    """As if neither MLflow nor the follower had ever heard of the run."""
    server = Server(f"sqlite:///{database}")
    for ids in server.runs(server.experiment("heart-disease"), recorder.run_id).values():
        server.delete_runs(ids)
    (recorder.run_dir / cursors.CURSOR).unlink()


def test_the_head_of_the_journal_is_a_tag(recorder: Recorder, database: Path) -> None:
    """With it, whoever sees the run in MLflow can tell whether a journal is the run's."""
    follower = new(recorder, database)
    for version in (1, 2):
        recorder.round(version)
        while follower.step():
            pass
        assert _head(database, recorder) == recorder.store.head.digest
    recorder.close(2)
    drain(recorder, database)
    assert _head(database, recorder) == recorder.store.head.digest


def _head(database: Path, recorder: Recorder) -> str:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{database}")
    ids = Server(f"sqlite:///{database}")
    found = ids.runs(ids.experiment("heart-disease"), recorder.run_id)
    return str(client.get_run(found[RUN][0]).data.tags["siloray.head"])


def test_a_lost_cursor_changes_nothing(recorder: Recorder, database: Path) -> None:
    recorder.round(1)
    drain(recorder, database)
    before = stored(database, recorder.run_id)
    (recorder.run_dir / cursors.CURSOR).write_text("{torn")
    drain(recorder, database)
    assert stored(database, recorder.run_id) == before


def test_a_run_made_twice_by_a_late_request_is_removed(recorder: Recorder, database: Path) -> None:
    recorder.round(1)
    follower = drain(recorder, database)
    tags = {"siloray.run_id": recorder.run_id, "siloray.silo": "va"}
    follower._connect().create_run(follower.cursor.experiment_id, "va", 0, tags)
    assert run_count(database, recorder.run_id)["va"] == 2
    recorder.close(1)
    drain(recorder, database)
    check(recorder, database)


def test_a_resumed_run_goes_on_in_its_mlflow_run(recorder: Recorder, database: Path) -> None:
    recorder.round(1)
    recorder.close(1, "stopped")
    ids = drain(recorder, database).cursor.runs
    recorder.open(resumed_from=1)
    recorder.round(2)
    recorder.close(2)
    follower = drain(recorder, database)
    assert follower.cursor.runs == ids
    assert follower._connect().client.get_run(ids[RUN]).info.status == "FINISHED"
    check(recorder, database)


def test_rounds_with_another_outcome_replace_the_mlflow_runs(recorder: Recorder, database: Path) -> None:
    for version in (1, 2):
        recorder.round(version)
    ids = drain(recorder, database).cursor.runs
    recorder.store._journal.commit = 1  # as after a recovery from version 1
    recorder.seed = 1
    recorder.round(2)
    recorder.close(2)
    follower = drain(recorder, database)
    assert set(follower.cursor.runs.values()).isdisjoint(ids.values())
    check(recorder, database)


def test_a_server_with_an_empty_database_gets_everything_again(recorder: Recorder, database: Path) -> None:
    recorder.round(1)
    follower = drain(recorder, database)
    follower.cursor.runs = {key: "0" * 32 for key in follower.cursor.runs}
    follower._save()
    recorder.round(2)
    recorder.close(2)
    drain(recorder, database)
    check(recorder, database)


def test_a_torn_tail_that_is_cut_and_written_anew_is_read(recorder: Recorder, database: Path) -> None:
    recorder.round(1)
    journal = recorder.run_dir / "journal.jsonl"
    follower, whole = new(recorder, database), journal.read_bytes()
    journal.write_bytes(whole + b'{"crc":"0000')
    while follower.step():
        pass
    journal.write_bytes(whole)
    recorder.round(2)
    while follower.step():
        pass
    assert check(recorder, database) == len(stored(database, recorder.run_id))


def test_lines_that_a_crash_of_the_machine_took_back_do_no_harm(recorder: Recorder, database: Path) -> None:
    recorder.round(1)
    journal = recorder.run_dir / "journal.jsonl"
    durable, follower = journal.read_bytes(), new(recorder, database)
    for _ in range(2):
        recorder._append(SiloDown(silo="va", version=1, why="a line that will be lost"))
    while follower.step():
        pass
    recorder.release()
    journal.write_bytes(durable)
    again = Recorder(recorder.run_dir, recorder.job, recorder.run_id)
    again.model = None
    again.open(resumed_from=1)
    again.round(2)
    while follower.step():
        pass
    check(recorder, database)
    again.release()


def test_the_follower_ends_when_the_driver_is_gone(
    recorder: Recorder, database: Path, monkeypatch: Any
) -> None:
    recorder.round(1)
    assert driver_lives(recorder.run_dir)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    lease = recorder.run_dir / "lease.json"
    lease.write_text(lease.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{child}'))
    assert not driver_lives(recorder.run_dir)
    monkeypatch.setattr("tracking.follower.LEFT_S", 0.2)
    assert follow(new(recorder, database), "left", Flag(), poll_s=0.05) == 0
    check(recorder, database)


def test_told_to_stop_it_stops(recorder: Recorder, database: Path) -> None:
    stop = Flag()
    stop.set()
    follower = new(recorder, database)
    assert follow(follower, "closed", stop) == 0
    assert follower._server is None


def test_damage_is_said_and_not_posted(recorder: Recorder, database: Path) -> None:
    recorder.round(1)
    recorder.round(2)
    journal = recorder.run_dir / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"cleveland", b"clevelans", 1))
    assert follow(new(recorder, database), "now", Flag()) == 1


def test_the_same_file_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert absolute("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    with suppress(FileNotFoundError):
        assert cursors.load(tmp_path, "x") == cursors.Cursor("x")
