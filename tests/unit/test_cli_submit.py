"""``siloray submit`` beside a cluster that is played: what it asks of Ray, and what it makes of the answer."""

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from tests.unit.test_cli import DOCUMENT, one_line


class Played:
    """In the place of `orchestrator.transport.ray_jobs.Jobs`; it answers as ``found`` says."""

    asked: ClassVar[list[tuple[str, str, str]]] = []
    found = ("PENDING", True)
    code = 0

    def __init__(self, address: str) -> None:
        self.address = address

    def submit(self, name: str, command: str, folder: str, metadata: dict[str, str]) -> Any:
        self.asked.append((name, command, folder))
        status, is_new = self.found
        return types.SimpleNamespace(name=name, status=status, is_new=is_new)

    def log(self, name: str) -> list[str]:
        return ["round 1/3\n", "done\n"]

    def exit_code(self, name: str) -> int:
        return self.code

    def message(self, name: str) -> str:
        return "entrypoint failed"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    played = type("Played", (Played,), {"asked": []})
    module = types.ModuleType("orchestrator.transport.ray_jobs")
    module.Jobs = played  # type: ignore[attr-defined]
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


def test_the_folder_and_the_command_that_runs_there(job: Path, jobs: type[Played]) -> None:
    result = submit(job, "--runs-dir", "/data/my runs", "--no-track", "--python", "/opt/python")
    assert result.exit_code == 0 and result.stdout == "round 1/3\ndone\n"
    ((name, command, folder),) = jobs.asked
    assert name.startswith("siloray-") and folder == str(job.parent.parent)
    assert command == "/opt/python -m orchestrator run jobs/job.yaml --runs-dir '/data/my runs' --no-track"


def test_the_name_is_that_of_the_job_and_the_token(job: Path, jobs: type[Played]) -> None:
    for more in ((), (), ("--token", "b"), ("--new",), ("--new",)):
        submit(job, *more)
    names = [name for name, _, _ in jobs.asked]
    assert names[0] == names[1] and names[2] == f"{names[0]}-b"
    assert len(set(names)) == 4, "--new has a word of its own each time"
    assert jobs.asked[-1][1].endswith(" --new")
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
    assert result.exit_code == 0 and "ray job stop siloray-" in result.stdout


def test_bad_input_costs_one_line(job: Path, jobs: type[Played], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "letters" in one_line(submit(job, "--token", "a b"), 2)
    job.write_text("name: x")
    one_line(submit(job), 2)
    job.write_text(yaml.safe_dump(DOCUMENT))
    (job.parent.parent / "elsewhere").mkdir()
    monkeypatch.chdir(job.parent.parent / "elsewhere")
    assert "not in this folder" in one_line(submit(job), 2)
    assert jobs.asked == []


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
