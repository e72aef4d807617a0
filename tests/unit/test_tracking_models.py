"""Models: rebuilt without data, filled by name, logged once, and the same after loading."""

import importlib
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from silos.flat_model import FlatModel
from tests.support.tracking_run import FEATURES, MODEL, Recorder, job
from tracking import models, weights
from tracking.follower import Follower, follow

pytestmark = pytest.mark.filterwarnings("ignore")


class Small(nn.Module):
    """Something of each kind: parameters, float buffers and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.body(x))))


def described(flat: FlatModel, shape: list[int]) -> dict[str, Any]:
    entries = [{**entry._asdict(), "shape": list(entry.shape)} for entry in flat.entries]
    return {"entries": entries, "input_shape": shape, "input_dtype": "float32"}


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a test say what the job's model is."""

    def use(make: Any) -> None:
        build = importlib.import_module("silos.tasks.build")
        monkeypatch.setattr(build, "model_of", lambda task, shape: make(), raising=False)

    return use


def test_shared_values_arrive_under_their_names(architecture: Any) -> None:
    architecture(Small)
    trained = Small()
    flat = FlatModel(trained, private=["head.*"])
    with torch.no_grad():
        flat.vector.uniform_(-1, 1)
        flat.buffers.uniform_(0.5, 2)
    state = {**flat.parts(), "momentum": np.zeros(7, np.float32)}
    loaded = models.module_of(job(), described(flat, [4]), state)
    torch.manual_seed(job().seed)
    fresh = Small()
    for name, value in loaded.state_dict().items():
        expected = fresh if name.startswith("head") or "num_batches" in name else trained
        assert torch.equal(value, expected.state_dict()[name]), name
    assert not loaded.training


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model: model["entries"].pop(), "numbers in the checkpoint"),
        (lambda model: model["entries"][0].update(name="other"), "no 'other'"),
        (lambda model: model["entries"][0].update(shape=[4, 3]), "of shape"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(architecture: Any, change: Any, why: str) -> None:
    architecture(lambda: nn.Linear(4, 3))
    flat = FlatModel(nn.Linear(4, 3))
    model = described(flat, [4])
    change(model)
    with pytest.raises(models.NoModel, match=why):
        models.module_of(job(), model, flat.parts())


def test_kept_weights_outlive_their_checkpoint(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, job())
    recorder.open()
    recorder.round(1)
    weights.keep(tmp_path, 1)
    weights.keep(tmp_path, 9)
    for version in range(2, 6):
        recorder.round(version)
    assert not (tmp_path / "checkpoints/v000001").exists()
    assert np.array_equal(weights.load(tmp_path, 1)["params"], recorder.state(1)["params"])
    weights.release(tmp_path, 1)
    assert not (tmp_path / "tracking/v000001").exists()
    recorder.release()


def test_models_are_logged_registered_and_load_as_they_were(tmp_path: Path, architecture: Any) -> None:
    import mlflow

    architecture(lambda: nn.Linear(len(FEATURES), 1))
    recorder = Recorder(tmp_path / "run", job(7))
    recorder.open()
    for version in range(1, 8):
        recorder.round(version)
    recorder.close(7)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    follower = Follower(recorder.run_dir, uri)
    while not follower.done:
        follower.step()
    client = follower._connect().client
    assert set(follower.cursor.models) == {"5", "7"}

    x = torch.randn(9, len(FEATURES))
    for address, version in (("@champion", 7), ("/latest", 7), ("/1", 5)):
        loaded = mlflow.pytorch.load_model(f"models:/heart-disease{address}")
        expected = models.module_of(recorder.job, MODEL, recorder.state(version))
        assert torch.equal(loaded(x), expected(x)), address

    number = client.get_model_version_by_alias("heart-disease", "champion")
    logged = client.get_logged_model(follower.cursor.models["7"])
    for tags in (number.tags, logged.tags):
        assert tags["siloray.run_id"] == recorder.run_id
        assert tags["siloray.version"] == "7"
        assert tags["siloray.job_digest"] == recorder.job.digest
        assert tags["siloray.parameters_digest"] == models.digest_of(recorder.state(7))
        assert tags["siloray.contributors"].startswith("cleveland: 0.4095, hungarian: 0.3539")
    assert {metric.key: metric.value for metric in logged.metrics}["accuracy"] == pytest.approx(
        0.7196, abs=0.05
    )
    info = mlflow.models.get_model_info("models:/heart-disease/2")
    assert info.signature.inputs.inputs[0].shape == (-1, len(FEATURES))
    requirements = Path(
        mlflow.artifacts.download_artifacts("models:/heart-disease/2/requirements.txt")
    ).read_text()
    assert all(f"{name}==" in requirements for name in models.PACKAGES)
    assert "+" not in requirements

    (recorder.run_dir / "tracking.json").unlink()
    assert follow(Follower(recorder.run_dir, uri), "now", Event()) == 0
    assert len(client.search_model_versions("name = 'heart-disease'")) == 2
    assert len(client.search_logged_models([follower.cursor.experiment_id])) == 2


def test_a_model_that_cannot_be_made_is_said_and_stops_nothing(tmp_path: Path, architecture: Any) -> None:
    def broken() -> nn.Module:
        raise ImportError("no module named 'my_pkg'")

    architecture(broken)
    recorder = Recorder(tmp_path / "run", job(1))
    recorder.open()
    recorder.round(1)
    recorder.close(1)
    follower = Follower(recorder.run_dir, f"sqlite:///{tmp_path / 'mlflow.db'}")
    while not follower.done:
        follower.step()
    assert follower.cursor.models == {"1": "none: ImportError: no module named 'my_pkg'"}
    tags = follower._connect().client.get_run(follower.cursor.runs[""]).data.tags
    assert tags["siloray.no_model.1"] == "ImportError: no module named 'my_pkg'"


def test_without_a_model_of_the_federation_none_is_logged(tmp_path: Path) -> None:
    """FedMD: what is shared are logits of public rows."""
    recorder = Recorder(tmp_path / "run", job(1, strategy={"name": "fedmd", "public": "public"}))
    recorder.open()
    recorder.round(1)
    recorder.close(1)
    follower = Follower(recorder.run_dir, f"sqlite:///{tmp_path / 'mlflow.db'}")
    while not follower.done:
        follower.step()
    assert follower.cursor.models == {
        "1": "none: with fedmd every silo has a model of its own, which stays there"
    }
