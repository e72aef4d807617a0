"""FedAsync and AREA (notes/algorithms.md section 3.2 and 9, oracles 22 and 24)."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import LocalRun
from orchestrator.strategies.area import Area
from orchestrator.strategies.fedasync import FedAsync
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.fedprox import FedProx
from tests.support.arrivals import Arrivals
from tests.support.quadratic import (
    ROWS,
    STEPS,
    Zeros,
    descend,
    desk,
    fixed_point,
    job_of,
    optimum,
    problems,
    shares,
)

SPEEDS = {"s0": 1.0, "s1": 2.7, "s2": 0.3, "s3": 8.1}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# FedAsync


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"discount": "constant"}, (1, 1, 1, 1, 1, 1)),
        ({}, (1, 0.7071, 0.5774, 0.5, 0.4472, 0.4082)),
        ({"discount": "hinge"}, (1, 1, 1, 1, 1, 1 / 11)),
        ({"discount": "hinge", "a": 1, "b": 2}, (1, 1, 1, 1 / 2, 1 / 3, 1 / 4)),
    ],
    ids=str,
)
def test_22_discounts(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    strategy = FedAsync(**options)
    assert [strategy.s(staleness) for staleness in range(6)] == pytest.approx(expected, abs=5e-5)


def test_22_alone_and_whole_it_is_local_training() -> None:
    made = problems(1)
    run = LocalRun(np.zeros(5), np.zeros(5), {}, Zeros(5))
    descend(FedAvg(), made["s0"], run, steps=50)
    assert np.array_equal(desk(FedAsync(alpha=1, rho=0), made, 10)[-1], run.params), (
        "of which zero was taken away"
    )


def mixed(strategy: FedAsync, params: np.ndarray, *models: tuple[np.ndarray, int]) -> np.ndarray:
    staleness = tuple(late for _, late in models)
    count = len(models)
    cohort = CohortInfo(4, (1 / count,) * count, ({},) * count, staleness=staleness)
    weights = strategy.weigh(cohort)
    mean = sum(weight * model for weight, (model, _) in zip(weights, models, strict=True))
    return strategy.step({"params": params}, {"model": mean}, cohort)["params"]


def test_the_local_model_is_mixed_in() -> None:
    """Not what changed in it: from a stale start it pulls the model back."""
    strategy, params, model = FedAsync(alpha=0.6), np.full(3, 4.0), np.ones(3)
    assert mixed(strategy, params, (model, 0)).tolist() == pytest.approx([0.4 * 4 + 0.6] * 3)
    assert mixed(strategy, params, (model, 3)).tolist() == pytest.approx([0.7 * 4 + 0.3] * 3)


def test_models_that_come_at_once_are_mixed_in_one_after_the_other() -> None:
    strategy, params = FedAsync(alpha=0.6), np.full(3, 4.0)
    first, second = (np.array([1.0, 2, 3]), 0), (np.array([3.0, -1, 0]), 2)
    in_turn = mixed(strategy, mixed(strategy, params, first), second)
    np.testing.assert_allclose(mixed(strategy, params, first, second), in_turn, rtol=1e-14)


def test_batch_norm_statistics_are_mixed_by_the_same_share() -> None:
    strategy = FedAsync(alpha=0.5)
    state = strategy.init({"params": np.ones(2), "buffers": np.full(2, 4.0)})
    assert strategy.layout(state) == {"model": 2, "buffers": 2}
    cohort = CohortInfo(1, (1.0,), ({},), staleness=(0,))
    mean = {"model": 0.5 * np.zeros(2), "buffers": 0.5 * np.array([-2.0, 2.0])}
    moved = strategy.step(state, mean, cohort)
    assert moved["buffers"].tolist() == [3.0, 5.0] and moved["params"].tolist() == [0.5, 0.5]


def test_the_pull_of_local_training_is_that_of_fedprox() -> None:
    for strategy in (FedAsync(rho=0.5), FedProx(mu=0.5)):
        run = LocalRun(np.ones(5), np.zeros(5), {}, Zeros(5))
        direction = strategy.direction(run, problems()["s0"].gradient)
        assert distance(direction, problems()["s0"].gradient(run.params) + 0.5) < 1e-15


def test_fedasync_goes_where_most_updates_come_from() -> None:
    made = problems(lr=0.02, steps=1)
    job = job_of(
        made,
        rounds={"mode": "fedasync"},
        strategy={"name": "fedasync", "alpha": 0.05, "discount": "constant", "rho": 0},
    )
    run = Arrivals(job, made, SPEEDS).run(6_000)
    total = sum(run.counts().values())
    arrivals = {silo: count / total for silo, count in run.counts().items()}
    end = np.mean(run.path[-2_000:], axis=0)
    assert distance(end, optimum(made, arrivals)) < 0.1 < 0.5 < distance(end, optimum(made))


# AREA

WEIGHTS = dict(zip(("s0", "s1", "s2", "s3"), ROWS, strict=True))


def area(made: Any, speeds: dict[str, float], rounds: int, buffer: int = 2, **strategy: Any) -> Arrivals:
    job = job_of(
        made,
        rounds={"mode": "async", "buffer": buffer, "max_staleness": 1000},
        strategy={"name": "area", **strategy},
        combine={"weights": WEIGHTS},
    )
    return Arrivals(job, made, speeds).run(rounds)


@pytest.mark.parametrize("buffer", [1, 2, 4])
@pytest.mark.parametrize("speeds", [SPEEDS, {"s0": 8.0, "s1": 1.0, "s2": 1.0, "s3": 1.0}], ids=["a", "b"])
def test_24_area_settles_where_synchronous_fedavg_does(speeds: dict[str, float], buffer: int) -> None:
    """To the last digits, at any speeds."""
    made = problems(steps=STEPS, lr=0.1)
    run = area(made, speeds, 3200 // buffer, buffer)
    assert len(set(run.counts().values())) > 1 or buffer == 4, "some deliver more often"
    assert distance(run.path[-1], fixed_point(made)) < 1e-9
    assert distance(run.path[-1], optimum(made)) > 0.1


def test_24_the_model_is_the_mean_of_the_last_local_models() -> None:
    """After every round; the first model stands for those that have not delivered."""
    made = problems(steps=STEPS)
    run = area(made, SPEEDS, 60)
    last = {silo: np.zeros(5) for silo in made}
    for one, ours in zip(run.rounds, run.path[1:], strict=True):
        for each in one.contributors:
            start = run.path[each.base_version]
            local = LocalRun(start.copy(), start, {}, Zeros(5))
            last[each.silo] = start + descend(FedAvg(), made[each.silo], local).parts["delta"]
        assert distance(ours, sum(share * last[silo] for silo, share in shares(made).items())) < 1e-12


def test_area_in_rounds_of_all_silos_is_fedavg() -> None:
    made = problems(steps=STEPS)
    for ours, theirs in zip(desk(Area(), made, 20), desk(FedAvg(), made, 20), strict=True):
        assert distance(ours, theirs) < 1e-14


def test_a_first_model_that_is_not_zero_is_taken_away_once() -> None:
    made, start = problems(steps=STEPS), np.arange(5.0)
    ours, theirs = desk(Area(), made, 8, start), desk(FedAvg(), made, 8, start)
    assert distance(ours[1], theirs[1]) < 1e-14 and distance(ours[-1], theirs[-1]) < 1e-13


def test_stretched_it_moves_further() -> None:
    made = problems(steps=STEPS, lr=0.01)
    plain, far = desk(Area(), made, 1)[-1], desk(Area(stretch=2), made, 1)[-1]
    np.testing.assert_allclose(far, 2 * plain)
    assert distance(desk(Area(stretch=2), made, 3000)[-1], fixed_point(made)) < 1e-10


@pytest.mark.parametrize("strategy", [FedAsync, Area])
def test_no_server_optimizer(strategy: Any) -> None:
    with pytest.raises(ValidationError, match="takes no server optimizer"):
        strategy(server={"name": "adam"})
