"""Frozen layers: neither trained nor sent, and the same at every silo; unfrozen by version, the same on resuming."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.core import events
from orchestrator.core.errors import BadInput
from silos.flat_model import FlatModel
from silos.tasks.task import At
from silos.trainer import TorchTrainer
from tests.support.blob_federation import blob_job, run_blobs
from tests.support.blobs import Blobs, Net
from tests.support.federation import Ended
from tests.unit.test_trainer import order, trained

HEAD_ONLY = {"frozen": ["*"], "shared": ["head.*"]}
HEAD = 8 * 2 + 2


def flat(module: nn.Module | None = None, **globs: Any) -> FlatModel:
    torch.manual_seed(0)
    return FlatModel(module or Net(), **globs)


def role(model: FlatModel) -> dict[str, str]:
    return {
        e.name: "frozen" if e.frozen else f"since {e.since}" if e.since else "shared" if e.shared else "own"
        for e in model.entries
    }


def test_everything_but_the_head() -> None:
    model = flat(**HEAD_ONLY)
    assert {name for name, what in role(model).items() if what != "frozen"} == {"head.weight", "head.bias"}
    assert model.num_shared == model.vector.numel() == HEAD and model.buffers.numel() == 0
    assert model.num_parameters == sum(p.numel() for p in Net().parameters())


def test_what_wins_over_frozen() -> None:
    """Private names, and globs of ``shared`` that say more than all."""
    roles = role(flat(frozen=["*"], shared=["*", "head.*"], private=["bn.*"]))
    assert roles["bn.weight"] == roles["bn.running_mean"] == "own"
    assert roles["head.bias"] == "shared" and roles["conv.weight"] == "frozen"
    roles = role(flat(frozen=["conv.*", "bn.*"]))
    assert roles["body.weight"] == "shared" and roles["bn.running_var"] == "frozen"


def test_a_module_that_freezes_its_own_parameters() -> None:
    net = Net()
    net.conv.requires_grad_(False)
    assert role(flat(net))["conv.weight"] == "frozen"


@pytest.mark.parametrize(
    "globs, word",
    [
        ({"frozen": ["nothing.*"]}, "matches no parameter"),
        ({"frozen": ["*"]}, "leave no parameter"),
        ({"frozen": ["conv.*"], "unfreeze": {2: ["head.*"]}}, "unfreeze.2: 'head.\\*' matches nothing"),
        ({**HEAD_ONLY, "unfreeze": {2: ["*"], 3: ["conv.*"]}}, "unfreeze.3: .* still frozen"),
        ({"frozen": ["*"], "unfreeze": {1: ["*"]}}, "from the first version on"),
    ],
)
def test_globs_that_cannot_be_meant(globs: dict[str, Any], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        flat(**globs)


def test_silos_with_other_frozen_numbers_are_told_apart() -> None:
    other = Net()
    assert flat(**HEAD_ONLY).schema_digest == flat(**HEAD_ONLY).schema_digest
    assert flat(other, **HEAD_ONLY).schema_digest != flat(**HEAD_ONLY).schema_digest
    assert flat(Net()).schema_digest == flat().schema_digest, (
        "what is trained may differ until version 0 comes"
    )


def test_frozen_layers_stay_to_the_bit_with_their_statistics() -> None:
    made = TorchTrainer(blob_job(**HEAD_ONLY), "a", Blobs(), "cpu")
    before = {name: tensor.clone() for name, tensor in made.flat.frozen_tensors()}
    result = trained(made)
    assert result.parts["delta"].size == HEAD and "buffers" not in result.parts
    assert np.abs(result.parts["delta"]).min() > 0
    after = dict(made.flat.frozen_tensors())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "bn.running_mean" in before and int(made.flat.module.bn.num_batches_tracked) == 0


def test_training_the_head_is_training_on_features() -> None:
    """The same bits as a plain loop over the last layer alone, on what the frozen part says in evaluation mode."""
    job = blob_job(**HEAD_ONLY)
    made, task = TorchTrainer(job, "a", Blobs(), "cpu"), Blobs()
    result = trained(made)
    torch.manual_seed(job.seed)
    net = Net().eval()
    head = nn.Linear(8, 2)
    head.load_state_dict(net.head.state_dict())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    net.head = nn.Identity()
    for images, labels in task.train_batches(At(0, "a", 0, 0), 8):
        optimizer.zero_grad()
        with torch.no_grad():
            features = net(images)
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    theirs = torch.cat([head.weight.detach().reshape(-1), head.bias.detach()])
    ours = torch.from_numpy(made.initial()["params"] + result.parts["delta"])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


class WithIdle(Net):
    """One parameter that does nothing: all that is shared where everything else is private."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * self.idle


class IdleBlobs(Blobs):
    def model(self) -> nn.Module:
        return WithIdle()


def test_sharing_nothing_is_training_alone(tmp_path: Path) -> None:
    """Oracle 39: each silo's private layers come out as if the other silo were not there."""
    globs = {"shared": ["idle"]}
    together = run_blobs(blob_job(3, **globs), tmp_path / "both", IdleBlobs)
    for seed, silo in enumerate(("a", "b")):
        alone = run_blobs(
            blob_job(3, (silo,), **globs), tmp_path / silo, lambda _, seed=seed: IdleBlobs(seed)
        )
        assert figures(together, silo) == figures(alone, silo)
        assert len(set(figures(alone, silo))) == 4, "it learns"


def figures(seen: Ended, silo: str) -> list[float]:
    """Losses of the versions on the silo's test rows."""
    closed = [*seen.rounds, *seen.of(events.VersionEvaluated)]
    return [each.evaluated.silos[silo]["loss"] for each in closed]


def test_freezing_nothing_is_the_job_without(tmp_path: Path) -> None:
    """Oracle 39: sharing all."""
    plain = run_blobs(blob_job(2), tmp_path / "plain")
    named = run_blobs(blob_job(2, shared=["*", "head.*"]), tmp_path / "named")
    assert plain.digest == named.digest


UNFREEZE = {**HEAD_ONLY, "unfreeze": {2: ["body.*", "bn.*"], 3: ["*"]}}


def moved(made: TorchTrainer, result: Any) -> set[str]:
    """Names of which some number changed."""
    names, start = set(), 0
    for entry in (e for e in made.flat.entries if e.kind == "param" and e.shared):
        stop = start + int(np.prod(entry.shape))
        if np.any(result.parts["delta"][start:stop]):
            names.add(entry.name)
        start = stop
    buffers = [e for e in made.flat.entries if e.kind == "buffer" and e.shared]
    start = 0
    for entry in buffers:
        stop = start + int(np.prod(entry.shape))
        if np.any(result.parts["buffers"][start:stop]):
            names.add(entry.name)
        start = stop
    return names


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold"])
def test_layers_thaw_at_their_version(strategy: str) -> None:
    """Weight decay and momentum move nothing before; control variates of frozen layers stay zero."""
    made = TorchTrainer(blob_job(5, strategy={"name": strategy}, **UNFREEZE), "a", Blobs(), "cpu")
    head = {"head.weight", "head.bias"}
    middle = {"body.weight", "body.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}
    for version, names in (
        (0, head),
        (1, head),
        (2, head | middle),
        (3, head | middle | {"conv.weight", "conv.bias"}),
    ):
        result = trained(made, version)
        assert moved(made, result) == names, version
    again = trained(made, 1)
    assert moved(made, again) == head, "a version that is trained again is frozen again"
    if strategy == "scaffold":
        held = made.flat.num_held(1)
        assert not again.parts["control"][:held].any() and again.parts["control"][held:].any()


def test_resuming_across_a_thaw_gives_the_same_bits(tmp_path: Path) -> None:
    job = blob_job(4, strategy={"name": "scaffold", "server": {"name": "adam", "lr": 0.05}}, **UNFREEZE)
    whole = run_blobs(job, tmp_path / "whole")

    def stop(driver: Any, silos: Any, event: Any) -> None:
        if isinstance(event, events.RoundClosed) and event.version == 2:
            driver.request_stop(now=True)

    assert run_blobs(job, tmp_path / "cut", during=stop).outcome.status == "stopped"
    assert run_blobs(job, tmp_path / "cut").bits == whole.bits
    assert whole.outcome.status == "done"


def test_only_the_head_travels(tmp_path: Path) -> None:
    seen = run_blobs(blob_job(1, **HEAD_ONLY), tmp_path)
    (closed,) = seen.rounds
    assert closed.bytes_up == closed.bytes_down == 2 * 4 * HEAD
    ready = seen.of(events.ModelReady)[0]
    assert ready.num_shared == HEAD


def test_the_received_model_is_whole_for_evaluation() -> None:
    made = TorchTrainer(blob_job(**HEAD_ONLY), "a", Blobs(), "cpu")
    assert made.evaluate(order(made))["accuracy"].count == 20
