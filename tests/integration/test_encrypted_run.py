"""A run of the real command whose silos read encrypted tables and whose checkpoints are encrypted, on Ray."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.at_rest import MAGIC, STORE_KEY, make_key
from silos.encrypted_copy import encrypted_copy
from tests.integration.conftest import HEART
from tests.support.commands import Command

pytestmark = pytest.mark.slow

HOSPITALS = ("cleveland", "va")
JOB: dict[str, Any] = {
    "name": "sealed-heart",
    "task": {"name": "tabular", "dataset": "heart", "target": "disease", "features": ["age", "chol"]},
    "silos": list(HOSPITALS),
    "rounds": {"total": 3},
    "local": {"steps": 5, "batch_size": 4},
    "strategy": {"name": "scaffold"},
    "contract": {"max_quarantined": 0.01, "columns": {"age": {"min": 0, "max": 120}}},
    "report": {"silos": False},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two hospitals, as their files are (``open``) and encrypted with a key each (``sealed``)."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    for name in HOSPITALS:
        source = HEART / "silos" / name / f"{name}.parquet"
        for kind in ("open", "sealed"):
            own = tmp_path / kind / name
            own.mkdir(parents=True)
            heart: dict[str, Any] = {"path": "rows.parquet", "splits": {"column": "fold"}}
            document: dict[str, Any] = {"name": name, "datasets": {"heart": heart}}
            if kind == "sealed":
                encrypted_copy(source, own / "rows.parquet", make_key(own / "key"))
                heart["encryption"], document["at_rest"] = ({"key": {"file": "key"}} for _ in range(2))
            else:
                pq.write_table(pq.read_table(source), own / "rows.parquet")
            (own / "silo.yaml").write_text(yaml.safe_dump(document))
    make_key(tmp_path / "store.key")
    return tmp_path


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    given: list[Command] = []
    yield given
    for command in given:
        command.close()


def give(commands: list[Command], folder: Path, *arguments: str, key: str | None = None) -> Command:
    import ray

    address = ray.get_runtime_context().gcs_address
    environ = {STORE_KEY: str(folder / key)} if key else {}
    commands.append(Command(*arguments, "--address", address, cwd=folder, environ=environ))
    return commands[-1]


def run(commands: list[Command], folder: Path, kind: str, key: str | None, job: str = "job.yaml") -> Command:
    where = ("--silos-dir", kind, "--runs-dir", f"runs-{kind}", "--no-track")
    return give(commands, folder, "run", job, *where, key=key)


def digest(runs: Path) -> str:
    (summary,) = runs.glob("*/summary.json")
    return str(json.loads(summary.read_text())["parameters_digest"])


@pytest.mark.usefixtures("ray_here")
def test_the_same_bits_as_in_the_clear_and_nothing_of_them_on_disk(
    folder: Path, commands: list[Command]
) -> None:
    """The key's path reaches the driver, whose own environment does not name it."""
    for kind, key in (("open", None), ("sealed", "store.key")):
        assert run(commands, folder, kind, key).end() == 0, commands[-1].told
    assert digest(folder / "runs-open") == digest(folder / "runs-sealed")
    for kind, sealed in (("open", False), ("sealed", True)):
        vectors = list((folder / f"runs-{kind}").rglob("*.safetensors"))
        assert len(vectors) >= 3 and all(each.read_bytes().startswith(MAGIC) == sealed for each in vectors)


@pytest.mark.usefixtures("ray_here")
def test_a_run_goes_on_with_its_key_only(folder: Path, commands: list[Command]) -> None:
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, "rounds": {"total": 100_000}}))
    command = run(commands, folder, "sealed", "store.key")
    command.until("round 2")
    command.send(signal.SIGINT)
    assert command.end() == 3, command.told
    states = list((folder / "sealed").glob("*/.siloray/*/runs/*/v*.safetensors"))
    assert len(states) >= 2 and all(each.read_bytes().startswith(MAGIC) for each in states)
    again = run(commands, folder, "sealed", None)
    assert again.end() == 2 and f"encrypted; name the file of its key in {STORE_KEY}" in again.err
    make_key(folder / "other.key")
    wrong = run(commands, folder, "sealed", "other.key")
    assert wrong.end() == 2 and "encrypted with another key than" in wrong.err
    right = run(commands, folder, "sealed", "store.key")
    right.until("goes on from version")
    right.send(signal.SIGINT)
    assert right.end() == 3, right.told


@pytest.mark.usefixtures("ray_here")
def test_a_silo_with_the_wrong_key_is_named(folder: Path, commands: list[Command]) -> None:
    (folder / "sealed" / "va" / "key").unlink()
    make_key(folder / "sealed" / "va" / "key")
    command = run(commands, folder, "sealed", "store.key")
    assert command.end() == 2 and "va: data: " in command.err
    assert "encrypted with another key than" in command.err
