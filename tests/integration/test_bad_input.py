"""A person's mistake costs one line that says where and what to do, and an exit code; told by the real command.

What the documents may say is proved in ``tests/unit/test_cli.py``; here it is the process that a person starts,
up to the silos' own processes with their data.
"""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.integration.conftest import HEART
from tests.support.commands import Command

TABULAR = {"name": "tabular", "dataset": "heart", "target": "disease", "features": ["age", "chol"]}
JOB: dict[str, Any] = {
    "name": "mistaken",
    "task": {**TABULAR, "model": {"name": "logistic"}},
    "silos": ["va"],
    "rounds": {"total": 2},
    "local": {"steps": 2, "batch_size": 4},
}
IMAGES = {"name": "image_classification", "dataset": "scans", "num_classes": 2, "model": {"name": "cnn"}}

Give = Callable[..., Command]


def write_silo(folder: Path, **policy: Any) -> None:
    """A hospital with heart disease as it is, and with scans of which none can be read."""
    scans = pa.table({"image": [b"broken"] * 8, "label": [0, 1] * 4, "split": (["train"] * 3 + ["test"]) * 2})
    pq.write_table(scans, folder / "scans.parquet")
    document = {
        "name": "va",
        "datasets": {
            "heart": {"path": str(HEART / "silos" / "va" / "va.parquet"), "splits": {"column": "fold"}},
            "scans": {"path": str(folder / "scans.parquet"), "splits": {"column": "split"}},
        },
        "policy": policy,
    }
    (folder / "silos").mkdir(exist_ok=True)
    (folder / "silos" / "va.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")


def write_job(folder: Path, **sections: Any) -> None:
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, **sections}), encoding="utf-8")


@pytest.fixture
def give(tmp_path: Path) -> Iterator[Give]:
    """Gives a command in a folder with a job and its silo, and waits for its end."""
    write_silo(tmp_path)
    write_job(tmp_path)
    given: list[Command] = []

    def end(*arguments: str) -> Command:
        given.append(Command(*arguments, cwd=tmp_path))
        given[-1].end()
        return given[-1]

    yield end
    for command in given:
        command.close()


def one_line(command: Command, code: int, *words: str) -> None:
    """That exit code, and one line of complaint with these words."""
    assert command.process.returncode == code, command.told
    told = [line for line in command.errors if not line.endswith("; starting Ray")]
    assert len(told) == 1 and told[0].startswith("siloray: "), command.told
    assert "Traceback" not in command.told
    for word in words:
        assert word in told[0], command.told


# before Ray is started


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lcoal": {"steps": 2}}, ["job.yaml: lcoal: ", "did you mean 'local'?"]),
        ({"rounds": {"total": "many"}}, ["job.yaml: rounds.total: ", "integer"]),
        ({"silos": ["va", "berlin"]}, ["silos: no silo.yaml", "'berlin'", "there are: va"]),
    ],
    ids=["unknown key", "wrong type", "unknown silo"],
)
def test_a_wrong_job_starts_nothing(
    give: Give, tmp_path: Path, sections: dict[str, Any], words: list[str]
) -> None:
    write_job(tmp_path, **sections)
    command = give("run", "job.yaml")
    one_line(command, 2, *words)
    assert not command.lines and len(command.errors) == 1
    assert not (tmp_path / "runs").exists()


def test_a_job_that_is_not_there(give: Give) -> None:
    one_line(give("run", "jbo.yaml"), 2, "jbo.yaml: ", "no such file")


def test_the_port_of_the_pages_is_in_use(give: Give, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        one_line(give("ui", "--port", port), 2, f"port {port}: ", "choose another with --port")


# told by the silos


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"task": {**JOB["task"], "features": ["age", "cholesterol"]}},
            ["va: ", "va.parquet: ", "'cholesterol'", "'chol'"],
        ),
        ({"task": IMAGES}, ["va: ", "scans.parquet, row 1: "]),
        ({"stop": {"metric": "f1"}}, ["stop.metric: ", "'f1'", "they report: accuracy, "]),
    ],
    ids=["missing column", "unreadable images", "metric that nobody reports"],
)
def test_what_only_the_silos_can_tell(
    give: Give, tmp_path: Path, ray_here: Any, sections: dict[str, Any], words: list[str]
) -> None:
    write_job(tmp_path, **sections)
    one_line(run_on(give), 2, *words)


@pytest.mark.slow
def test_a_silo_that_refuses_the_job_is_named_with_its_rule(
    give: Give, tmp_path: Path, ray_here: Any
) -> None:
    """No mistake in the job as such: another organisation has the last word. Exit code 4."""
    write_silo(tmp_path, min_cohort=3)
    one_line(
        run_on(give), 4, "va wants at least 3 silos", "(policy.min_cohort)", "give rounds.min_updates: 3"
    )


def run_on(give: Give) -> Command:
    """The job on the Ray that the tests share."""
    import ray

    address = ray.get_runtime_context().gcs_address
    return give("run", "job.yaml", "--new", "--no-track", "--address", address, "--silos-dir", "silos")
