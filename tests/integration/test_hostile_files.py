"""Hostile ``silo.yaml`` and ``job.yaml``: refused in one line, and no data file was opened where none may be."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.core.errors import BadInput
from orchestrator.job import Job
from silos.bounds import bounded
from silos.config import DatasetConfig
from silos.data import open_data

TASK = {"name": "tabular", "dataset": "d", "target": "y", "features": ["x"]}
JOB: dict[str, Any] = {"name": "j", "task": TASK, "silos": ["a"], "rounds": {"total": 1}}

JOIN = """
import json, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from orchestrator.core.messages import Join
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
job = Job.model_validate(json.loads(sys.argv[2]))
silo = Silo(ConfiguredSite(Path(sys.argv[1])))
reply = silo.handle(Join(run_id="r", epoch=1, job=job.model_dump_json(), job_digest=job.digest))
print(json.dumps({
    "reply": type(reply).__name__,
    "code": getattr(reply, "code", ""),
    "reason": getattr(reply, "reason", ""),
    "opened": opened,
    "modules": sorted(sys.modules),
}))
"""
"""Joins a silo in a process of its own, and says which files and modules that touched."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A silo's folder with data of its own, beside secrets of somebody else, and links that lead to them."""
    home, secrets = tmp_path / "silo", tmp_path / "secrets"
    for folder in (home / "data" / "more", secrets):
        folder.mkdir(parents=True)
    table = pa.table({"x": [0.0, 1.0] * 20, "y": [0, 1] * 20})
    for path in (home / "own.csv", home / "data" / "own.csv", secrets / "theirs.csv"):
        pyarrow.csv.write_csv(table, path)
    (home / "link.csv").symlink_to(secrets / "theirs.csv")
    (home / "fine.csv").symlink_to("own.csv")
    (home / "linked").symlink_to(secrets)
    (home / "data" / "more" / "deep.csv").symlink_to(secrets / "theirs.csv")
    (home / "loop").symlink_to("loop")
    return home


def write_silo(home: Path, path: Any, **policy: Any) -> Path:
    document = {"name": "a", "datasets": {"d": {"path": path, "format": "table"}}, "policy": policy}
    (home / "silo.yaml").write_text(yaml.safe_dump(document))
    return home / "silo.yaml"


def join(home: Path, job: dict[str, Any] = JOB, **environ: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-c", JOIN, str(home / "silo.yaml"), json.dumps(job)],
        cwd=home,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{home}", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert "\n" not in found["reason"]
    return found


HOSTILE = {
    "out by dots": "../secrets/theirs.csv",
    "out and in again by a glob": "*/../../secrets/*.csv",
    "a glob that starts outside": "../**/*.csv",
    "a link to a file": "link.csv",
    "a glob that meets a link": "*.csv",
    "through a linked folder": "linked/theirs.csv",
    "a linked folder": "linked",
    "a folder that holds a link, deep down": "data",
    "one of several": ["own.csv", "link.csv"],
    "of a split": {"train": "own.csv", "test": "link.csv"},
    "an absolute path to a link": "HOME/link.csv",
    "an absolute folder that holds a link": "HOME/data",
    "an absolute glob that meets a link": "HOME/*.csv",
}


def placed(path: Any, home: Path) -> Any:
    return json.loads(json.dumps(path).replace("HOME", str(home)))


@pytest.mark.parametrize("path", HOSTILE.values(), ids=HOSTILE)
def test_paths_that_lead_out(home: Path, path: Any) -> None:
    with pytest.raises(BadInput) as error:
        open_data(DatasetConfig.model_validate({"path": placed(path, home), "format": "table"}), home)
    told = str(error.value)
    assert "\n" not in told and "leads to" in told and str(home / "silo.yaml") in told


@pytest.mark.parametrize(
    "path",
    [
        "linked/theirs.csv",
        pytest.param("data", marks=pytest.mark.slow),
        pytest.param("../secrets/theirs.csv", marks=pytest.mark.slow),
    ],
)
def test_no_file_is_opened_behind_such_a_path(home: Path, path: str) -> None:
    write_silo(home, path)
    found = join(home)
    assert (found["reply"], found["code"]) == ("Refused", "data") and "leads to" in found["reason"]
    assert not [each for each in found["opened"] if each.endswith(".csv")]


@pytest.mark.parametrize(
    "path", ["loop", "loop/x.csv", "~nobody-of-that-name/x.csv", "a\0b", "/nowhere/x.csv"]
)
def test_paths_that_are_nothing(home: Path, path: str) -> None:
    with pytest.raises(BadInput) as error:
        bounded(path, home) or open_data(DatasetConfig(path=path), home)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    ["own.csv", "fine.csv", "data/../own.csv", "[of]*n*.csv", "HOME/own.csv", "HOME/own.*", "data/own.csv"],
)
def test_paths_that_stay(home: Path, path: str) -> None:
    assert bounded(placed(path, home), home)


def test_a_folder_with_brackets_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]"
    folder.mkdir()
    (folder / "own.csv").touch()
    assert bounded("*.csv", folder) == [folder / "own.csv"]


def test_the_folder_itself_may_be_reached_by_a_link(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(home)
    assert bounded("own.csv", tmp_path / "mounted")
    assert bounded(str(tmp_path / "mounted" / "own.csv"), tmp_path)


def test_the_administrators_root(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SILORAY_DATA_ROOT", str(home / "data"))
    assert bounded("data/own.csv", home) and bounded(str(home / "data" / "own.csv"), home)
    for path in ("own.csv", str(tmp_path / "secrets" / "theirs.csv")):
        with pytest.raises(BadInput, match="SILORAY_DATA_ROOT"):
            bounded(path, home)
    monkeypatch.setenv("SILORAY_DATA_ROOT", "data")
    with pytest.raises(BadInput, match="absolute"):
        bounded("data/own.csv", home)


EVIL = "open('ran', 'w').close()\nclass Thing: ...\n"


@pytest.mark.parametrize(
    ("task", "policy"),
    [
        ({"name": "evil:Thing", "dataset": "d"}, {}),
        ({"name": "os:system", "dataset": "d", "options": {"command": "touch ran"}}, {}),
        ({"name": "evil.deeper:Thing", "dataset": "d"}, {"allow_code": ["evil.deep"]}),
        ({**TASK, "model": {"name": "evil:Thing"}}, {}),
        (TASK, {"allow_tasks": []}),
        (TASK, {"allow_jobs": ["other"]}),
        (TASK, {"approval": "required"}),
    ],
)
def test_a_job_that_the_policy_refuses_touches_nothing(
    home: Path, task: dict[str, Any], policy: dict[str, Any]
) -> None:
    (home / "evil.py").write_text(EVIL)
    write_silo(home, "own.csv", **policy)
    found = join(home, {**JOB, "task": task})
    assert (found["reply"], found["code"]) == ("Refused", "policy")
    assert not [each for each in found["opened"] if each.endswith(".csv")]
    assert "evil" not in found["modules"] and not (home / "ran").exists()


def test_the_same_door_lets_in_what_is_allowed(home: Path) -> None:
    """Or the tests above prove nothing."""
    write_silo(home, "own.csv")
    found = join(home)
    assert found["reply"] == "Joined", found["reason"]
    assert [each for each in found["opened"] if each.endswith("own.csv")]


HOSTILE_JOBS: dict[str, dict[str, Any]] = {
    "a name that is a path": {"name": "../x"},
    "an absolute name": {"name": "/tmp/x"},
    "a hidden name": {"name": ".x"},
    "a name over two lines": {"name": "x\n"},
    "a silo that is a path": {"silos": ["../a"]},
    "a module by dots": {"task": {"name": "..x:y", "dataset": "d"}},
    "a module by a path": {"task": {"name": "/etc/x:y", "dataset": "d"}},
    "a module in a folder": {"task": {"name": "a/b:y", "dataset": "d"}},
    "an expression": {"task": {"name": "os:system('true')", "dataset": "d"}},
    "an attribute's attribute": {"task": {"name": "os:path.join", "dataset": "d"}},
    "a model by a path": {"task": {**TASK, "model": {"name": "/etc/x:y"}}},
}


@pytest.mark.parametrize("sections", HOSTILE_JOBS.values(), ids=HOSTILE_JOBS)
def test_jobs_that_are_refused_at_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(yaml.safe_dump({**JOB, **sections}))
    for command in (["validate", "job.yaml"], ["run", "job.yaml"]):
        ended = CliRunner().invoke(app, command)
        assert ended.exit_code == 2 and ended.output.count("\n") == 1, ended.output
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch ran']", "name: &a x\nb: *a", "a: 1\na: 2"]
)
@pytest.mark.parametrize("command", [["validate", "x.yaml"], ["approve", "x.yaml", "--silo", "x.yaml"]])
def test_yaml_with_tricks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 2 and ended.output.count("\n") == 1
    assert not Path("ran").exists()


def test_validating_runs_no_code_of_the_job(home: Path) -> None:
    (home / "evil.py").write_text(EVIL)
    job = {**JOB, "task": {"name": "evil:Thing", "dataset": "d"}}
    (home / "job.yaml").write_text(yaml.safe_dump(job))
    code = "import sys; from orchestrator.cli.main import app; app(['validate', 'job.yaml'])"
    environ = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{home}"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=environ, capture_output=True, timeout=60
    )
    assert ended.returncode == 0 and not (home / "ran").exists()
    assert Job.model_validate(job).task.name == "evil:Thing"
