"""What a driver of another organisation is told of the silo's errors: no value, no row, no path."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from orchestrator.core.errors import WITHHELD, BadInput
from orchestrator.core.messages import Join, Joined, Refused, Train
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite
from silos.image_files import FolderImages
from silos.silo import Silo
from silos.tasks.pixels import Finish, Shape, Streamed
from silos.told import public, whole

NAMES = ("Patient1", "Patient2", "Patient3")
TASK: dict[str, Any] = {"name": "tabular", "dataset": "heart", "target": "ill", "features": ["age", "name"]}
CONNECTION = {"driver": "driver.example.org:8815", "credentials": "credentials"}


def write_silo(
    folder: Path, rows: list[str], splits: Any = None, file: str = "secret-place.csv", **sections: Any
) -> Path:
    """A hospital in its folder, with a table of names that nobody may learn."""
    (folder / "secret-place.csv").write_text("\n".join(["age,name,ill,fold", *rows]) + "\n")
    dataset = {"path": file, "splits": splits or {"test_share": 0}}
    path = folder / "silo.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "datasets": {"heart": dataset}, **sections}))
    return path


def rows(age: str = "5", ill: str = "1", fold: str = "train") -> list[str]:
    return [f"{age},{name},{ill},{fold}" for name in NAMES]


def job_of(**task: Any) -> Job:
    return Job.model_validate(
        {
            "name": "j",
            "task": task if "name" in task else {**TASK, **task},
            "silos": ["a"],
            "rounds": {"total": 1},
        }
    )


def join(silo: Silo, **task: Any) -> Refused:
    job = job_of(**task)
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


def Says() -> None:
    """A model whose constructor tells what it read."""
    raise ValueError("/data/secret: Patient1")


class Breaks(nn.Module):
    """Fails in training, and tells of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("/data/secret: Patient1")
        return self.layer(rows)


def test_what_fails_in_training_is_a_kind_and_a_place(foreign: Any, tmp_path: Path) -> None:
    """The code is what the silo allowed; what it says when it fails is not for the driver."""
    silo = foreign(rows(age="1"), policy={"allow_code": [__name__]})
    job = job_of(features=["age"], model={"name": f"{__name__}:Breaks"})
    joined = silo.handle(Join(run_id="r", epoch=1, job=job.model_dump_json(), job_digest=job.digest))
    assert isinstance(joined, Joined), joined
    work = {"version": 0, "attempt": 0, "model_digest": "m", "counted": -1, "inline": 99}
    model = {"params": np.zeros(2, np.float32)}
    reply = silo.handle(Train(run_id="r", epoch=1, model=model, **work))
    assert (reply.code, reply.reason) == (
        "failed",
        f"RuntimeError in {__name__}; the silo's own record has the rest",
    )
    assert recorded(tmp_path) == ["RuntimeError: /data/secret: Patient1"]


SECRETS = (*NAMES, "secret", "4711", "folder-of-b", "/")
LISTED = {"categories": {"name": list(NAMES)}}


@pytest.mark.parametrize(
    ("given", "task", "splits", "said"),
    [
        (rows(), {}, None, "column 'name': a value that is no number"),
        (rows(), {"categories": {"name": ["a", "b"]}}, None, "column 'name': a value that is none of those"),
        (rows(age="inf"), LISTED, None, "column 'age': an infinite number"),
        (rows(ill="4711"), LISTED, None, "column 'ill': a label outside the job's classes 0 to 1"),
        (rows(ill="secret"), LISTED, None, "column 'ill': a name; list 'classes'"),
        (rows(), {"features": ["age", "nmae"]}, None, "no column 'nmae'"),
        (rows(), LISTED, {"column": "secret_fold"}, "no column that says which rows train"),
        (rows(fold="4711"), LISTED, {"column": "fold"}, "no train rows; check 'splits'"),
        (rows(age=""), LISTED, None, "no training row is complete"),
        (["secret"], {}, None, "a file of the data set cannot be read"),
        (rows(), {**LISTED, "model": {"name": f"{__name__}:Says"}}, None, ":Says: ValueError"),
        (
            rows(),
            {**LISTED, "model": {"name": "tests.nowhere:Model"}},
            None,
            "cannot be imported: ModuleNotF",
        ),
    ],
)
def test_table_errors_in_public(
    foreign: Any, tmp_path: Path, given: list[str], task: Any, splits: Any, said: str
) -> None:
    reply = join(foreign(given, splits=splits, policy={"allow_code": ["tests", __name__]}), **task)
    assert reply.code == "data" and said in reply.reason
    assert not any(secret in reply.reason for secret in SECRETS), reply.reason
    assert len(recorded(tmp_path)) == 1 and recorded(tmp_path) != [reply.reason]


IMAGES = {"name": "image_classification", "dataset": "heart", "num_classes": 2, "model": {"name": "cnn"}}


def png(width: int) -> bytes:
    file = BytesIO()
    Image.new("L", (width, 4)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        ([b"4711", b"4711"], [0, 1], "an image that cannot be decoded"),
        ([png(4), png(5)], [0, 1], "images of several sizes; give task.size"),
        ([png(4), None], [0, 1], "a row without an image"),
        ([png(4), png(4)], [0, None], "a row without a label"),
        ([png(2), png(2)], [0, 1], "cnn: images are too small"),
        (["4711", "4711"], [0, 1], "column 'image': no encoded images"),
    ],
)
def test_image_errors_in_public(
    foreign: Any, tmp_path: Path, images: list[Any], labels: list[Any], said: str
) -> None:
    silo = foreign([], file="secret.parquet")
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "secret.parquet")
    reply = join(silo, **IMAGES)
    assert reply.code == "data" and said in reply.reason
    assert not any(secret in reply.reason for secret in SECRETS), reply.reason


@pytest.mark.parametrize(
    ("classes", "said"),
    [(["folder-of-a", "b"], "its folders are not the job's 2 classes"), ([], "an image that cannot be")],
)
def test_folder_errors_in_public(foreign: Any, tmp_path: Path, classes: list[str], said: str) -> None:
    for name in ("folder-of-a", "folder-of-b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        (tmp_path / "scans" / name / "Patient1.png").write_bytes(b"4711")
    reply = join(foreign([], file="scans"), **IMAGES, classes=classes)
    assert said in reply.reason and not any(secret in reply.reason for secret in SECRETS), reply.reason


def test_images_read_by_other_processes_in_public(tmp_path: Path) -> None:
    """What is wrong crosses from the process that decodes as it was."""
    (tmp_path / "one.png").write_bytes(b"4711")
    shape, finish = Shape(1, (4, 4), resize=False), Finish(None, None, None)
    pixels = Streamed(FolderImages([tmp_path / "one.png"]), shape, finish, workers=1)
    with pytest.raises(BadInput, match=r"one\.png: not a readable image") as error:
        list(pixels.batches([torch.tensor([0])], 0))
    assert error.value.public == "an image that cannot be decoded"


def test_other_errors_are_a_kind_and_a_place() -> None:
    try:
        json.loads("Patient1")
    except ValueError as error:
        assert public(error).startswith("JSONDecodeError in json.decoder; ")
        assert whole(error).startswith("JSONDecodeError: Expecting value")


def test_what_names_nothing_public_is_withheld() -> None:
    assert BadInput("/home/x: Patient1").public == WITHHELD
