"""Where a job starts from: a past run of other silos with another head, a file, torch's cache; read once, written down,
and given to every silo once."""

import hashlib
import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn
from typer.testing import CliRunner

from orchestrator import starting
from orchestrator.at_rest import MAGIC, STORE_KEY, make_key
from orchestrator.cli.main import app
from orchestrator.core import events
from orchestrator.core.errors import BadInput
from orchestrator.job import Job
from orchestrator.starting import START, StartingWeights
from silos import weights
from silos.flat_model import FlatModel
from silos.trainer import TorchTrainer
from tests.support.blob_federation import blob_job, blob_sites, run_blobs
from tests.support.blobs import Blobs, Net
from tests.support.federation import Ended, LossyChannel, federate, journal
from tests.support.quadratic import silo_makers
from tests.support.rewritten import Line, lines, rewritten, write

TARGET = {"frozen": ["*"], "shared": ["head.*"]}


class ThreeClasses(Blobs):
    """The same images, sorted into three."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed + 10)
        for images, labels in self.data.values():
            labels[images[:, 0, 0, 0] > 0.8] = 2

    def model(self) -> nn.Module:
        net = Net()
        net.head = nn.Linear(8, 3)
        return net


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A federation of a and b that has ended, in ``runs/quadratic-1``."""
    folder = tmp_path_factory.mktemp("source")
    return folder / "runs", run_blobs(blob_job(3), folder, run_id="quadratic-1")


def target(total: int = 2, start: Any = "runs/quadratic-1", **sections: Any) -> Job:
    return blob_job(total, ("c", "d"), start_from=start, **{**TARGET, **sections})


def run_target(job: Job, runs: Path, folder: Path, make: Any = ThreeClasses, **options: Any) -> Ended:
    weights.settle(job, folder / "runs" / "run", runs.parent)
    return run_blobs(job, folder, make, **options)


def named(ended: Ended) -> dict[str, np.ndarray]:
    """The source's tensors by name."""
    ready, state = ended.of(events.ModelReady)[0], ended.driver.model.state
    found: dict[str, np.ndarray] = {}
    for kind, part in (("param", "params"), ("buffer", "buffers")):
        layout = tuple((e["name"], tuple(e["shape"])) for e in ready.model["entries"] if e["kind"] == kind)
        found |= starting.views(layout, state[part])
    return found


def test_from_a_federation_to_others_with_another_head(source: tuple[Path, Ended], tmp_path: Path) -> None:
    runs, before = source
    job = target(start={"run": "runs/quadratic-1", "version": 3})
    seen = run_target(job, runs, tmp_path)
    assert seen.outcome.status == "done"
    told = seen.of(events.ModelReady)[0].started_from
    assert told.left == ["head.weight", "head.bias"]
    assert set(told.loaded) == named(before).keys() - set(told.left)
    assert told.source.contributors == ["quadratic-1/a", "quadratic-1/b"]
    assert (told.source.run_id, told.source.version) == ("quadratic-1", 3)
    assert told.source.sha256 == before.digest and told.source.job_digest == before.driver.job.digest
    assert all(closed.bytes_up == 2 * 4 * 27 for closed in seen.rounds), "the head alone travels"


def test_from_a_run_in_the_clear_where_new_ones_are_encrypted(
    source: tuple[Path, Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, before = source
    make_key(tmp_path / "key")
    monkeypatch.setenv(STORE_KEY, str(tmp_path / "key"))
    seen = run_target(target(start={"run": "runs/quadratic-1", "version": 3}), runs, tmp_path)
    assert seen.outcome.status == "done"
    assert seen.of(events.ModelReady)[0].started_from.source.sha256 == before.digest
    assert (tmp_path / "runs" / "run" / START).read_bytes().startswith(MAGIC)
    card = CliRunner().invoke(app, ["card", "quadratic-1", "--runs-dir", str(runs)])
    assert card.exit_code == 0 and before.digest[:16] in card.output, card.output
    assert CliRunner().invoke(app, ["verify", "quadratic-1", "--runs-dir", str(runs)]).exit_code == 0


@pytest.mark.parametrize("says", ["its key", "nothing, as before"])
def test_a_clear_file_in_a_run_under_a_key_is_none_of_its_own(
    source: tuple[Path, Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    """It would be anybody's who can write there; also where the journal is of a time when it did not say."""
    make_key(tmp_path / "key")
    monkeypatch.setenv(STORE_KEY, str(tmp_path / "key"))
    runs = tmp_path / "runs"
    run_blobs(blob_job(3), tmp_path, run_id="quadratic-1")
    if says != "its key":
        run_dir = runs / "quadratic-1"
        write(run_dir, rewritten(lines(run_dir), _older))
    job = target(start={"run": "runs/quadratic-1", "version": 3})
    weights.settle(job, runs / "first", tmp_path)
    checkpoint = Path("quadratic-1", "checkpoints", "v000003")
    shutil.rmtree(runs / checkpoint)
    shutil.copytree(source[0] / checkpoint, runs / checkpoint)
    with pytest.raises(BadInput, match="in the clear, although a key is given"):
        weights.settle(job, runs / "second", tmp_path)


def _older(place: int, line: Line) -> Line:
    line["event"].pop("store_key", None)
    return line


def test_frozen_layers_are_the_sources_at_every_silo(source: tuple[Path, Ended], tmp_path: Path) -> None:
    """Also at one whose process is lost and starts anew, which gets them again."""
    runs, before = source
    job = target(start={"run": "runs/quadratic-1", "version": 3})
    weights.settle(job, tmp_path / "runs" / "run", runs.parent)
    sites = dict(blob_sites(job, tmp_path / "silos", ThreeClasses))
    channels = []

    def channel(makers: Any) -> LossyChannel:
        channels.append(LossyChannel(makers, {("d", "Train", 2): "before"}))
        return channels[-1]

    seen = federate(job, silo_makers(sites), tmp_path, channel=channel, limit_s=60)
    assert seen.outcome.status == "done" and channels[0].lost == 1
    assert (channels[0].asked["c", "Load"], channels[0].asked["d", "Load"]) == (1, 2)
    for site in sites.values():
        flat = site.trainers[-1].flat
        for name, tensor in flat.frozen_tensors():
            assert np.array_equal(tensor.numpy(), named(before)[name]), name
        assert flat.schema_digest == sites["c"].trainers[-1].flat.schema_digest


def test_going_on_needs_no_source(source: tuple[Path, Ended], tmp_path: Path) -> None:
    runs, _ = source
    job = target(3, start={"run": "runs/quadratic-1", "version": 3}, unfreeze={2: ["body.*"]})

    def stop(driver: Any, silos: Any, event: Any) -> None:
        if isinstance(event, events.RoundClosed) and event.version == 1:
            driver.request_stop(now=True)

    whole = run_target(job, runs, tmp_path / "whole")
    assert run_target(job, runs, tmp_path / "cut", during=stop).outcome.status == "stopped"
    assert run_target(job, tmp_path / "nowhere", tmp_path / "cut").bits == whole.bits
    (tmp_path / "cut/runs/run" / START).unlink()
    gone = run_blobs(job, tmp_path / "cut", ThreeClasses)
    assert gone.outcome.exit_code == 2 and "are gone" in gone.outcome.reason
    other = StartingWeights({"conv.bias": np.zeros(4, np.float32)}, file_source("other"))
    starting.save(other, tmp_path / "cut/runs/run")
    changed = run_blobs(job, tmp_path / "cut", ThreeClasses)
    assert (
        changed.outcome.exit_code == 2 and "not the weights that the run began with" in changed.outcome.reason
    )


def file_source(name: str) -> events.Source:
    return events.Source(kind="file", name=name, sha256="0" * 64, contributors=["somebody"])


def test_starting_where_the_source_ended_is_its_model(source: tuple[Path, Ended], tmp_path: Path) -> None:
    """Everything fits, with the float buffers: version 0 is the source's version."""
    runs, before = source
    job = target(1, start={"run": "runs/quadratic-1", "version": 3}, frozen=[], shared=["*"])
    seen = run_target(job, runs, tmp_path, Blobs)
    first = weights._state(tmp_path / "runs" / "run", 0)
    assert weights.parameters_digest(first) == before.digest
    assert seen.of(events.ModelReady)[0].started_from.left == []


def test_who_contributed_is_passed_on(source: tuple[Path, Ended], tmp_path: Path) -> None:
    """A run that starts from a run that starts from a run; the frozen layers come along."""
    runs, before = source
    run_target(target(1, start={"run": str(runs / "quadratic-1"), "version": 3}), runs, tmp_path)
    job = target(1, start={"run": "run", "version": 1})
    again = weights.read(job, tmp_path / "runs", tmp_path)
    assert again.source.contributors == ["quadratic-1/a", "quadratic-1/b", "run/c", "run/d"]
    assert np.array_equal(again.arrays["conv.weight"], named(before)["conv.weight"])
    assert again.arrays["head.weight"].shape == (3, 8)


def test_frozen_layers_that_the_seed_gave_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("silos.tasks.build"), "model_of", lambda task, shape: Net())
    job = blob_job(1, **TARGET)
    run_blobs(job, tmp_path, run_id="seeded")
    found = weights.read(target(start={"run": "seeded", "version": 1}), tmp_path / "runs", tmp_path)
    torch.manual_seed(job.seed)
    assert np.array_equal(found.arrays["conv.weight"], Net().conv.weight.detach().numpy())


def test_a_private_layer_does_not_travel_this_way(source: tuple[Path, Ended], tmp_path: Path) -> None:
    run_blobs(blob_job(1, private=["head.*"]), tmp_path, run_id="own-heads")
    found = weights.read(target(start={"run": "own-heads", "version": 1}), tmp_path / "runs", tmp_path)
    assert {name for name in found.arrays if name.startswith("head")} == set()


def test_the_best_version_and_the_newest_run_of_a_job(source: tuple[Path, Ended]) -> None:
    runs, before = source
    closed = before.of(events.RunClosed)[-1]
    found = weights.read(target(start="runs/quadratic"), runs, runs.parent)
    assert (found.source.run_id, found.source.version) == ("quadratic-1", closed.best_version)


@pytest.mark.parametrize(
    "start, sentence",
    [
        ({"run": "nothing"}, "has no run 'nothing'"),
        ({"run": "quadratic-1", "version": 77}, "version 77 of quadratic-1 cannot be used"),
        (
            {"run": "quadratic-1", "version": 3, "sha256": "1" * 64},
            "start_from.sha256: the parameters of version 3",
        ),
        ({"file": "none.safetensors", "sha256": "1" * 64, "origin": "us"}, "none.safetensors: No such file"),
        ({"torchvision": "ResNet18_Weights.NOBODYS"}, "torchvision has no 'ResNet18_Weights.NOBODYS'"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    source: tuple[Path, Ended], start: dict[str, Any], sentence: str
) -> None:
    runs, _ = source
    with pytest.raises(BadInput) as caught:
        weights.read(target(start=start), runs, runs.parent)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def written(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """A file of weights, as a job names it."""
    safetensors.numpy.save_file(arrays, folder / "w.safetensors")
    digest = hashlib.sha256((folder / "w.safetensors").read_bytes()).hexdigest()
    return {"file": "w.safetensors", "sha256": digest, "origin": "the test"}


def test_a_file_by_its_digest(tmp_path: Path) -> None:
    start = written(
        tmp_path, {"conv.weight": np.full((4, 1, 3, 3), 0.5, np.float32), "other": np.ones(3, np.float32)}
    )
    job = target(1, start=start, frozen=["conv.*"], shared=["*"])
    weights.settle(job, tmp_path / "runs" / "run", tmp_path)
    seen = run_blobs(job, tmp_path, Blobs)
    told = seen.of(events.ModelReady)[0].started_from
    assert told.loaded == ["conv.weight"] and told.source.contributors == ["the test"]
    assert journal(tmp_path)[-1].type == "run_closed"
    with pytest.raises(BadInput, match=r"start_from.sha256: .*w.safetensors has"):
        weights.read(target(start={**start, "sha256": "0" * 64}), tmp_path, tmp_path)


def test_a_file_of_torch_is_read_without_running_it(tmp_path: Path) -> None:
    torch.save({"state_dict": Net().state_dict()}, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    start = {"file": "w.pth", "sha256": digest, "origin": "the test"}
    assert "bn.running_var" in weights.read(target(start=start), tmp_path, tmp_path).arrays
    torch.save(Net(), tmp_path / "w.pth")  # a pickled class
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    with pytest.raises(BadInput, match="is no file of tensors"):
        weights.read(target(start={**start, "sha256": digest}), tmp_path, tmp_path)


def test_weights_that_fit_nowhere_are_bad_input(tmp_path: Path) -> None:
    job = target(1, start=written(tmp_path, {"other": np.ones(3, np.float32)}))
    weights.settle(job, tmp_path / "runs" / "run", tmp_path)
    seen = run_blobs(job, tmp_path, Blobs)
    assert (
        seen.outcome.exit_code == 2
        and "no tensor of a name and shape of the job's model" in seen.outcome.reason
    )


def test_torchvision_weights_are_never_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    job = target(start={"torchvision": "ResNet18_Weights.IMAGENET1K_V1"})
    with pytest.raises(BadInput, match=r"curl -o .*resnet18-f37072fd.pth https://"):
        weights.read(job, tmp_path, tmp_path)
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"fc.bias": torch.zeros(1000)}, cached)
    with pytest.raises(BadInput, match="not f37072fd"):
        weights.read(job, tmp_path, tmp_path)
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    job = target(start={"torchvision": "ResNet18_Weights.IMAGENET1K_V1", "sha256": digest})
    found = weights.read(job, tmp_path, tmp_path)
    assert found.arrays["fc.bias"].shape == (1000,) and "download.pytorch.org" in found.source.contributors[0]


def test_a_layer_for_colours_sees_grey_as_three_equal_colours() -> None:
    colour, x = nn.Conv2d(3, 2, 3), torch.randn(1, 1, 8, 8)
    weights_ = StartingWeights({"c.weight": colour.weight.detach().numpy()}, file_source("c"))
    fitting = weights_.fitting([{"name": "c.weight", "shape": [2, 1, 3, 3]}])
    grey = torch.from_numpy(fitting.values.reshape(2, 1, 3, 3))
    expected = nn.functional.conv2d(x.expand(1, 3, 8, 8), colour.weight)
    torch.testing.assert_close(nn.functional.conv2d(x, grey), expected)


def test_a_silo_takes_nothing_that_is_not_its_models() -> None:
    made = TorchTrainer(blob_job(), "a", Blobs(), "cpu")
    for name, shape in (("nothing", (3,)), ("head.bias", (3,))):
        with pytest.raises(ValueError, match=name):
            made.begin_with(
                {"head.weight": np.ones((2, 8), np.float32), name: np.ones(shape, np.float32)}, "d"
            )
    assert made.loaded == "" and not torch.equal(made.flat.module.head.weight, torch.ones(2, 8))


def test_the_job_pins_its_source() -> None:
    plain = target(start="runs/quadratic-1")
    assert target(start={"run": "runs/quadratic-1", "version": "best"}).digest == plain.digest
    assert len({plain.digest, target(start=None).digest, target(start="runs/other").digest}) == 3
    with pytest.raises(ValueError, match="origin"):
        target(start={"file": "w.safetensors", "sha256": "0" * 64})
    with pytest.raises(ValueError, match="sha256"):
        target(start="w.safetensors")


def test_the_head_of_a_resnet_is_twenty_kilobytes() -> None:
    """5,130 of 11.2 million parameters; the others, and all statistics of batch normalisation, stay where they are."""
    from torchvision.models import resnet18

    flat = FlatModel(resnet18(num_classes=10), frozen=["*"], shared=["fc.*"])
    assert {name: part.nbytes for name, part in flat.parts().items()} == {"params": 20_520}
    assert flat.num_parameters == 11_181_642
