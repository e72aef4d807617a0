"""FedMD: silos with networks of their own, which agree on what they say about public rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import CohortInfo
from orchestrator.job import Job, load_job
from silos.config import Overrides, SiloConfig
from silos.configured_site import ConfiguredSite
from silos.distiller import Digest, Distiller, Public, distance
from silos.mid_round import MidRound, Rhythm
from silos.policy import review
from silos.site import Order, Trained
from tests.support.blobs import Blobs, Net
from tests.support.quadratic import job_of

torch.set_num_threads(1)
EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))


class Silo(Blobs):
    """Rows of its own, and a network of its own."""

    def __init__(self, make: Callable[[], nn.Module] = perceptron, **rows: Any) -> None:
        super().__init__(**rows)
        self._make = make

    def model(self) -> nn.Module:
        return self._make()


PUBLIC = Public.of(Blobs(seed=9, rows=30), "public rows")


def job(**sections: Any) -> Job:
    local = {"epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}}
    strategy = {"name": "fedmd", "public": "shown", **sections.pop("strategy", {})}
    return job_of(["a", "b"], strategy=strategy, local={**local, **sections.pop("local", {})}, **sections)


def distiller(made: Job | None = None, task: Blobs | None = None, silo: str = "a", **given: Any) -> Distiller:
    return Distiller(made or job(), silo, task or Silo(), PUBLIC, "cpu", **given)


def order(consensus: np.ndarray, state: dict[str, Any], version: int = 0, **given: Any) -> Order:
    tick = given.pop("tick", lambda *_: None)
    return Order(version=version, received={"params": consensus}, state=state, tick=tick, **given)


def trained(made: Distiller, consensus: np.ndarray, state: dict[str, Any], version: int = 0) -> Trained:
    result = made.train(order(consensus, state, version))
    return replace(result, parts={name: part.copy() for name, part in result.parts.items()})


# What the silos agree on


def test_the_loss_is_hintons() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, said = (torch.randn(5, 3, generator=draw) for _ in range(2))
    p, q = functional.softmax(said / 2, 1), functional.softmax(ours / 2, 1)
    expected = 4 * (p * (p.log() - q.log())).sum(1).mean()
    assert distance(ours, said, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)
    one, other = torch.randn(5, 1, generator=draw), torch.randn(5, 1, generator=draw)
    two = [torch.cat([torch.zeros(5, 1), each], 1) for each in (one, other)]
    assert distance(one, other, 2.0).item() == pytest.approx(distance(*two, 2.0).item()), (
        "one output, two classes"
    )


def test_42_identical_silos_have_nothing_to_learn_from_each_other() -> None:
    """The consensus is what each says, and the gradient of saying so is zero."""
    made, states = [distiller(), distiller()], [{}, {}]
    strategy = made[0].strategy
    state = strategy.init(made[0].initial())
    results = [trained(each, state["params"], kept) for each, kept in zip(made, states, strict=True)]
    mean = {"delta": np.mean([each.parts["delta"] for each in results], axis=0, dtype=np.float32)}
    consensus = strategy.step(state, mean, CohortInfo(2, (0.5, 0.5), ({}, {})))["params"]
    said = made[0].say()
    np.testing.assert_array_equal(consensus.reshape(made[0].shape), said.numpy())
    task = Digest(PUBLIC.inputs, torch.from_numpy(consensus).reshape(made[0].shape), 3.0)
    made[0].flat.clear_gradient()
    task.loss(made[0].network.call, (PUBLIC.inputs, said)).backward()
    assert made[0].flat.gradient.abs().max() < 1e-7


def test_the_next_consensus_is_the_mean_of_what_they_say() -> None:
    first, second = distiller(), distiller(task=Silo(Net, seed=3), silo="b")
    consensus = np.random.default_rng(0).normal(size=first.num_shared).astype(np.float32)
    deltas = [trained(each, consensus, {}, 1).parts["delta"] for each in (first, second)]
    expected = 0.25 * first.say().numpy().reshape(-1) + 0.75 * second.say().numpy().reshape(-1)
    moved = first.strategy.step(
        first.strategy.init({"params": consensus}),
        {"delta": 0.25 * deltas[0] + 0.75 * deltas[1]},
        CohortInfo(2, (0.25, 0.75), ({}, {})),
    )
    np.testing.assert_allclose(moved["params"], expected, atol=1e-5)


def test_networks_may_differ_and_public_rows_may_not() -> None:
    made = [distiller(), distiller(task=Silo(Net))]
    assert made[0].schema_digest == made[1].schema_digest and made[0].num_shared == 60 == made[1].num_shared
    assert made[0].num_parameters != made[1].num_parameters and not made[0].initial()["params"].any()
    others = Public.of(Blobs(seed=9, rows=30), "other rows")
    assert Distiller(job(), "a", Silo(), others, "cpu").schema_digest != made[0].schema_digest


def test_public_rows_come_in_one_order() -> None:
    assert (
        torch.equal(PUBLIC.inputs, Public.of(Blobs(seed=9, rows=30), "").inputs) and len(PUBLIC.inputs) == 30
    )


def test_a_network_that_cannot_read_them_is_refused() -> None:
    narrow = lambda: nn.Sequential(nn.Flatten(), nn.Linear(63, 8), nn.Linear(8, 2))  # noqa: E731
    with pytest.raises(BadInput, match=r"local\.model on the public set 'shown': RuntimeError"):
        distiller(task=Silo(narrow))


# At the silo


def test_only_logits_leave_and_the_model_goes_on() -> None:
    """From the state on disk, in another process, with the same bits."""
    one, state = distiller(task=Silo(Net)), {}
    zeros = one.initial()["params"]
    first = trained(one, zeros, state)
    assert {name: part.size for name, part in first.parts.items()} == {"delta": 60}
    kept = {name: part.copy() for name, part in state.items()}
    assert {"model/params", "model/buffers", "private/bn.num_batches_tracked"} <= set(kept)
    consensus = first.parts["delta"] * 0.5
    second = trained(one, consensus, state, 1)
    there = distiller(task=Silo(Net))
    again = trained(there, consensus, kept, 1)
    assert again.parts["delta"].tobytes() == second.parts["delta"].tobytes()
    assert {n: p.tobytes() for n, p in kept.items()} == {n: p.tobytes() for n, p in state.items()}


def test_what_is_measured_is_the_silos_own_model() -> None:
    one, state = distiller(), {}
    before = one.evaluate(order(one.initial()["params"], state))
    result = trained(one, one.initial()["params"], state)
    assert result.metrics == before
    after = one.evaluate(order(one.initial()["params"], state, 1))
    assert after["loss"].value < before["loss"].value
    assert after == distiller().evaluate(order(np.ones(60, np.float32), state, 1)), (
        "whatever the consensus is"
    )


def test_without_a_consensus_nothing_is_digested() -> None:
    """The first training is plain local training."""
    one, plain = distiller(), distiller(job(strategy={"digest_epochs": 9}))
    zeros = one.initial()["params"]
    assert (
        trained(one, zeros, {}).parts["delta"].tobytes() == trained(plain, zeros, {}).parts["delta"].tobytes()
    )


def test_a_silo_learns_from_the_others_what_its_rows_do_not_show() -> None:
    """Its own rows are all of one class."""
    blind, seeing = Silo(rows=60), Silo(rows=60, seed=4)
    images, labels = blind.data["train"]
    blind.data["train"] = images[labels == 0], labels[labels == 0]
    made = job(strategy={"digest_epochs": 20}, local={"epochs": None, "steps": 5})
    teacher = distiller(job(local={"epochs": 10}), seeing, "b")
    said = trained(teacher, teacher.initial()["params"], {}).parts["delta"]
    scores = []
    for consensus in (teacher.initial()["params"], said):
        one, state = distiller(made, blind), {}
        trained(one, consensus, state)
        scores.append(one.evaluate(order(consensus, state, 1))["accuracy"].value)
    assert scores[0] < 0.7 and scores[1] > 0.9


def test_it_goes_on_after_its_death_in_mid_round(tmp_path: Path) -> None:
    class Died(BaseException):
        pass

    def tick(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("training", 9):
            raise Died

    consensus = np.ones(60, np.float32)
    undisturbed = trained(distiller(), consensus, {}, 1)
    rhythm = Rhythm(None, 3)
    with pytest.raises(Died):
        distiller(rhythm=rhythm).train(order(consensus, {}, 1, tick=tick, mid_round=MidRound(tmp_path, "w")))
    result = distiller(rhythm=rhythm).train(order(consensus, {}, 1, mid_round=MidRound(tmp_path, "w")))
    assert result.parts["delta"].tobytes() == undisturbed.parts["delta"].tobytes()


# Documents


def test_the_example_has_networks_of_several_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    job = load_job(EXAMPLE / "fedmd.yaml")
    made = {}
    for silo in ("silo-0", "silo-2"):
        site = ConfiguredSite(EXAMPLE / "silos" / silo / "silo.yaml")
        assert site.review(job) is None
        made[silo] = site.trainer(job)
    assert isinstance(made["silo-0"], Distiller)
    kinds = [type(each.flat.module).__name__ for each in made.values()]
    assert kinds == ["SmallCnn", "Deep"]
    assert len({each.schema_digest for each in made.values()}) == 1


def silo(**sections: Any) -> SiloConfig:
    datasets = {name: {"path": "x.parquet"} for name in ("none", "shown")}
    return SiloConfig.model_validate({"name": "a", "datasets": datasets, **sections})


def test_a_silo_needs_the_public_set() -> None:
    assert review(job(), silo()) is None
    assert "has no data set 'elsewhere'" in str(review(job(strategy={"public": "elsewhere"}), silo()))


def test_a_network_of_its_own() -> None:
    task = job().task
    assert Overrides().with_model(task) == task
    assert Overrides(model={"name": "mlp", "hidden": [4]}).with_model(task).model.hidden == (4,)
    with pytest.raises(
        BadInput, match=r"local\.model .*'cnn' is not known; there are: logistic, mlp"
    ) as error:
        Overrides(model={"name": "cnn"}).with_model(task)
    assert "\n" not in str(error.value)
