"""Silos that differ in optimizer, rate and number of steps, in float64, and the optimum that is theirs all the same."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import LocalRun
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.feddyn import FedDyn
from orchestrator.strategies.fednova import FedNova
from orchestrator.strategies.scaffold import Scaffold
from tests.support.quadratic import (
    STEPS,
    Quadratic,
    Zeros,
    descend,
    desk,
    fixed_point,
    optimum,
    problems,
    shares,
)

UNIFORM = dict.fromkeys(problems(), 0.25)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def unequal(lr: float) -> dict[str, Quadratic]:
    """One silo with Adam, one with momentum, two with plain SGD of other rates; 1 to 10 steps."""
    made = problems(steps=STEPS, lr=lr)
    made["s1"] = replace(made["s1"], adam=True, lr=lr / 2)
    made["s2"] = replace(made["s2"], momentum=0.9)
    made["s3"] = replace(made["s3"], lr=4 * lr)
    return made


# FedDyn


@pytest.mark.parametrize("weights", [None, UNIFORM], ids=["by rows", "uniform"])
def test_19_feddyn_reaches_the_optimum_whatever_the_steps(weights: Any) -> None:
    """In the paper for equal weights; by rows the driver's memory is the weighted mean of the silos' all the same."""
    made = problems(steps=STEPS)
    end = desk(FedDyn(alpha=0.5), made, 3000, weights=weights)[-1]
    assert distance(end, optimum(made, weights)) < 2e-7  # alpha and the shares are float32 on the driver
    assert distance(fixed_point(made, weights), optimum(made, weights)) > 0.1, "where FedAvg is biased"


def test_19_an_exact_local_solve_leaves_the_gradients_at_the_optimum() -> None:
    made, strategy = problems(steps=300), FedDyn(alpha=0.5)
    memory = {name: Zeros(5) for name in made}
    state = strategy.init({"params": np.zeros(5)})
    for _ in range(150):
        received, deltas = strategy.broadcast(state), {}
        for name, problem in made.items():
            run = LocalRun(received["params"].copy(), received["params"], received, memory[name])
            deltas[name] = descend(strategy, problem, run).parts["delta"]
        mean = sum(share * deltas[name] for name, share in shares(made).items())
        state = strategy.step(state, {"delta": mean}, CohortInfo(4, (0.25,) * 4, ({},) * 4))
    for name, problem in made.items():
        assert distance(memory[name]["pull"], problem.gradient(optimum(made))) < 1e-6


def test_feddyn_without_a_pull_is_fedavg_to_the_bit() -> None:
    made = problems(steps=STEPS)
    assert desk(FedDyn(alpha=0), made, 20)[-1].tobytes() == desk(FedAvg(), made, 20)[-1].tobytes()


def test_feddyn_remembers_the_share_that_took_part() -> None:
    strategy = FedDyn(alpha=0.5)
    state = strategy.init({"params": np.zeros(1)})
    moved = strategy.step(state, {"delta": np.ones(1)}, CohortInfo(8, (0.5, 0.5), ({}, {})))
    assert moved["pull"].tolist() == [-0.125] and moved["params"].tolist() == [1.25]
    assert state["pull"].tolist() == [0]


# The normaliser


def ends(strategy: Any, rates: tuple[float, ...] = (0.02, 0.005)) -> list[float]:
    """Distances to the optimum, with as many rounds as the rate needs."""
    return [distance(desk(strategy, unequal(lr), int(20 / lr))[-1], optimum(problems())) for lr in rates]


def test_plain_averaging_of_unequal_silos_is_off_whatever_the_rate() -> None:
    assert min(ends(FedAvg())) > 0.5


def test_fednova_brings_unequal_optimizers_to_the_optimum() -> None:
    """The distance falls with the rate, linearly: what is left is the length of the steps."""
    far, near = ends(FedNova(max_ratio=1e6))
    assert far < 0.3 and far / near == pytest.approx(4, rel=0.1)


def test_fednova_with_adam_everywhere() -> None:
    """No path is known: the steps are as long as the silos' own, in the direction of the mean gradient."""
    errors = []
    for lr in (0.02, 0.005):
        made = {name: replace(problem, adam=True) for name, problem in problems(steps=STEPS, lr=lr).items()}
        errors.append(distance(desk(FedNova(), made, int(12 / lr))[-1], optimum(made)))
        assert distance(desk(FedAvg(), made, int(12 / lr))[-1], optimum(made)) > 0.5
    assert errors[0] < 0.03 and errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_the_mean_gradient_says_of_plain_sgd_what_the_path_says() -> None:
    """The same silo, its optimizer declared unknown: ``-delta / path`` is the mean gradient."""

    class Unknown(FedNova, frozen=True):
        def direction(self, run: LocalRun, grad_at: Any) -> Any:
            run.exact_path = False
            return super().direction(run, grad_at)

    received = {"path": np.zeros(1, np.float32)}
    reports = [
        descend(strategy, problems()["s1"], LocalRun(np.zeros(5), np.zeros(5), received, Zeros(5)))
        for strategy in (FedNova(), Unknown())
    ]
    known, unknown = reports
    assert distance(known.parts["delta"], unknown.parts["delta"]) < 1e-12
    assert known.scalars["exact"] == 1.0 and unknown.scalars["exact"] == 0.0
    assert unknown.scalars["path"] == pytest.approx(known.scalars["path"], rel=1e-12)


def test_a_silo_with_hardly_a_gradient_does_not_blow_up_the_step() -> None:
    """Adam's steps do not shrink with the gradient, so its path has no bound; the step of the federation has."""
    scalars = (
        {"path": 1e9, "slope": 1e-9, "exact": 0.0, "capped": 0.0},
        {"path": 0.5, "slope": 2.0, "exact": 0.0, "capped": 0.0},
    )
    strategy = FedNova()
    state = strategy.init({"params": np.zeros(1)})
    moved = strategy.step(state, {"delta": np.array([-1.0])}, CohortInfo(2, (0.5, 0.5), scalars))
    assert moved["path"][0] == pytest.approx(1.0)  # (1e9 * 1e-9 + 0.5 * 2) / 2
    with_sgd = (*scalars, {"path": 0.25, "slope": 0.0, "exact": 1.0, "capped": 0.0})
    moved = strategy.step(state, {"delta": np.array([-1.0])}, CohortInfo(3, (0.4, 0.4, 0.2), with_sgd))
    assert moved["path"][0] == pytest.approx(0.25), "as long as those of the silos with SGD"


def test_a_silo_without_a_step_does_not_count_as_one_with_sgd() -> None:
    run = LocalRun(np.ones(2), np.ones(2), {"path": np.zeros(1)}, Zeros(2), exact_path=False)
    report = FedNova().report(run)
    assert report.parts["delta"].tolist() == [0, 0]
    assert report.scalars == {"path": 0.0, "capped": 0.0, "exact": 0.0, "slope": 0.0}


@pytest.mark.parametrize("strategy", [Scaffold(), FedDyn(alpha=0.5)], ids=lambda each: each.name)
def test_corrected_directions_need_no_path(strategy: Any) -> None:
    """What a silo with Adam takes for the gradient vanishes at the optimum; SCAFFOLD's control is the mean gradient."""
    far, near = ends(strategy)
    assert far < 0.01 and near < far
