"""Low-rank adapters: FFA-LoRA averages exactly and LoRA does not, only adapters travel, exports are the silo's model.

What needs `peft` is slow: its import takes longer than all the tests here.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator import starting
from orchestrator.core import events
from orchestrator.core.errors import BadInput
from orchestrator.starting import StartingWeights
from orchestrator.task import ImageClassification
from silos import weights
from silos.adapters import adapted, merged
from silos.rebuilt import module_of
from silos.tasks import build
from silos.tasks.image_classification import image_model
from silos.trainer import TorchTrainer
from tests.support.blob_federation import blob_job, run_blobs
from tests.support.blobs import Blobs, Net
from tests.unit.test_trainer import order, trained

FFA = {"name": "ffa_lora", "rank": 2, "alpha": 4, "targets": ["conv", "body"]}
LORA = {**FFA, "name": "lora"}
HEAD = {"shared": ["head.*"]}
B = 4 * 2 + 8 * 2
NET = sum(param.numel() for param in Net().parameters())
A = 2 * 9 + 2 * 144


def made(adapters: dict[str, Any] = FFA, **sections: Any) -> TorchTrainer:
    return TorchTrainer(blob_job(adapters=adapters, **sections), "a", Blobs(), "cpu")


@pytest.mark.slow
def test_adapters_change_nothing_at_first() -> None:
    x = torch.randn(3, 1, 8, 8)
    trainer = made()
    torch.manual_seed(trainer.job.seed)
    assert torch.equal(trainer.flat.module.eval()(x), Net().eval()(x)), (
        "and cost the model no draw of its seed"
    )


@pytest.mark.slow
@pytest.mark.parametrize("adapters, sections, size", [(FFA, {}, B), (LORA, {}, A + B), (FFA, HEAD, B + 18)])
def test_only_adapters_and_what_is_named_travel(
    adapters: dict[str, Any], sections: dict[str, Any], size: int
) -> None:
    trainer = made(adapters, **sections)
    before = {name: tensor.clone() for name, tensor in trainer.flat.frozen_tensors()}
    result = trained(trainer)
    assert result.parts["delta"].size == size and result.parts.keys() == {"delta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.flat.frozen_tensors())
    assert "bn.running_mean" in before and trainer.num_parameters == A + B + NET


@pytest.mark.slow
def test_every_silo_draws_the_same_a() -> None:
    """And is told apart by its digest if it did not."""
    ours, theirs = made(), TorchTrainer(blob_job(adapters=FFA), "b", Blobs(1), "cpu")
    assert ours.schema_digest == theirs.schema_digest
    name = "body.lora_A.default.weight"
    assert torch.equal(ours.flat.tensors()[name], theirs.flat.tensors()[name])
    assert made(seed=1).schema_digest != ours.schema_digest


def weights_of(trainer: TorchTrainer, parts: dict[str, np.ndarray]) -> np.ndarray:
    """What the layer ``body`` multiplies with, once these parameters are in place."""
    trainer.flat.load({name: torch.from_numpy(part) for name, part in parts.items()})
    body: Any = trainer.flat.module.body
    return (body.base_layer.weight + body.get_delta_weight("default")).detach().double().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("adapters, exact", [(FFA, True), (LORA, False)], ids=["ffa_lora", "lora"])
def test_the_mean_of_adapters_is_the_mean_of_models(adapters: dict[str, Any], exact: bool) -> None:
    """Oracle 38: exactly so with one common A, and not with A and B averaged one by one."""
    trainer, rng = made(adapters), np.random.default_rng(0)
    silos = [
        {"params": rng.normal(size=trainer.initial()["params"].size).astype(np.float32)} for _ in range(4)
    ]
    shares = [0.1, 0.2, 0.3, 0.4]
    base = trainer.flat.module.body.base_layer.weight.detach().double().numpy()
    products = (
        sum(share * weights_of(trainer, each) for share, each in zip(shares, silos, strict=True)) - base
    )
    mean = {"params": sum(np.float32(s) * each["params"] for s, each in zip(shares, silos, strict=True))}
    off = np.linalg.norm(weights_of(trainer, mean) - base - products) / np.linalg.norm(products)
    assert off < 1e-6 if exact else off > 0.3


@pytest.mark.slow
def test_merged_is_the_same_function_without_adapters() -> None:
    trainer, x = made(), torch.randn(3, 1, 8, 8)
    trained(trainer)
    module = trainer.flat.module.eval()
    expected = module(x)
    plain = merged(module, trainer.job.adapters)
    assert plain.state_dict().keys() == Net().state_dict().keys()
    torch.testing.assert_close(plain(x), expected)


@pytest.mark.slow
def test_a_federation_of_adapters_and_a_run_that_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, with adapters and the head; its model comes out of the journal and the checkpoint with the silo's
    own logits; another run takes its layers with the adapters added."""
    monkeypatch.setattr(build, "model_of", lambda task, shape: Net())
    torch.manual_seed(5)
    source = {
        name: tensor.numpy() for name, tensor in Net().state_dict().items() if tensor.is_floating_point()
    }
    said = events.Source(kind="file", name="w", sha256="0" * 64, contributors=["x"])
    start = {"file": "w.safetensors", "sha256": "0" * 64, "origin": "x"}
    job = blob_job(2, adapters=FFA, start_from=start, **HEAD)
    starting.save(StartingWeights(source, said), tmp_path / "runs" / "run")
    seen = run_blobs(job, tmp_path)
    (ready,) = seen.of(events.ModelReady)
    assert seen.outcome.status == "done" and all(each.bytes_up == 8 * (B + 18) for each in seen.rounds)
    assert "body.base_layer.weight" in ready.started_from.loaded
    anew = {f"{layer}.lora_{ab}.default.weight" for layer in ("conv", "body") for ab in "AB"}
    assert set(ready.started_from.left) == anew

    silo = TorchTrainer(job, "a", Blobs(), "cpu")
    fitting = starting.load(tmp_path / "runs/run", None).fitting(silo.describe()["entries"])
    silo.begin_with(starting.views(fitting.layout, fitting.values), fitting.digest)
    assert silo.schema_digest == ready.schema_digest
    silo.evaluate(order(silo, received=seen.driver.model.state))
    x = torch.randn(5, 1, 8, 8)
    exported = module_of(
        job, ready.model, seen.driver.model.state, starting.load(tmp_path / "runs/run", None)
    )
    assert torch.equal(exported(x), silo.flat.module.eval()(x))
    program = torch.export.export(exported, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(x), exported(x)), "as MLflow keeps it, without peft"

    again = weights.read(blob_job(1, start_from={"run": "run", "version": 2}), tmp_path / "runs", tmp_path)
    assert again.source.contributors == ["x", "run/a", "run/b"]
    net = Net()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in again.arrays.items()}, strict=False)
    torch.testing.assert_close(net.eval()(x), exported(x))


@pytest.mark.slow
def test_a_vision_transformer_with_adapters() -> None:
    document = {"dataset": "d", "num_classes": 3, "channels": 1, "model": {"name": "vit", "patch": 2}}
    spec = ImageClassification.model_validate({"name": "image_classification", **document})
    model = image_model(spec, (1, 8, 8), ())
    job = blob_job(adapters={**FFA, "targets": ["encoder.layers.*.mlp.*"]})
    names = [name for name, _ in adapted(model, job.adapters, 0).named_parameters() if "lora_B" in name]
    assert len(names) == 8 and "encoder.layers.encoder_layer_0.mlp.0.lora_B.default.weight" in names


@pytest.mark.parametrize("target", ["attention.out_proj", "nothing", "*norm*"])
def test_targets_that_no_adapter_fits(target: str) -> None:
    """Attention reads its output layer's weight itself: an adapter there would be passed by."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1)
            self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, 2)

    with pytest.raises(BadInput, match=r"adapters.targets: .* matches no .* there are: last$"):
        adapted(Attending(), blob_job(adapters={**FFA, "targets": [target]}).adapters, 0)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput) as caught:
        made()
    assert "pip install 'siloray[adapters]'" in str(caught.value) == caught.value.public
