"""DiLoCo: Nesterov outside, now or delayed, and a local optimizer that goes on from round to round."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from orchestrator.core.messages import CohortInfo
from orchestrator.strategies.diloco import DiLoCo
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.server import Sgd
from silos.site import Order
from silos.tasks.task import At
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs, Net, plain_epoch
from tests.support.quadratic import desk, job_of, problems, shares

torch.set_num_threads(1)


def test_8_one_step_inside_is_data_parallel_nesterov() -> None:
    """Outer rate 0.7 and momentum 0.9 as in the paper: torch's SGD with Nesterov on ``eta * gradient``."""
    made, weights = problems(steps=1), shares(problems())
    path = desk(DiLoCo(), made, 40)
    param = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.SGD([param], lr=float(np.float32(0.7)), momentum=0.9, nesterov=True)
    for ours in path[1:]:
        point = param.detach().numpy()
        param.grad = torch.from_numpy(0.05 * sum(weights[n] * p.gradient(point) for n, p in made.items()))
        theirs.step()
        assert np.abs(ours - param.detach().numpy()).max() < 1e-12


def test_8_a_plain_step_outside_is_fedavg_to_the_bit() -> None:
    made = problems()
    assert desk(DiLoCo(server=Sgd()), made, 10)[-1].tobytes() == desk(FedAvg(), made, 10)[-1].tobytes()


def moved(server: Sgd, deltas: list[np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
    state: dict[str, Any] = dict(DiLoCo(server=server).init({"params": np.zeros(3)}))
    for delta in deltas:
        state = dict(DiLoCo(server=server).step(state, {"delta": delta.copy()}, CohortInfo(1, (1.0,), ({},))))
    return state["params"], state


def test_9_delayed_nesterov_is_nesterov_on_the_mean() -> None:
    """Twelve rounds of one update each, against three of four."""
    deltas = list(np.random.default_rng(0).normal(size=(12, 3)))
    delayed, state = moved(Sgd(lr=0.7, momentum=0.9, nesterov=True, delay=4), deltas)
    means = [np.mean(deltas[i : i + 4], axis=0) for i in (0, 4, 8)]
    plain, reference = moved(Sgd(lr=0.7, momentum=0.9, nesterov=True), means)
    assert np.abs(delayed - plain).max() < 1e-15
    assert np.abs(state["momentum"] - reference["momentum"]).max() < 1e-15
    assert not state["waiting"].any() and state["num_waiting"].tolist() == [0]


def test_9_between_the_model_moves_by_a_part_of_every_update() -> None:
    params, state = moved(Sgd(lr=0.5, momentum=0.9, nesterov=True, delay=4), [np.ones(3), np.ones(3)])
    assert params.tolist() == [0.25] * 3 and not state["momentum"].any()
    assert state["waiting"].tolist() == [0.5] * 3 and state["num_waiting"].tolist() == [2]


def test_a_delay_is_of_nesterovs_momentum() -> None:
    with pytest.raises(ValidationError, match="'delay' is of Nesterov's momentum"):
        Sgd(delay=2, momentum=0.9)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_local_optimizer_goes_on_where_it_was(optimizer: str) -> None:
    """Two trainings of an epoch, the model between them unchanged, are two epochs with one optimizer; from the state on
    disk, in another process, as well."""
    spec = {
        "name": optimizer,
        "lr": 0.01,
        "weight_decay": 0.1,
        **({"momentum": 0.9} if optimizer == "sgd" else {}),
    }
    local = {"batch_size": 8, "optimizer": spec}
    job = job_of(["a"], strategy={"name": "diloco", "server": {"name": "sgd"}}, local=local, private=["bn.*"])
    torch.manual_seed(job.seed)
    net, task, state = Net(), Blobs(), {}
    theirs: Any = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer](
        net.parameters(), **{name: each for name, each in spec.items() if name != "name"}
    )
    params = TorchTrainer(job, "a", task, "cpu").initial()["params"]
    for version in (0, 1):
        plain_epoch(net, task, At(job.seed, "a", version, 0), 8, theirs)
        ours = TorchTrainer(job, "a", task, "cpu")
        order = Order(version=version, received={"params": params}, state=state, tick=lambda *_: None)
        params = params + ours.train(order).parts["delta"]
    shared = [each for name, each in net.named_parameters() if not name.startswith("bn")]
    expected = torch.cat([each.detach().reshape(-1) for each in shared]).numpy()
    counts = np.arange(params.size) < 36  # not the bias before batch normalisation: its gradient is rounding
    counts |= np.arange(params.size) >= 40
    np.testing.assert_allclose(params[counts], expected[counts], rtol=1e-4, atol=2e-6)
    assert [name for name in state if name.startswith("optimizer/all/")]
