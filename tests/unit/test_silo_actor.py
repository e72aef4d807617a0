"""A silo's process on a cluster serves one run after another: each by the document and the rows of its own time."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.messages import Join, Joined, Leave, Refused, Reply
from orchestrator.job import Job
from silos import actor
from silos.actor import SiloActor

JOB = Job.model_validate(
    {
        "name": "hearts",
        "task": {"name": "tabular", "dataset": "heart", "target": "y", "features": ["x"]},
        "silos": ["a"],
        "rounds": {"total": 5},
    }
)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """No node that could have another label."""
    monkeypatch.setattr(actor, "_check_node", lambda name: None)


def write(folder: Path, rows: int = 20, **policy: Any) -> Path:
    (folder / "rows.csv").write_text("x,y\n" + "1,0\n2,1\n" * (rows // 2))
    path = folder / "silo.yaml"
    document = {"name": "a", "datasets": {"heart": {"path": "rows.csv"}}, "policy": policy}
    path.write_text(yaml.safe_dump({**document, "local": {"device": "cpu"}}))
    return path


def join(silo: SiloActor, run_id: str) -> Reply:
    return silo.handle(Join(run_id=run_id, epoch=1, job=JOB.model_dump_json(), job_digest=JOB.digest))


def leave(silo: SiloActor, run_id: str) -> None:
    assert not isinstance(silo.handle(Leave(run_id=run_id, epoch=1, finished=True)), Refused)


def test_the_next_run_is_refused_by_a_policy_that_was_tightened_meanwhile(tmp_path: Path) -> None:
    silo = SiloActor("a", str(write(tmp_path)))
    assert isinstance(join(silo, "first"), Joined)
    leave(silo, "first")
    write(tmp_path, allow_jobs=["nothing-*"])
    refused = join(silo, "second")
    assert isinstance(refused, Refused) and refused.code == "policy" and "allow_jobs" in refused.reason


def test_a_document_that_came_later_is_found_by_the_next_who_asks(tmp_path: Path) -> None:
    silo = SiloActor("a", str(tmp_path / "silo.yaml"))
    refused = join(silo, "first")
    assert isinstance(refused, Refused) and refused.code == "data" and "no such file" in refused.reason
    assert "no such file" in silo.describe()["device"] and silo.describe()["datasets"] == {}
    write(tmp_path)
    assert sum(silo.describe()["datasets"]["heart"].values()) == 20
    assert isinstance(join(silo, "second"), Joined)


def test_the_next_run_gets_the_rows_that_are_there_now(tmp_path: Path) -> None:
    silo = SiloActor("a", str(write(tmp_path)))
    first = join(silo, "first")
    write(tmp_path, rows=100)
    assert join(silo, "first") == first, "the run in hand keeps what it has"
    leave(silo, "first")
    second = join(silo, "second")
    assert isinstance(first, Joined) and isinstance(second, Joined)
    assert (sum(first.num_examples.values()), sum(second.num_examples.values())) == (20, 100)
    assert first.fingerprint != second.fingerprint


def test_what_a_silo_says_of_itself_follows_its_documents_of_now(tmp_path: Path) -> None:
    path = write(tmp_path)
    silo = SiloActor("a", str(path))
    assert sum(silo.describe()["datasets"]["heart"].values()) == 20
    write(tmp_path, share_counts=False)
    assert silo.describe()["datasets"] == {}
    path.write_text("name: [")
    assert "silo.yaml" in silo.describe()["device"]
