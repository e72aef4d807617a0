"""Models that a silo keeps for itself, and ``siloray model``, which gives one to the silo's own people."""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from safetensors import safe_open
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.core.errors import BadInput
from orchestrator.core.metrics import values
from silos.configured_site import ConfiguredSite
from silos.kept_models import KeptModels
from silos.site import OwnModel
from tests.support.blobs import Net
from tests.support.federation import federate
from tests.support.torch_site import blob_sites as torch_sites
from tests.support.torch_site import makers, torch_job

TENSORS = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "seen": np.array(7)}
CARD = {
    "model": "fine_tuned",
    "version": 3,
    "kept_at": "2026-01-02T03:04:05+00:00",
    "metrics": {"global": {"accuracy": 0.5}, "fine_tuned": {"accuracy": 0.75}},
}


@pytest.fixture(autouse=True)
def silo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    document = {"name": "a", "datasets": {"heart": {"path": "x.csv"}}}
    Path("silo.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / ".siloray" / "a"


def model(line: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["model", "--silo", "silo.yaml", *line.split()])
    return ended.exit_code, ended.output


def audited(silo: Path) -> list[dict[str, Any]]:
    path = silo / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_it_is_kept_whole_and_for_its_owner_only(silo: Path) -> None:
    digest = KeptModels(silo).keep("heart-1", TENSORS, CARD)
    folder = silo / "models" / "heart-1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    for path in (folder, *folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    found, card = KeptModels(silo).find("heart-1")
    assert card == {**CARD, "sha256": digest}
    loaded = safetensors.numpy.load_file(found)
    assert {name: each.tolist() for name, each in loaded.items()} == {
        n: t.tolist() for n, t in TENSORS.items()
    }
    with safe_open(found, "numpy") as file:
        assert json.loads(file.metadata()["siloray"]) == CARD, "the file says by itself what it is"


def test_another_one_takes_its_place(silo: Path) -> None:
    models = KeptModels(silo)
    models.keep("heart-1", TENSORS, CARD)
    models.keep("heart-1", {"w": np.zeros(2, np.float32)}, {**CARD, "version": 4})
    models.keep("heart-0", TENSORS, CARD)
    assert list(models.cards()) == ["heart-1", "heart-0"]
    assert models.find("heart-1")[1]["version"] == 4


def test_a_model_that_was_changed_is_not_given_out(silo: Path) -> None:
    models = KeptModels(silo)
    models.keep("heart-1", TENSORS, CARD)
    path = silo / "models" / "heart-1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(BadInput, match="not the model that was kept"):
        models.find("heart-1")
    (path.parent / "model.json").write_text("{")
    with pytest.raises(BadInput, match="not what siloray wrote"):
        models.find("heart-1")


def test_no_room(silo: Path) -> None:
    (silo / "models").mkdir(parents=True)
    (silo / "models" / "heart-1").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be kept: File exists") as caught:
        KeptModels(silo).keep("heart-1", TENSORS, CARD)
    assert str(silo) not in caught.value.public


# What a run leaves


def net_of(tensors: Mapping[str, np.ndarray]) -> Net:
    """Any program's way to the model: its class, and the file."""
    net = Net()
    net.load_state_dict({name: torch.from_numpy(each) for name, each in tensors.items()})
    return net.eval()


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ({"name": "ditto"}, "personal"),
        ({"name": "apfl"}, "personal"),
        ({"name": "fedavg"}, "fine_tuned"),
        ({"name": "fedrep"}, "fine_tuned"),
        ({"name": "fedbn"}, "global"),
    ],
    ids=lambda each: str(each),
)
def test_a_run_leaves_each_silo_its_model(strategy: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """It does what the report says of it, and holds the silo's private layers; the run's own state is gone."""
    adapt = () if kind == "global" else (5, 20)
    job = torch_job("ab", strategy=strategy, report={"adapt": adapt}, stop={"metric": "loss"})
    sites = torch_sites(tmp_path, "ab")
    ended = federate(job, makers(sites), tmp_path)
    assert ended.outcome.status == "done"
    heads = set()
    for name, site in sites.items():
        assert not site.state_folder("run").exists(), "the silo has left the run"
        path, card = site.models.find("run")
        tensors = safetensors.numpy.load_file(path)
        images, labels = site.task.data["test"]
        figures = values(site.task.measure(net_of(tensors), (images, labels)))
        assert figures == pytest.approx(card["metrics"][kind], rel=1e-6)
        assert (card["model"], card["silo"], card["run"], card["silos"]) == (kind, name, "run", ["a", "b"])
        assert (card["job_digest"], card["strategy"]) == (job.digest, strategy["name"])
        assert card["own_updates"] == 2 and card["num_examples"] == {"train": 40, "test": 20}
        assert (card["accepted_steps"] > 0) == (kind == "fine_tuned") or kind == "personal"
        own = {"fedrep": {"head.weight", "head.bias"}, "fedbn": {n for n in tensors if n.startswith("bn.")}}
        assert set(card["private"]) == own.get(strategy["name"], set()) - {"bn.num_batches_tracked"}
        heads.add(tensors["head.weight"].tobytes() + tensors["bn.weight"].tobytes())
    assert len(heads) == 2, "each its own"


def test_no_report_no_model(tmp_path: Path) -> None:
    sites = torch_sites(tmp_path, "ab")
    federate(torch_job("ab", report={"silos": False}), makers(sites), tmp_path)
    assert sites["a"].models.cards() == {}


def test_a_configured_silo_puts_it_on_record(silo: Path) -> None:
    site = ConfiguredSite(Path("silo.yaml"))
    site.keep("heart-1", OwnModel("fine_tuned", TENSORS), CARD)
    (entry,) = audited(silo)
    digest = site.models.find("heart-1")[1]["sha256"]
    assert {**entry, "at": ""} == {
        "at": "",
        "event": "model kept",
        "run": "heart-1",
        "model": "fine_tuned",
        "version": 3,
        "sha256": digest,
    }


# siloray model


def test_list_and_show(silo: Path) -> None:
    assert model("") == (0, "no models are kept here\n")
    KeptModels(silo).keep("heart-1", TENSORS, CARD)
    line = (
        "heart-1  fine_tuned model of version 3, 2026-01-02T03:04:05+00:00  "
        "global accuracy 0.5; fine_tuned accuracy 0.75\n"
    )
    assert model("") == model("heart-1") == (0, line)
    assert json.loads(model("--json")[1])["heart-1"]["version"] == 3
    assert audited(silo) == [], "looking is no export"


def test_export(silo: Path, tmp_path: Path) -> None:
    digest = KeptModels(silo).keep("heart-1", TENSORS, CARD)
    code, output = model("heart-1 --out own.safetensors")
    assert code == 0 and output.startswith("heart-1  fine_tuned model of version 3")
    assert safetensors.numpy.load_file("own.safetensors")["head.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    (entry,) = audited(silo)
    assert (entry["event"], entry["run"], entry["sha256"]) == ("model exported", "heart-1", digest)
    assert entry["file"] == str(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("heart-2 --out own.safetensors", "no model of the run 'heart-2' is kept here; there are: heart-1"),
        ("heart-2", "there are: heart-1"),
        ("heart-1 --out silo.yaml", "silo.yaml: there is such a file already"),
        ("heart-1 --out nowhere/own.safetensors", "No such file or directory"),
        ("--out own.safetensors", "which run's model?"),
    ],
)
def test_what_cannot_be_meant(silo: Path, line: str, sentence: str) -> None:
    KeptModels(silo).keep("heart-1", TENSORS, CARD)
    code, output = model(line)
    assert code == 2 and sentence in output and output.count("\n") == 1
    assert not Path("own.safetensors").exists() and "silo" not in Path("silo.yaml").read_text().split(":")[1]
