"""``siloray submit`` beside a cluster that is played: what it asks of Ray, and what it makes of the answer."""

import io
import json
import os
import shlex
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from typer.testing import CliRunner, Result

from orchestrator.at_rest import STORE_KEY
from orchestrator.cli.main import app
from tests.unit.test_cli import DOCUMENT, call, one_line
from tests.unit.test_cli import transport as transport

ROOT = Path(__file__).parents[2]


class Played:
    """In the place of `orchestrator.transport.ray_jobs.Jobs`; it answers as ``found`` says."""

    asked: ClassVar[list[tuple[str, str, Path]]] = []
    found = ("PENDING", True)
    code = 0
    interrupted = False

    def __init__(self, address: str) -> None:
        self.address = address

    def submit(self, name: str, command: str, job: Path, metadata: dict[str, str]) -> Any:
        self.asked.append((name, command, job))
        status, is_new = self.found
        return types.SimpleNamespace(name=name, status=status, is_new=is_new)

    def log(self, name: str) -> Iterator[str]:
        yield "round 1/3\n"
        if self.interrupted:
            raise KeyboardInterrupt
        yield "done\n"

    def exit_code(self, name: str) -> int:
        return self.code

    def message(self, name: str) -> str:
        return "entrypoint failed"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    played = type("Played", (Played,), {"asked": []})
    module = types.ModuleType("orchestrator.transport.ray_jobs")
    module.Jobs, module.JOB_FILE = played, "job.yaml"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orchestrator.transport.ray_jobs", module)
    return played


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "jobs" / "job.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    return path


def submit(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["submit", *map(str, arguments)])


def test_the_command_that_runs_there(job: Path, jobs: type[Played]) -> None:
    result = submit(job, "--runs-dir", "/data/my runs", "--no-track", "--python", "/opt/python")
    assert result.exit_code == 0 and result.stdout == "round 1/3\ndone\n"
    ((name, command, sent),) = jobs.asked
    assert name.startswith("siloray-") and sent == job
    run = f"/opt/python -m orchestrator run job.yaml --submission {name}"
    assert command == f"{run} --runs-dir '/data/my runs' --no-track"


def test_the_name_is_that_of_the_job_and_the_token(job: Path, jobs: type[Played]) -> None:
    for more in ((), (), ("--token", "b"), ("--new",), ("--new",)):
        submit(job, *more)
    names = [name for name, _, _ in jobs.asked]
    assert names[0] == names[1] and names[2] == f"{names[0]}-b"
    assert len(set(names)) == 4, "--new has a word of its own each time"
    assert all(command.endswith(f"--submission {name}") for name, command, _ in jobs.asked)
    job.write_text(yaml.safe_dump({**DOCUMENT, "seed": 7}))
    submit(job)
    assert jobs.asked[-1][0] not in names


def test_the_exit_code_is_that_of_the_run(job: Path, jobs: type[Played]) -> None:
    jobs.code = 3
    result = submit(job)
    assert result.exit_code == 3
    assert "ended with exit code 3: entrypoint failed" in result.stderr


def test_what_is_done_is_not_done_again(job: Path, jobs: type[Played]) -> None:
    jobs.found, jobs.code = ("SUCCEEDED", False), 9
    result = submit(job)
    assert result.exit_code == 0 and "is done; --new" in result.stdout


def test_without_waiting_it_says_how_to_come_back(job: Path, jobs: type[Played]) -> None:
    jobs.code = 9
    result = submit(job, "--no-wait")
    ((name, _, _),) = jobs.asked
    assert result.exit_code == 0
    assert f"'ray job stop {name} --address http://127.0.0.1:8265' ends it" in result.stdout


def test_bad_input_costs_one_line(job: Path, jobs: type[Played]) -> None:
    assert "letters" in one_line(submit(job, "--token", "a b"), 2)
    job.write_text("name: x")
    one_line(submit(job), 2)
    assert jobs.asked == []


@pytest.mark.parametrize(
    ("option", "text", "refused"),
    [
        ("--runs-dir", "myruns", True),
        ("--runs-dir", "~/runs", True),
        ("--runs-dir", "/srv/runs", False),
        ("--runs-dir", "s3://bucket/runs", False),
        ("--tracking-uri", "sqlite:///x.db", True),
        ("--tracking-uri", "mlruns", True),
        ("--tracking-uri", "sqlite:////srv/x.db", False),
        ("--tracking-uri", "http://mlflow:5000", False),
    ],
)
def test_a_place_that_ray_would_delete_is_refused(
    job: Path, jobs: type[Played], option: str, text: str, refused: bool
) -> None:
    result = submit(job, option, text)
    if refused:
        assert f"{option} {text}: on the driver's node" in one_line(result, 2)
    assert result.exit_code == (2 if refused else 0) and len(jobs.asked) == (0 if refused else 1)


def test_the_place_of_the_key_is_given_there_and_the_key_is_not(
    job: Path, jobs: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_KEY, "/etc/siloray/our store.key")
    assert submit(job).exit_code == 0
    ((_, command, _),) = jobs.asked
    assert shlex.split(command)[:3] == ["env", f"{STORE_KEY}=/etc/siloray/our store.key", "python"]
    jobs.asked.clear()
    monkeypatch.setenv(STORE_KEY, "store.key")
    assert f"{STORE_KEY}=store.key: the driver's node has the key's file" in one_line(submit(job), 2)
    monkeypatch.setenv(STORE_KEY, "ab" * 32)
    assert "abab" not in one_line(submit(job), 2)
    assert jobs.asked == []


def test_no_password_is_sent_noted_or_given_to_another_process(job: Path, jobs: type[Played]) -> None:
    for command, option in (
        ("submit", "--tracking-uri"),
        ("submit", "--runs-dir"),
        ("run", "--tracking-uri"),
    ):
        said = one_line(CliRunner().invoke(app, [command, str(job), option, "https://me:secret@host/x"]), 2)
        assert "https://host/x: a password does not belong into a URI" in said and "secret" not in said
    assert jobs.asked == []


def test_ctrl_c_leaves_and_does_not_pass_for_success(job: Path, jobs: type[Played]) -> None:
    jobs.interrupted = True
    result = submit(job)
    assert result.exit_code == 130 and "goes on; the same command" in result.stderr


def test_a_cluster_that_does_not_answer_costs_one_line(job: Path) -> None:
    assert "--address 127.0.0.1:9" in one_line(submit(job, "--address", "127.0.0.1:9"), 2)


def test_attempts_are_counted_by_name() -> None:
    from orchestrator.transport.ray_jobs import _attempt

    name = "siloray-abc"
    found = (
        "siloray-abc",
        "siloray-abc-2",
        "siloray-abc-17",
        "siloray-abcd",
        "siloray-abc-b",
        "siloray-abc-b-2",
        "x",
    )
    assert [_attempt(each, name) for each in found] == [1, 2, 17, 0, 0, 0, 0]


def test_hints_work_on_the_cluster_as_they_are_typed(
    job: Path, transport: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("--address", "head:6379", "--runs-dir", str(job.parent / "elsewhere"))
    name = " ".join(("heart-1", *own))
    told = call("run", job, *own, "--no-checks", "--detach")
    assert f"'siloray watch {name}' shows it, 'siloray stop {name}' ends it" in told.stdout
    monkeypatch.setenv("SCRIPT", "failed")
    told = call("run", job, *own, "--no-checks")
    assert f"go on    siloray resume {name}" in told.stdout


def test_a_run_that_its_submission_has_done_is_shown(job: Path, transport: types.ModuleType) -> None:
    """What the cluster runs for `siloray submit`; the transport says that there is nothing to do."""
    told = call("run", job, "--address", "head:6379", "--no-checks", "--submission", "siloray-1")
    assert told.exit_code == 0 and transport.asked[0].submission == "siloray-1"
    assert "heart-1 was submitted before and is done; --new submits the job once more" in told.stderr
    assert "done: all rounds" in told.stdout


class Dashboard(BaseHTTPRequestHandler):
    """As much of Ray's as a submission needs."""

    refuses = 0
    """The status of every answer, if it is not 0."""
    packages: ClassVar[list[bytes]] = []
    jobs: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        import ray

        if "/api/packages/" in self.path:
            self._answer(None, 404)
        elif self.path == "/api/version":
            self._answer({"version": "4", "ray_version": ray.__version__, "ray_commit": ""})
        else:
            self._answer([])

    def do_PUT(self) -> None:
        self.packages.append(self._body())
        self._answer(None)

    def do_POST(self) -> None:
        self.jobs.append(json.loads(self._body()))
        self._answer({"job_id": "x", "submission_id": "x"})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, what: Any, status: int = 200) -> None:
        data = json.dumps(what).encode()
        self.send_response(self.refuses or status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def dashboard() -> Iterator[tuple[type[Dashboard], str]]:
    played = type("Played", (Dashboard,), {"packages": [], "jobs": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), played) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield played, f"127.0.0.1:{server.server_port}"
        server.shutdown()


def at(address: str, folder: Path, **environ: str) -> tuple[int, str, str]:
    """The command as a process, for Ray knows its token once only; without a home that has one."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "submit", "job.yaml", "--no-wait", "--address", address],
        cwd=folder,
        env={**known, "HOME": str(folder), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("status", "environ", "words"),
    [
        (0, {}, "this machine has no token"),
        (401, {"RAY_AUTH_MODE": "disabled"}, "it asks for a token; RAY_AUTH_MODE=token, and"),
        (403, {"RAY_AUTH_TOKEN": "another"}, "it does not take this machine's token; RAY_AUTH_MODE=token"),
        (500, {"RAY_AUTH_TOKEN": "another"}, "500"),
    ],
)
def test_a_cluster_that_takes_no_such_token_costs_one_line(
    job: Path, dashboard: tuple[type[Dashboard], str], status: int, environ: dict[str, str], words: str
) -> None:
    played, address = dashboard
    played.refuses = status
    code, out, err = at(address, job.parent, **environ)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert f"siloray: --address {address}: " in err and words in err
    assert not list(job.parent.glob("*traceback*")), "no mistake of ours"


def test_the_job_document_is_all_that_is_sent(job: Path, dashboard: tuple[type[Dashboard], str]) -> None:
    """Ray's own packaging, of a folder with all that an organisation may have beside a job."""
    played, address = dashboard
    secrets = ("silos/a/a.parquet", "silos/b.yaml", "data/x.csv", "runs/r/journal.jsonl", ".siloray/a/epoch")
    for name in (
        *secrets,
        "certs/ca.key",
        "credentials/tls.key",
        "silo.yaml",
        "mine.py",
        "orchestrator/x.py",
    ):
        (job.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (job.parent / name).write_text("private")
    code, _, err = at(address, job.parent, RAY_AUTH_TOKEN="any", RAY_API_SERVER_ADDRESS="http://127.0.0.1:9")
    assert code == 0, err
    (package,) = played.packages
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert archive.namelist() == ["job.yaml"]
        assert archive.read("job.yaml") == job.read_bytes()
    (asked,) = played.jobs
    assert asked["submission_id"] in asked["entrypoint"]
    assert err == f"{asked['submission_id']} submitted\n", "Ray's own lines are not shown"


def test_a_cluster_that_goes_away_leaves_the_run(
    dashboard: tuple[type[Dashboard], str], monkeypatch: Any
) -> None:
    from orchestrator.core.errors import CannotGoOn
    from orchestrator.transport.ray_jobs import Jobs

    played, address = dashboard
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Jobs(address)
    cluster._begin = lambda name: None  # type: ignore[method-assign]
    with pytest.raises(CannotGoOn, match="does not answer any more"):
        list(cluster.log("siloray-1"))  # what answers there is no web socket
    played.refuses = 403
    for ask in (cluster.exit_code, cluster.message):
        with pytest.raises(CannotGoOn, match="the same command looks at it again"):
            ask("siloray-1")
