"""MOON: the term against its formula, its gradient against finite differences, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from orchestrator.core.errors import BadJob
from orchestrator.core.protocols import Contrast, LocalRun
from orchestrator.job import Job
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.moon import Moon
from silos.contrast import contrasted, last_linear
from silos.flat_model import FlatModel
from silos.gradient import Gradient
from silos.network import Network
from silos.site import Order, Trained
from silos.tasks.task import At
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs, Net
from tests.support.quadratic import Zeros, desk, job_of, problems

torch.set_num_threads(1)


def job(**sections: Any) -> Job:
    local = {"epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
    return job_of(["a", "b"], local={**local, **sections.pop("local", {})}, **sections)


def trained(made: Job, state: dict[str, Any], version: int = 0) -> Trained:
    trainer = TorchTrainer(made, "a", Blobs(dropout=0.2), "cpu")
    received = dict(made.strategy.broadcast(made.strategy.init(trainer.initial())))
    result = trainer.train(Order(version=version, received=received, state=state, tick=lambda *_: None))
    return Trained(
        **{
            **{f: getattr(result, f) for f in result.__slots__},
            "parts": {n: p.copy() for n, p in result.parts.items()},
        }
    )


@pytest.fixture()
def network() -> tuple[FlatModel, Any]:
    torch.manual_seed(0)
    flat = FlatModel(Net())
    batch = next(iter(Blobs().train_batches(At(0, "a", 0, 0), 8)))
    return flat, batch


def test_the_term_is_the_papers(network: Any) -> None:
    """``-log(exp(cos(z, near) / t) / (exp(cos(z, near) / t) + exp(cos(z, far) / t)))``, a mean over the batch."""
    flat, batch = network
    draw = torch.Generator().manual_seed(1)
    near, far = (flat.shared + 0.3 * torch.randn(flat.num_shared, generator=draw) for _ in range(2))
    flat.module.train()
    _, term = contrasted(flat, Blobs(), batch, Contrast(2.0, 0.5, near, far))

    def seen(module: nn.Module, point: torch.Tensor | None) -> torch.Tensor:
        if point is not None:
            torch.nn.utils.vector_to_parameters(point, module.parameters())
        x = functional.relu(module.bn(module.conv(batch[0]))).flatten(1)
        return functional.relu(module.body(x)).detach()

    other = Net().eval()
    other.load_state_dict(flat.module.state_dict())  # with statistics that its own pass has moved
    sights = [seen(other, point) for point in (near, far)]
    z = seen(flat.module, None)
    alike = [functional.cosine_similarity(z, each) / 0.5 for each in sights]
    expected = 2.0 * (torch.log(torch.exp(alike[0]) + torch.exp(alike[1])) - alike[0]).mean()
    assert term.item() == pytest.approx(expected.item(), rel=1e-5)


def test_its_gradient(network: Any) -> None:
    """Along a random line: of loss and term together. In evaluation mode, so that no statistic moves in between."""
    flat, batch = network
    flat.module.eval()
    draw = torch.Generator().manual_seed(2)
    near, far, line = (torch.randn(flat.num_shared, generator=draw) for _ in range(3))
    contrast = Contrast(5.0, 0.5, flat.shared + 0.2 * near, flat.shared + 0.2 * far)
    grad_at = Gradient(Network(flat, job().local, torch.device("cpu")), Blobs(), batch)
    slope = float(grad_at(flat.shared, contrast=contrast) @ line)
    sums = []
    for step in (1e-3, -1e-3):
        here = flat.shared.clone()
        with torch.no_grad():
            flat.shared.add_(step * line)
        sums.append(sum(contrasted(flat, Blobs(), batch, contrast)).item())
        with torch.no_grad():
            flat.shared.copy_(here)
    assert slope == pytest.approx((sums[0] - sums[1]) / 2e-3, rel=0.02)
    assert grad_at.loss == pytest.approx(Blobs().loss(flat.module, batch).item(), rel=1e-5), (
        "the task's alone"
    )


def test_frozen_copies_move_no_statistic_and_leave_no_hook(network: Any) -> None:
    flat, batch = network
    flat.module.train()
    flat.module.drop.eval()
    before = flat.buffers.clone()
    contrasted(flat, Blobs(), batch, Contrast(1.0, 0.5, flat.shared.clone(), flat.shared.clone()))
    once = flat.buffers.clone()
    assert not torch.equal(before, once), "the network itself trains"
    flat.buffers.copy_(before)
    Blobs().loss(flat.module, batch)
    assert torch.equal(flat.buffers, once), "and moved them as much as without a contrast"
    assert not flat.module.head._forward_pre_hooks
    assert flat.module.training and flat.module.bn.training and not flat.module.drop.training


def test_without_a_factor_it_is_fedavg_to_the_bit() -> None:
    plain, moon = ({}, {})
    for version in (0, 1):
        a = trained(job(), plain, version)
        b = trained(job(strategy={"name": "moon", "mu": 0}), moon, version)
        assert {n: p.tobytes() for n, p in a.parts.items()} == {n: p.tobytes() for n, p in b.parts.items()}
    assert "strategy/previous" not in moon
    made = problems()
    assert desk(Moon(mu=0), made, 5)[-1].tobytes() == desk(FedAvg(), made, 5)[-1].tobytes()


def test_the_first_training_has_nothing_to_be_unlike() -> None:
    moon = job(strategy={"name": "moon", "mu": 5})
    state: dict[str, Any] = {}
    first = trained(moon, state)
    assert first.parts["delta"].tobytes() == trained(job(), {}).parts["delta"].tobytes()
    start = TorchTrainer(moon, "a", Blobs(), "cpu").initial()["params"]
    np.testing.assert_allclose(state["strategy/previous"], start + first.parts["delta"], atol=1e-6)
    again, without = trained(moon, state, 1), trained(job(), {}, 1)
    assert again.parts["delta"].tobytes() != without.parts["delta"].tobytes()


def test_the_previous_model_is_a_copy() -> None:
    """The delta is computed in the memory of the parameters."""
    memory = Zeros(2)
    run = LocalRun(np.array([3.0, 4.0]), np.ones(2), {}, memory)
    assert Moon().report(run).parts["delta"].tolist() == [2, 3]
    assert memory["previous"].tolist() == [3, 4]


def test_a_network_that_sees_nothing_is_refused() -> None:
    for module in (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.Conv2d(1, 2, 3)):
        with pytest.raises(BadJob, match="layers to train before its last linear one"):
            last_linear(module)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision(precision: str) -> None:
    made = job(strategy={"name": "moon", "mu": 1}, local={"precision": precision})
    state: dict[str, Any] = {}
    trained(made, state)
    assert np.isfinite(trained(made, state, 1).parts["delta"]).all()
