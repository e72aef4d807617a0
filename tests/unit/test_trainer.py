"""The torch trainer: the same bits as a plain torch loop, the same bits again, and what stays at the silo."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.job import Job
from silos.site import Cancelled, Order, Trained
from silos.tasks.task import At
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs, Net, plain_epoch
from tests.support.quadratic import job_of

torch.set_num_threads(1)  # as the trainer does: other sums, other bits

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


def job(**sections: Any) -> Job:
    local = {"epochs": 2, "batch_size": 8, "optimizer": SGD, **sections.pop("local", {})}
    return job_of(["a", "b"], local=local, **sections)


def trainer(job: Job, task: Blobs | None = None, silo: str = "a") -> TorchTrainer:
    return TorchTrainer(job, silo, task or Blobs(), "cpu")


def order(
    made: TorchTrainer, version: int = 0, state: Any = None, received: Any = None, **given: Any
) -> Order:
    params = dict(received or made.job.strategy.broadcast(made.job.strategy.init(made.initial())))
    return Order(
        version=version,
        received=params,
        state={} if state is None else state,
        **{"tick": lambda *_: None, **given},
    )


def trained(made: TorchTrainer, version: int = 0, state: Any = None, received: Any = None) -> Trained:
    """With parts of its own: the trainer's are its memory."""
    result = made.train(order(made, version, state, received))
    for name, part in result.parts.items():
        result.parts[name] = part.copy()  # type: ignore[index]
    return result


def bits(result: Trained) -> dict[str, bytes]:
    return {name: part.tobytes() for name, part in result.parts.items()}


def initial_net(job: Job) -> Net:
    torch.manual_seed(job.seed)
    return Net()


def flattened(module: nn.Module) -> np.ndarray:
    return torch.cat([param.detach().reshape(-1) for param in module.parameters()]).numpy()


def test_fedavg_is_a_plain_torch_loop_to_the_bit() -> None:
    made = job()
    net, task = initial_net(made), Blobs()
    before = flattened(net).copy()
    optimizer = torch.optim.SGD(net.parameters(), **{k: v for k, v in SGD.items() if k != "name"})
    for epoch in range(2):
        plain_epoch(net, task, At(made.seed, "a", 0, epoch), 8, optimizer)
    result = trained(trainer(made))
    assert result.parts["delta"].tobytes() == (flattened(net) - before).tobytes()
    statistics = torch.cat([net.bn.running_mean, net.bn.running_var]).numpy()
    assert result.parts["buffers"].tobytes() == (statistics - np.repeat(np.float32([0, 1]), 4)).tobytes()
    assert (result.num_steps, result.num_examples) == (10, 40)


def test_adamw_by_name() -> None:
    made = job(local={"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}})
    net, task = initial_net(made), Blobs()
    before = flattened(net).copy()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for epoch in range(2):
        plain_epoch(net, task, At(made.seed, "a", 0, epoch), 8, optimizer)
    np.testing.assert_allclose(
        trained(trainer(made)).parts["delta"], flattened(net) - before, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("strategy", [{"name": "fedprox", "mu": 0.5}, {"name": "scaffold"}])
def test_directions_against_a_loop_that_writes_them_out(strategy: dict[str, Any]) -> None:
    """The gradient of the loss, plus ``mu (x - anchor)``, or plus ``c - c_i``; then SGD."""
    made = job(strategy=strategy, local={"optimizer": {"name": "sgd", "lr": 0.05}})
    ours = trainer(made)
    state, extra, correction = {}, {}, torch.zeros(ours.flat.num_shared)
    if strategy["name"] == "scaffold":
        control, own = (
            torch.randn(ours.flat.num_shared, generator=torch.Generator().manual_seed(i)) * 0.1
            for i in (0, 1)
        )
        state, extra, correction = (
            {"strategy/control": own.numpy()},
            {"control": control.numpy()},
            control - own,
        )
    net, task = initial_net(made), Blobs()
    anchor = torch.from_numpy(flattened(net).copy())
    for epoch in range(2):
        for batch in task.train_batches(At(made.seed, "a", 0, epoch), 8):
            net.zero_grad()
            task.loss(net, batch).backward()
            point = torch.from_numpy(flattened(net))
            pull = strategy.get("mu", 0.0) * (point - anchor) + correction
            start = 0
            with torch.no_grad():
                for param in net.parameters():
                    stop = start + param.numel()
                    param -= 0.05 * (param.grad + pull[start:stop].view(param.shape))
                    start = stop
    result = trained(ours, state=state, received={**ours.initial(), **extra})
    delta = flattened(net) - anchor.numpy()
    np.testing.assert_allclose(result.parts["delta"], delta, rtol=1e-4, atol=1e-6)
    if strategy["name"] == "scaffold":
        expected = own.numpy() - extra["control"] - delta / (10 * 0.05)
        np.testing.assert_allclose(state["strategy/control"], expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(result.parts["control"], expected - own.numpy(), rtol=1e-3, atol=1e-5)


def test_a_prox_of_zero_is_fedavg_to_the_bit() -> None:
    assert bits(trained(trainer(job(strategy={"name": "fedprox", "mu": 0})))) == bits(trained(trainer(job())))


def test_training_again_gives_the_same_bits() -> None:
    """Whatever came in between, in this process or another: dropout and batch order are keyed, not streamed."""
    made = job()
    task = Blobs(dropout=0.3)
    first = trainer(made, task)
    fresh = bits(trained(first, 3))
    trained(first, 4)
    first.evaluate(order(first))
    torch.rand(17)
    assert bits(trained(first, 3)) == fresh
    assert bits(trained(trainer(made, task), 3)) == fresh
    assert bits(trained(first, 4)) != fresh, "another version, another order"
    assert bits(trained(trainer(made, task, silo="b"), 3)) != fresh, "another silo, another order"


def test_another_draw_is_another_training_from_the_same_version() -> None:
    made = job()

    def drawn(draw: int) -> dict[str, bytes]:
        return bits(trainer(made).train(order(made=trainer(made), version=3, draw=draw)))

    assert drawn(0) == bits(trained(trainer(made), 3)) and drawn(1) == drawn(1)
    assert len({drawn(draw)["delta"] for draw in range(3)}) == 3


def test_the_received_model_is_not_written_to() -> None:
    made = trainer(job(strategy={"name": "scaffold"}))
    received = {name: part.copy() for name, part in made.job.strategy.init(made.initial()).items()}
    for part in received.values():
        part.flags.writeable = False
    before = {name: part.tobytes() for name, part in received.items()}
    trained(made, received=received)
    assert {name: part.tobytes() for name, part in received.items()} == before


def test_metrics_are_of_the_received_model() -> None:
    made = trainer(job())
    result = trained(made)
    task, net = Blobs(), initial_net(made.job).eval()
    images, labels = task.data["test"]
    with torch.no_grad():
        expected = nn.functional.cross_entropy(net(images), labels).item()
    assert (
        result.metrics["loss"].value == pytest.approx(expected, rel=1e-6)
        and result.metrics["loss"].count == 20
    )
    assert result.train_metrics["loss"].count == 80, "two epochs of forty"
    after = {
        "params": made.initial()["params"] + result.parts["delta"],
        "buffers": made.initial()["buffers"] + result.parts["buffers"],
    }
    assert made.evaluate(order(made, received=after))["loss"].value < 0.7 * expected


def test_epochs_and_steps() -> None:
    assert trained(trainer(job(local={"epochs": 3}))).num_steps == 15
    for steps in (1, 5, 7):
        assert trained(trainer(job(local={"epochs": None, "steps": steps}))).num_steps == steps


def test_a_number_of_steps_that_the_driver_asks_for() -> None:
    """Epoch after epoch, to the bit as if the job said so; two epochs have ten steps."""
    made = trainer(job())
    for steps in (3, 13):
        told = trainer(job(local={"epochs": None, "steps": steps}))
        result = made.train(order(made, num_steps=steps))
        assert result.num_steps == steps and bits(result) == bits(trained(told))
    assert trained(made).num_steps == 10


def test_it_ends_with_what_is_there() -> None:
    """An update of fewer steps, to the bit as if so many had been asked for."""
    made, asked = trainer(job()), iter(range(1, 10))
    partial = made.train(order(made, enough=lambda: next(asked) == 4))
    assert partial.num_steps == 4
    assert bits(partial) == bits(made.train(order(made, num_steps=4)))


def test_an_override_of_the_batch_size() -> None:
    assert (
        TorchTrainer(job(), "a", Blobs(), "cpu", job(local={"batch_size": 20}).local)
        .train(order(trainer(job())))
        .num_steps
        == 4
    )


def test_rates_follow_the_schedule() -> None:
    schedule = {"name": "step", "every": 2, "gamma": 0.1}
    made = trainer(
        job(
            local={"schedule": schedule, "optimizer": {"name": "sgd", "lr": 0.05}, "epochs": None, "steps": 1}
        )
    )
    norms = []
    for version in (0, 1, 2, 5):
        made.job.local.schedule.factor(version, 5)
        norms.append(np.linalg.norm(trained(made, version).parts["delta"]))
    full = trainer(job(local={"optimizer": {"name": "sgd", "lr": 0.05}, "epochs": None, "steps": 1}))
    expected = [
        np.linalg.norm(trained(full, version).parts["delta"]) * f
        for version, f in ((0, 1), (1, 1), (2, 0.1), (5, 0.01))
    ]
    assert norms == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped() -> None:
    clipped = job(
        local={"clip_grad_norm": 0.01, "optimizer": {"name": "sgd", "lr": 1.0}, "epochs": None, "steps": 1}
    )
    assert np.linalg.norm(trained(trainer(clipped)).parts["delta"]) == pytest.approx(0.01, rel=1e-3)


def test_it_leaves_when_it_is_told_to() -> None:
    made, seen = trainer(job()), []

    def tick(phase: str, done: int, total: int) -> None:
        seen.append((phase, done, total))
        if (phase, done) == ("training", 3):
            raise Cancelled

    with pytest.raises(Cancelled):
        made.train(order(made, tick=tick))
    assert seen == [("evaluating", 1, 1), *(("training", i, 10) for i in (1, 2, 3))]


# What stays at the silo


@pytest.mark.parametrize("private", [["head.*"], ["bn.*"], ["bn.*", "head.*"]], ids=str)
def test_private_layers_never_travel_and_go_on_from_round_to_round(private: list[str]) -> None:
    made = job(private=private)
    one, state = trainer(made), {}
    first = trained(one, 0, state)
    kept = {name: part.copy() for name, part in state.items()}
    assert kept and first.parts["delta"].size == one.flat.num_shared < one.num_parameters
    assert "buffers" not in first.parts or "bn.*" not in private
    second = trained(one, 1, state)
    assert any(not np.array_equal(state[name], kept[name]) for name in kept)
    another_process = trainer(made)
    again = {name: part.copy() for name, part in kept.items()}
    assert bits(trained(another_process, 1, again)) == bits(second), "from the state on disk, the same bits"
    assert {n: p.tobytes() for n, p in again.items()} == {n: p.tobytes() for n, p in state.items()}
    assert bits(trained(another_process, 1, {})) != bits(second), "and without it, others"


def test_a_private_head_is_measured_too_in_a_new_process() -> None:
    """Evaluation needs the private layers of this silo, not those of the start."""
    made = job(private=["head.*"], local={"epochs": 8})
    one, state = trainer(made), {}
    trained(one, 0, state)
    here = one.evaluate(order(one, 1, state))
    there = trainer(made)
    assert there.evaluate(order(there, 1, state)) == here
    assert there.evaluate(order(there, 1, {})) != here


def test_the_counter_of_batch_norm_is_private() -> None:
    one, state = trainer(job()), {}
    trained(one, 0, state)
    assert state["private/bn.num_batches_tracked"].tolist() == [10]
    trained(one, 1, state)
    assert state["private/bn.num_batches_tracked"].tolist() == [20]


def test_fedbn_without_norm_layers_would_be_fedavg() -> None:
    """A job that shares everything has no private layers to lose."""
    one = trainer(job())
    assert one.flat.private.numel() == 0 and one.num_shared == one.num_parameters + 8


# Switches


@pytest.mark.parametrize(
    "switch", [{"precision": "bf16"}, {"channels_last": True}, {"precision": "fp16"}], ids=str
)
def test_switches_train(switch: dict[str, Any]) -> None:
    made = trainer(job(local={"epochs": 6, **switch}))
    result = trained(made)
    after = {
        "params": made.initial()["params"] + result.parts["delta"],
        "buffers": made.initial()["buffers"] + result.parts["buffers"],
    }
    assert result.parts["delta"].dtype == np.float32 and np.isfinite(result.parts["delta"]).all()
    assert made.evaluate(order(made, received=after))["loss"].value < 0.7 * result.metrics["loss"].value
    reference = trained(trainer(job(local={"epochs": 6})))
    if "precision" in switch:
        assert bits(result) != bits(reference), "it must really compute with fewer bits"
    assert bits(trained(trainer(made.job))) == bits(result)


def test_an_overflow_in_half_precision_skips_the_step() -> None:
    """Gradients are scaled up against underflow; where that overflows, the batch is left out and the scale falls."""
    task = Blobs()
    plain = task.loss
    task.loss = lambda model, batch: 1000 * plain(model, batch)  # type: ignore[method-assign]
    small = {"name": "sgd", "lr": 5e-5}
    made = trainer(job(local={"precision": "fp16", "epochs": 6, "optimizer": small}), task)
    result = trained(made)
    assert np.isfinite(result.parts["delta"]).all() and np.abs(result.parts["delta"]).max() > 0
    assert 0 < result.num_steps < 30


@pytest.mark.slow
def test_a_compiled_model_trains() -> None:
    compiled, eager = (trained(trainer(job(local={"compile": flag}))) for flag in (True, False))
    np.testing.assert_allclose(compiled.parts["delta"], eager.parts["delta"], rtol=1e-3, atol=1e-5)


def counting(task: Blobs) -> tuple[Blobs, Callable[[], int]]:
    calls = []
    plain = task.loss
    task.loss = lambda model, batch: (calls.append(1), plain(model, batch))[1]  # type: ignore[method-assign]
    return task, lambda: len(calls)


def test_one_backward_pass_per_step() -> None:
    task, calls = counting(Blobs())
    assert trained(trainer(job(strategy={"name": "scaffold"}), task)).num_steps == calls()


def test_silos_in_threads_start_from_the_same_weights() -> None:
    """Torch's generator is the process's: eight silos that join at once must not draw from each other's seed."""
    from concurrent.futures import ThreadPoolExecutor

    made = job()
    with ThreadPoolExecutor(8) as pool:
        starts = list(pool.map(lambda _: trainer(made).initial()["params"].tobytes(), range(48)))
    assert len(set(starts)) == 1
