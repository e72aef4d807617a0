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
    Path("x.csv").write_text("age,chol,num\n63,233,0\n37,250,1\n")


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
    assert code == 0 and "features: [age, chol]" in said and "mode: sync, total: 3" in said
    assert review(job) is None
    assert Path(".siloray/a/approvals.json").stat().st_mode & 0o777 == 0o600
    assert job.digest[:12] in approve("--list")[1]
    assert approve("job.yaml --revoke")[0] == 0
    assert review(job) is not None and approve("--list")[1] == ""
    assert events() == ["approved", "approval revoked"]


def test_another_job_of_that_name_is_not_approved() -> None:
    approve("job.yaml --yes")
    assert review(Job.model_validate({**JOB, "seed": 1})) is not None


WHOLE: dict[str, Any] = {
    "name": "scans",
    "silos": ["a", "b"],
    "rounds": {"total": 3},
    "shared": ["*"],
    "private": ["head.*"],
    "task": {
        "name": "image_classification",
        "dataset": "heart",
        "num_classes": 2,
        "mean": [0.5],
        "std": [0.1],
        "transforms": {"train": [{"RandomCrop": {"size": 3}}]},
        "model": {"name": "resnet18", "options": {"zero_init_residual": True}},
    },
    "privacy": [{"name": "clip", "max_norm": 2.0}],
    "codec": {"name": "bf16"},
    "gate": {"max_norm": 9.0},
    "strategy": {"name": "fedprox", "mu": 0.25},
    "local": {"epochs": 7, "batch_size": 3},
    "stop": {"metric": "accuracy"},
    "required_silos": ["b"],
    "seed": 11,
    "keep": {"newest": 4},
}


def test_all_that_the_job_gives_is_shown() -> None:
    write_job(WHOLE)
    said = approve("job.yaml --yes")[1]
    for words in (
        "transforms: {train: [{RandomCrop: {size: 3}}]}",
        "model       name: resnet18, options: {zero_init_residual: true}",
        "private     head.*\n",
        "privacy     {name: clip, max_norm: 2.0}\n",
        "codec       name: bf16\n",
        "gate        max_norm: 9.0\n",
        "strategy    name: fedprox, mu: 0.25\n",
        "local       epochs: 7, batch_size: 3\n",
        "required_silos b\n",
        *("metric: accuracy", "seed        11\n", "newest: 4", "mean: [0.5], std: [0.1]"),
    ):
        assert words in said, said
    assert "shared " not in said, "as by default"


def test_no_word_of_the_job_passes_for_another_line() -> None:
    """What would be a line of its own, or another part of this one, is quoted."""
    fake = "y\nprivacy     clip max_norm 0.1\x1b[2K\u202e"
    write_job({**JOB, "task": {**TASK, "target": fake, "features": ["age], target: num", "ch\u00f6l"]}})
    said = approve("job.yaml --yes")[1]
    lines = [line for line in said.splitlines() if line.startswith("privacy")]
    assert lines == ["privacy     none: updates leave as they are"]
    shown = (
        r'target: "y\nprivacy     clip max_norm 0.1\u001b[2K\u202e", features: ["age], target: num", chöl]'
    )
    assert shown in said


def test_code_is_looked_for_where_the_agent_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside ``silo.yaml``; not beside the job, which came from elsewhere, nor in the working folder."""
    came, cwd = tmp_path / "came", tmp_path / "cwd"
    for folder, text in ((tmp_path, "ours"), (came, "theirs"), (cwd, "others")):
        folder.mkdir(exist_ok=True)
        (folder / "beside_here.py").write_text(f"class Task: '{text}'\n")
    (came / "only_there.py").write_text("class Task: ...\n")
    write_silo(allow_code=["beside_here", "only_there"])
    monkeypatch.chdir(cwd)
    silo = ["approve", "--silo", str(tmp_path / "silo.yaml"), "--yes"]
    for module, code in (("beside_here", 0), ("only_there", 2)):
        document = {**JOB, "task": {**OWN, "name": f"{module}:Task"}}
        (came / "job.yaml").write_text(yaml.safe_dump(document))
        ended = CliRunner().invoke(app, [*silo, str(came / "job.yaml")])
        assert ended.exit_code == code, ended.output
    assert ConfiguredSite(tmp_path / "silo.yaml").review(Job.model_validate(document)) is not None
    (came / "beside_here.py").write_text("class Task: 'changed'\n")
    document["task"]["name"] = "beside_here:Task"
    assert ConfiguredSite(tmp_path / "silo.yaml").review(Job.model_validate(document)) is None


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
