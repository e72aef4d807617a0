"""Gradients cut record by record: ghost clipping, one by one, and torch alone say the same; none is over the bound."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from orchestrator.core.errors import BadJob
from silos.clipped import SLACK, Ghost, Single, chosen
from silos.network import Network
from silos.tasks.task import Batch
from tests.support.records import Mixing, Rows, Sequences, Tied, convolutions, gradients, network

torch.set_num_threads(1)

NETWORKS: dict[str, Callable[[], nn.Module]] = {"convolutions": convolutions, "sequences": Sequences}


def cut_sum(rows: Tensor, bound: float) -> Tensor:
    return (rows * (bound * SLACK / rows.norm(dim=1)).clamp(max=1.0)[:, None]).sum(0)


def summed(engine: Ghost | Single, batch: Batch, like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    engine.add(batch, total)
    return total


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.5, 1e6])
def test_both_engines_give_the_sum_of_cut_gradients(name: str, share: float) -> None:
    net, task = network(NETWORKS[name]()), Rows(NETWORKS[name])
    batch = task.data["train"]
    rows = gradients(net, task, batch)
    bound = share * float(rows.norm(dim=1).median())
    wanted = cut_sum(rows, bound)
    ghost = Ghost(net, task, bound, net.flat.gradient)
    assert torch.allclose(ghost.lengths(batch), rows.norm(dim=1), rtol=1e-4)
    single = Single(net, task, bound, net.flat.gradient, whole=False)
    for engine in (ghost, single):
        found = summed(engine, batch, net.flat.gradient)
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.norm())), type(engine)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_bound_it_is_the_plain_gradient(name: str) -> None:
    net, task = network(NETWORKS[name]()), Rows(NETWORKS[name])
    batch = task.data["train"]
    for engine in (
        Ghost(net, task, 1e9, net.flat.gradient),
        Single(net, task, 1e9, net.flat.gradient, whole=False),
    ):
        found = summed(engine, batch, net.flat.gradient) / len(batch[0])
        net.flat.clear_gradient()
        task.loss(net.flat.module, batch).backward()
        assert torch.allclose(found, net.flat.gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_record_counts_for_more_than_the_bound(name: str) -> None:
    net, task = network(NETWORKS[name]()), Rows(NETWORKS[name])
    images, labels = task.data["train"]
    images[0] *= 1e4
    bound = 0.3
    for engine in (
        Ghost(net, task, bound, net.flat.gradient),
        Single(net, task, bound, net.flat.gradient, whole=False),
    ):
        all_of_them = summed(engine, (images, labels), net.flat.gradient)
        others = summed(engine, (images[1:], labels[1:]), net.flat.gradient)
        replaced = summed(engine, (torch.cat([-images[:1], images[1:]]), labels), net.flat.gradient)
        assert 0.9 * bound < (all_of_them - others).norm() <= bound
        assert (all_of_them - replaced).norm() <= 2 * bound


def test_a_record_without_a_gradient_counts_as_none() -> None:
    net, task = network(convolutions()), Rows(convolutions)
    images, labels = task.data["train"]
    others = images[1:], labels[1:]
    images[0] = float("nan")
    for engine in (
        Ghost(net, task, 1.0, net.flat.gradient),
        Single(net, task, 1.0, net.flat.gradient, whole=False),
    ):
        found = summed(engine, (images, labels), net.flat.gradient)
        assert torch.isfinite(found).all()
        assert torch.allclose(found, summed(engine, others, net.flat.gradient))
        assert not summed(engine, (images[:1], labels[:1]), net.flat.gradient).any()


def test_a_patient_is_cut_as_a_whole() -> None:
    net, task = network(convolutions()), Rows(convolutions)
    images, labels = task.data["train"]
    patient = images[:5] * 100, labels[:5]
    rows = gradients(net, task, patient)
    found = summed(Single(net, task, 0.2, net.flat.gradient, whole=True), patient, net.flat.gradient)
    assert torch.allclose(found, cut_sum(rows.mean(0)[None], 0.2), rtol=1e-4, atol=1e-7)
    assert float(found.norm()) <= 0.2


def choose(engine: str, net: Network, task: Rows) -> Ghost | Single:
    return chosen(engine, net, task, 1.0, net.flat.gradient, lambda: task.data["train"])


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Tied, "called once"),
        (Mixing, "not what they are in a batch"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 8), nn.ReLU(inplace=True), nn.Flatten()), "changed in place"),
    ],
)
def test_where_ghost_clipping_would_be_wrong_records_go_one_by_one(
    module: Callable[[], nn.Module], why: str
) -> None:
    task, net = Rows(module), network(module())
    assert isinstance(choose("auto", net, task), Single)
    assert not any(each._forward_hooks for each in net.flat.module.modules())
    with pytest.raises(BadJob, match=why):
        choose("ghost", net, task)


def test_ghost_clipping_where_it_can() -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    for module in (*NETWORKS.values(), dropping):
        assert isinstance(choose("auto", network(module()), Rows(module)), Ghost)
    assert isinstance(choose("single", network(convolutions()), Rows(convolutions)), Single)


def test_with_dropout_the_sum_is_of_the_gradients_that_were_measured() -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 2))

    net, task = network(dropping()), Rows(dropping)
    images, labels = task.data["train"]
    engine = Ghost(net, task, 1e-3, net.flat.gradient)
    for _ in range(5):
        one = summed(engine, (images[:1], labels[:1]), net.flat.gradient)
        assert 0.99e-3 < float(one.norm()) <= 1e-3


def test_layers_that_are_not_trained_are_outside() -> None:
    net = network(convolutions(), frozen=["0.*", "1.*"])
    net.flat.module.train()
    net.flat.freeze_for(0)
    task = Rows(convolutions)
    rows = gradients(net, task, task.data["train"])
    assert rows.shape[1] == net.flat.gradient.numel() == 200
    found = summed(Ghost(net, task, 0.1, net.flat.gradient), task.data["train"], net.flat.gradient)
    assert torch.allclose(found, cut_sum(rows, 0.1), rtol=1e-4, atol=1e-6)
