"""``siloray approve``, and that the silo keeps to it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.core.errors import BadInput
from orchestrator.job import Job
from silos.approvals import Approvals, code_digests
from silos.configured_site import ConfiguredSite

TASK = {"name": "tabular", "dataset": "heart", "target": "num", "features": ["age", "chol"]}
JOB: dict[str, Any] = {"name": "hearts", "task": TASK, "silos": ["a", "b"], "rounds": {"total": 3}}
OWN = {"name": "ours.tasks:Task", "dataset": "heart"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_silo()
    write_job(JOB)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "__init__.py").write_text("open('ran', 'w')\n")
    (tmp_path / "ours" / "tasks.py").write_text("class Task: ...\n")
    (tmp_path / "ours" / "model.py").write_text("layers = 1\n")
    return tmp_path


def write_silo(**policy: Any) -> None:
    known = {"approval": "required", "allow_code": ["ours"], **policy}
    document = {"name": "a", "datasets": {"heart": {"path": "x.csv"}}, "policy": known}
    Path("silo.yaml").write_text(yaml.safe_dump(document))


def write_job(document: dict[str, Any]) -> Job:
    Path("job.yaml").write_text(yaml.safe_dump(document))
    return Job.model_validate(document)


def approve(line: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["approve", "--silo", "silo.yaml", *line.split()])
    return ended.exit_code, ended.output


def review(job: Job) -> str | None:
    return ConfiguredSite(Path("silo.yaml")).review(job)


def events() -> list[str]:
    lines = Path(".siloray/a/audit.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_a_job_waits_for_its_approval() -> None:
    job = write_job(JOB)
    reason = review(job)
    assert reason is not None and "siloray approve job.yaml" in reason and "\n" not in reason
    code, said = approve("job.yaml --yes")
    assert code == 0 and "age, chol; to predict num" in said and "3 sync rounds" in said
    assert review(job) is None
    assert Path(".siloray/a/approvals.json").stat().st_mode & 0o777 == 0o600
    assert job.digest[:12] in approve("--list")[1]
    assert approve("job.yaml --revoke")[0] == 0
    assert review(job) is not None and approve("--list")[1] == ""
    assert events() == ["approved", "approval revoked"]


def test_another_job_of_that_name_is_not_approved() -> None:
    approve("job.yaml --yes")
    assert review(Job.model_validate({**JOB, "seed": 1})) is not None


def test_nobody_there_to_ask() -> None:
    code, said = approve("job.yaml")
    assert code == 2 and "--yes" in said.splitlines()[-1]
    assert review(write_job(JOB)) is not None


@pytest.mark.parametrize("changed", ["ours/tasks.py", "ours/model.py", "ours/new.py"])
def test_code_that_changed_since(changed: str) -> None:
    job = write_job({**JOB, "task": OWN})
    code, said = approve("job.yaml --yes")
    assert code == 0 and f"ours.tasks, SHA-256 {code_digests(job)['ours.tasks']}" in said
    assert review(job) is None
    Path(changed).write_text("layers = 2\n")
    reason = review(job)
    assert reason is not None and "'ours.tasks' at a changed since" in reason
    approve("job.yaml --yes")
    assert review(job) is None
    assert not Path("ran").exists() and "ours" not in sys.modules, "nothing of it was run"


def test_a_single_file_module() -> None:
    Path("lone.py").write_text("class Task: ...\n")
    write_silo(allow_code=["lone"])
    job = write_job({**JOB, "task": {**OWN, "name": "lone:Task"}})
    assert approve("job.yaml --yes")[0] == 0 and review(job) is None
    Path("lone.py").write_text("class Task: pass\n")
    assert review(job) is not None


def test_the_policy_comes_first() -> None:
    write_silo(allow_strategies=["fedprox"])
    code, said = approve("job.yaml --yes")
    assert code == 2 and "the policy refuses it" in said.splitlines()[-1]
    assert approve("--list") == (0, "")


def test_a_broken_file_approves_nothing() -> None:
    approve("job.yaml --yes")
    for text in ("{", "[]", '{"approved": 1}'):
        Path(".siloray/a/approvals.json").write_text(text)
        with pytest.raises(BadInput, match=r"approvals.json"):
            review(write_job(JOB))


@pytest.mark.parametrize("line", ["", "nothing.yaml", "job.yaml --revoke", "silo.yaml --yes"])
def test_wrong_lines_end_with_2(line: str) -> None:
    code, said = approve(line)
    assert code == 2 and said.count("\n") == 1


def test_a_module_that_is_not_here() -> None:
    write_silo(allow_code=["theirs"])
    write_job({**JOB, "task": {**OWN, "name": "theirs.tasks:Task"}})
    code, said = approve("job.yaml --yes")
    assert code == 2 and "there is no such module at this silo" in said


def test_no_approval_is_needed_unless_the_policy_says_so() -> None:
    write_silo(approval="none")
    assert review(write_job(JOB)) is None
    assert Approvals(Path(".siloray/a")).all() == {}


def test_a_module_inside_folders_without_init_has_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of one package may lie in several places, and Python looks for them by asking the one around it."""
    source = tmp_path / "outer" / "inner" / "code_of_ours.py"
    source.parent.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    job = Job.model_validate({**JOB, "task": {**OWN, "name": "outer.inner.code_of_ours:Task"}})
    seen = set()
    for text in ("VALUE = 1", "VALUE = 2"):
        source.write_text(text)
        seen |= set(code_digests(job).values())
    assert len(seen) == 2
