"""Meta-learning in float64 against closed forms (notes, oracle 41), and on torch: halves that do not overlap."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import LocalRun
from orchestrator.local import FineTune
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.fomaml import Fomaml
from orchestrator.strategies.meta_sgd import MetaSgd
from orchestrator.strategies.per_fedavg import PerFedAvg
from orchestrator.strategies.reptile import Reptile
from orchestrator.strategies.server import Adam, Sgd
from silos.fine_tune import fine_tune
from silos.tasks.task import At
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs
from tests.support.quadratic import STEPS, Quadratic, Zeros, desk, fixed_point, job_of, problems
from tests.unit.test_trainer import bits, order, trained

torch.set_num_threads(1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def effective(problem: Quadratic, alpha: float, steps: int, hessian: bool) -> np.ndarray:
    """``A (I - alpha A)^steps``, or with the Hessian's ``(I - alpha A)^steps`` in front of it."""
    inner = np.linalg.matrix_power(np.eye(problem.b.size) - alpha * problem.a, steps)
    return inner @ problem.a @ inner if hessian else problem.a @ inner


META = [(Fomaml, False, 1), (Fomaml, False, 3), (PerFedAvg, True, 1), (PerFedAvg, True, 3)]


@pytest.mark.parametrize(("kind", "hessian", "steps"), META)
def test_41_the_direction(kind: Any, hessian: bool, steps: int) -> None:
    problem, point = problems()["s1"], np.linspace(-2, 3, 5)
    run = LocalRun(point.copy(), point, {}, Zeros(5))
    found = kind(alpha=0.1, inner_steps=steps).direction(run, problem.gradient)
    expected = effective(problem, 0.1, steps, hessian) @ (point - problem.b)
    assert distance(found, expected) < (1e-9 if hessian else 1e-13)
    assert run.params.tobytes() == point.tobytes(), "the model itself has not moved"


@pytest.mark.parametrize(("kind", "hessian", "steps"), META)
def test_41_the_fixed_point(kind: Any, hessian: bool, steps: int) -> None:
    """FedAvg's, of problems whose curvature is the effective one: with any number of local steps."""
    made = problems(steps=STEPS)
    bent = {n: replace(p, a=effective(p, 0.1, steps, hessian)) for n, p in made.items()}
    path = desk(kind(alpha=0.1, inner_steps=steps), made, 1500)
    assert distance(path[-1], fixed_point(bent)) < (1e-8 if hessian else 1e-11)
    assert distance(fixed_point(bent), fixed_point(made)) > 0.01


def test_first_order_is_fomaml_to_the_bit() -> None:
    made = problems(steps=STEPS)
    first = desk(PerFedAvg(alpha=0.1, hessian=False), made, 10)[-1]
    assert first.tobytes() == desk(Fomaml(alpha=0.1), made, 10)[-1].tobytes()


@pytest.mark.parametrize("strategy", [Fomaml(alpha=0), PerFedAvg(alpha=0), MetaSgd(alpha=0, alpha_lr=0)])
def test_without_inner_steps_it_is_fedavg(strategy: Any) -> None:
    """To the bit on problems whose halves are alike."""
    made = problems(steps=STEPS)
    assert desk(strategy, made, 10)[-1].tobytes() == desk(FedAvg(), made, 10)[-1].tobytes()


def test_meta_sgd_whose_rate_stays_is_fomaml() -> None:
    made = problems(steps=STEPS)
    still = desk(MetaSgd(alpha=0.125, alpha_lr=0), made, 10)[-1]
    assert still.tobytes() == desk(Fomaml(alpha=0.125), made, 10)[-1].tobytes()


def test_meta_sgd_follows_the_gradient_of_its_rate() -> None:
    """By central differences of the loss after the inner step."""
    problem, point = problems()["s1"], np.linspace(-2, 3, 5)
    rates = np.array([0.1, 0.0, 0.2, 0.05, -0.1])
    run = LocalRun(point.copy(), point, {"alpha": rates}, Zeros(5), lr=0.01)
    strategy = MetaSgd()
    strategy.direction(run, problem.gradient)
    learnt = strategy.report(run).parts["alpha"]

    def loss(alpha: np.ndarray) -> float:
        return problem.loss(point - alpha * problem.gradient(point))

    slope = [(loss(rates + 1e-5 * e) - loss(rates - 1e-5 * e)) / 2e-5 for e in np.eye(5)]
    assert distance(learnt, -0.01 * np.array(slope)) < 1e-8


def test_meta_sgd_learns_rates_for_narrow_and_wide_directions() -> None:
    """Where curvatures are 3 and .3 the loss after one step is least with rates of 1/3 and 1/.3."""
    curvature = np.diag([3.0, 0.3])
    made = {f"s{i}": Quadratic(curvature, b, steps=1) for i, b in enumerate(np.array([[1.0, 2], [-1, -2]]))}
    strategy, state = MetaSgd(alpha=0.1, alpha_lr=0.05), None
    state = strategy.init({"params": np.zeros(2)})
    for _ in range(400):
        received = strategy.broadcast(state)
        reports = []
        for problem in made.values():
            run = LocalRun(received["params"].copy(), received["params"], received, Zeros(2), lr=0.05)
            run.params -= 0.05 * strategy.direction(run, problem.gradient)
            reports.append(strategy.report(run).parts)
        mean = {name: (reports[0][name] + reports[1][name]) / 2 for name in reports[0]}
        state = strategy.step(state, mean, CohortInfo(2, (0.5, 0.5), ({}, {})))
    assert state["alpha"] == pytest.approx([1 / 3, 1 / 0.3], rel=0.15)
    assert strategy.adaptation(state) is state["alpha"]


def test_41_reptile_is_fedavg_with_a_server_rate_to_the_bit() -> None:
    made = problems(steps=STEPS)
    for epsilon in (1.0, 0.3):
        ours = desk(Reptile(epsilon=epsilon), made, 20)[-1]
        assert ours.tobytes() == desk(FedAvg(server=Sgd(lr=epsilon)), made, 20)[-1].tobytes()
    outer = desk(Reptile(epsilon=0.5, server=Adam(lr=0.1)), made, 20)[-1]
    assert distance(outer, desk(FedAvg(), made, 20)[-1]) > 0.01


# On torch


def trainer(strategy: dict[str, Any], task: Blobs | None = None, **local: Any) -> TorchTrainer:
    sgd = {"name": "sgd", "lr": 0.05}
    made = job_of(["a", "b"], local={"batch_size": 8, "optimizer": sgd, **local}, strategy=strategy)
    return TorchTrainer(made, "a", task or Blobs(), "cpu")


def rows(batch: Any) -> list[bytes]:
    return [row.numpy().tobytes() for row in batch[0]]


@pytest.mark.parametrize(
    ("strategy", "uses"),
    [
        ({"name": "fomaml", "inner_steps": 2}, "SSQ"),
        ({"name": "per_fedavg"}, "SQSS"),
        ({"name": "meta_sgd"}, "SQ"),
    ],
)
def test_no_row_is_support_and_query(strategy: dict[str, Any], uses: str) -> None:
    task, seen = Blobs(), []
    plain = task.loss
    task.loss = lambda model, batch: (seen.append(rows(batch)), plain(model, batch))[1]  # type: ignore[method-assign]
    made = trainer(strategy, task)
    trained(made)
    batches = [rows(batch) for batch in task.train_batches(At(made.job.seed, "a", 0, 0), 8)]
    halves = {"S": [each[:4] for each in batches], "Q": [each[4:] for each in batches]}
    assert seen == [halves[use][i] for i in range(5) for use in uses]


def test_alpha_of_zero_is_fedavg_on_the_second_halves() -> None:
    """To the bit, up to what batch normalisation saw: its statistics count both halves."""

    class SecondHalves(Blobs):
        def train_batches(self, at: At, batch_size: int) -> Any:
            for images, labels in super().train_batches(at, batch_size):
                yield images[4:], labels[4:]

    plain = trained(trainer({"name": "fedavg"}, SecondHalves())).parts["delta"]
    for strategy in ({"name": "fomaml"}, {"name": "per_fedavg"}, {"name": "meta_sgd", "alpha_lr": 0}):
        assert trained(trainer({**strategy, "alpha": 0})).parts["delta"].tobytes() == plain.tobytes()


def test_the_hessian_by_differences_is_autograds() -> None:
    """In float32, on a network with kinks: the direction differs from first order, in the right direction."""
    made = trainer({"name": "per_fedavg", "alpha": 0.2}, steps=1)
    task, flat = made.task, made.flat
    made.load(order(made))
    made.network.call.train()
    batch = next(task.train_batches(At(made.job.seed, "a", 0, 0), 8))
    halves = [tuple(each[part] for each in batch) for part in (slice(0, 4), slice(4, 8))]
    shapes = {name: p.shape for name, p in flat.module.named_parameters()}

    def loss(vector: torch.Tensor, half: Any) -> torch.Tensor:
        parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
        named = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
        net = flat.module
        return torch.nn.functional.cross_entropy(torch.func.functional_call(net, named, (half[0],)), half[1])

    def direction(create_graph: bool) -> torch.Tensor:
        start = flat.vector.clone().requires_grad_()
        inner = torch.autograd.grad(loss(start, halves[0]), start, create_graph=create_graph)[0]
        return torch.autograd.grad(loss(start - 0.2 * inner, halves[1]), start)[0]

    exact, first = direction(True), direction(False)
    ours = torch.from_numpy(trained(made).parts["delta"]) / -0.05
    assert torch.linalg.norm(exact - first) > 0.01 * torch.linalg.norm(exact)
    assert torch.linalg.norm(ours - exact) < 0.15 * torch.linalg.norm(first - exact)


@pytest.mark.parametrize("name", ["fomaml", "per_fedavg", "meta_sgd", "reptile"])
def test_it_learns_and_gives_the_same_bits_again(name: str) -> None:
    made = trainer({"name": name}, Blobs(dropout=0.2), epochs=6)
    first = trained(made)
    after = made.job.strategy.init(made.initial())
    after = {
        **after,
        **{n: after[n] + first.parts[p] for n, p in (("params", "delta"), ("buffers", "buffers"))},
    }
    assert made.evaluate(order(made, received=after))["loss"].value < 0.8 * first.metrics["loss"].value
    assert bits(trained(trainer({"name": name}, Blobs(dropout=0.2), epochs=6))) == bits(first)


def test_it_is_adapted_by_its_own_rates() -> None:
    """One step of fine-tuning: plain, with the rates of the strategy; with a rate of the plan's own, by that."""
    steps = {}
    for name, alpha in (("fomaml", 0.5), ("fomaml", 0.25), ("meta_sgd", 0.25)):
        made = trainer({"name": name, "alpha": alpha})
        made.load(order(made))
        before = made.flat.vector.clone()
        fine_tune(made, order(made), FineTune(steps=1))
        steps[name, alpha] = made.flat.vector - before
    torch.testing.assert_close(steps["fomaml", 0.5], 2 * steps["fomaml", 0.25])
    torch.testing.assert_close(steps["fomaml", 0.25], steps["meta_sgd", 0.25])
    made = trainer({"name": "fomaml", "alpha": 0.5})
    fine_tune(made, order(made), FineTune(steps=1, lr=0.25))
    torch.testing.assert_close(made.flat.vector - before, steps["fomaml", 0.25])
