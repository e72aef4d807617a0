"""What a driver of another organisation is told of the silo's errors: no value, no row, no path."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.errors import WITHHELD, BadInput
from orchestrator.core.messages import Join, Refused
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite
from silos.silo import Silo

NAMES = ("Patient1", "Patient2", "Patient3")
TASK: dict[str, Any] = {"name": "tabular", "dataset": "heart", "target": "ill", "features": ["age", "name"]}
CONNECTION = {"driver": "driver.example.org:8815", "credentials": "credentials"}


def write_silo(folder: Path, rows: list[str], splits: Any = None, **sections: Any) -> Path:
    """A hospital in its folder, with a table of names that nobody may learn."""
    (folder / "secret-place.csv").write_text("\n".join(["age,name,ill,fold", *rows]) + "\n")
    dataset = {"path": "secret-place.csv", "splits": splits or {"test_share": 0}}
    path = folder / "silo.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "datasets": {"heart": dataset}, **sections}))
    return path


def rows(age: str = "5", ill: str = "1", fold: str = "train") -> list[str]:
    return [f"{age},{name},{ill},{fold}" for name in NAMES]


def join(silo: Silo, **task: Any) -> Refused:
    job = Job.model_validate({"name": "j", "task": {**TASK, **task}, "silos": ["a"], "rounds": {"total": 1}})
    reply = silo.handle(Join(run_id="r", epoch=1, job=job.model_dump_json(), job_digest=job.digest))
    assert isinstance(reply, Refused), reply
    return reply


@pytest.fixture(params=["connection", "agent"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Makes a silo whose driver is another organisation's: by its document, or because an agent serves it."""

    def make(given: list[str], **sections: Any) -> Silo:
        if request.param == "agent":
            return Silo(ConfiguredSite(write_silo(tmp_path, given, **sections), foreign_driver=True))
        return Silo(ConfiguredSite(write_silo(tmp_path, given, connection=CONNECTION, **sections)))

    return make


def recorded(folder: Path) -> list[str]:
    lines = (folder / ".siloray" / "a" / "audit.jsonl").read_text().splitlines()
    return [line["reason"] for line in map(json.loads, lines) if line["event"] == "error"]


def test_the_driver_of_the_same_organisation_is_told_all(tmp_path: Path) -> None:
    said = join(Silo(ConfiguredSite(write_silo(tmp_path, rows()))))
    assert said.code == "data" and "secret-place.csv, row 1" in said.reason and "Patient1" in said.reason


def test_joins_read_no_column(foreign: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A driver that asks again and again with more categories learns only that one is missing."""
    silo, reasons = foreign(rows()), set()
    for known in range(1, 4):
        levels = ["other", *NAMES[: known - 1]]
        reasons.add(join(silo, categories={"name": levels} if known > 1 else {}).reason)
    assert not any(name in reason or "secret" in reason for reason in reasons for name in NAMES)
    assert [f"holds '{name}'" in line for name, line in zip(NAMES, recorded(tmp_path), strict=True)] == [
        True
    ] * 3
    assert all(name in caplog.text for name in NAMES), "the console has it"


def test_the_same_error_is_recorded_once(foreign: Any, tmp_path: Path) -> None:
    silo = foreign(rows())
    for _ in range(3):
        join(silo)
    assert len(recorded(tmp_path)) == 1


def test_what_names_nothing_public_is_withheld() -> None:
    assert BadInput("/home/x: Patient1").public == WITHHELD
