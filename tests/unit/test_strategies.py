"""Strategies by themselves in float64, against what mathematics says they converge to (notes, section 9).

float64 and 300 to 3000 contracting rounds end within 1e-10 of a closed form; a wider bound says where float32
constants (``np.float32`` of a learning rate or a path) enter. The same through silo, codec, store and driver,
in float32, is in ``tests/property/test_driver.py``.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import LocalRun, Report
from orchestrator.strategies.apfl import Apfl
from orchestrator.strategies.ditto import Ditto
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.fedbn import FedBN
from orchestrator.strategies.feddyn import FedDyn
from orchestrator.strategies.fedma import FedMA
from orchestrator.strategies.fednova import FedNova
from orchestrator.strategies.fedper import FedPer
from orchestrator.strategies.fedprox import FedProx
from orchestrator.strategies.fedrep import FedRep
from orchestrator.strategies.fomaml import Fomaml
from orchestrator.strategies.meta_sgd import MetaSgd
from orchestrator.strategies.per_fedavg import PerFedAvg
from orchestrator.strategies.reptile import Reptile
from orchestrator.strategies.scaffold import Scaffold
from orchestrator.strategies.server import Adam, Sgd
from tests.support.quadratic import STEPS, Zeros, descend, desk, fixed_point, optimum, problems, shares

ALL = [
    *(FedAvg(), FedProx(mu=0.1), Scaffold(), FedNova(), FedDyn(), FedMA()),
    *(Fomaml(), PerFedAvg(), MetaSgd(), Reptile()),
    *(Ditto(), Apfl(), FedPer(), FedRep(), FedBN()),
]


def equal_a(steps: Any = 5) -> dict[str, Any]:
    """Problems with one curvature and different optima."""
    made = problems(steps=steps)
    return {name: replace(problem, a=made["s0"].a) for name, problem in made.items()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# FedAvg


def test_1_one_full_batch_step_is_centralised_gradient_descent() -> None:
    made, weights = problems(steps=1), shares(problems())
    point = np.zeros(5)
    for ours in desk(FedAvg(), made, 30)[1:]:
        point = point - 0.05 * sum(weights[name] * problem.gradient(point) for name, problem in made.items())
        assert distance(ours, point) < 1e-14


def test_1_it_does_not_matter_how_rows_are_split_over_silos() -> None:
    """A least-squares problem of 60 rows, cut into silos in two ways."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=60)
    ends = []
    for cuts in ([10, 35], [1, 2, 3, 50], []):
        made = {}
        for i, rows in enumerate(np.split(np.arange(60), cuts)):
            a = x[rows].T @ x[rows] / len(rows)
            b = np.linalg.pinv(a) @ (x[rows].T @ y[rows] / len(rows))
            made[f"s{i}"] = replace(problems()["s0"], a=a, b=b, num_rows=len(rows), steps=1)
        ends.append(desk(FedAvg(), made, 20)[-1])
    assert distance(ends[0], ends[2]) < 1e-10 and distance(ends[1], ends[2]) < 1e-10


def test_2_several_local_steps_end_at_the_biased_fixed_point() -> None:
    made = problems(steps=STEPS)
    end = desk(FedAvg(), made, 500)[-1]
    assert distance(end, fixed_point(made)) < 1e-12
    assert distance(end, optimum(made)) > 0.1


def test_3_equal_curvature_and_steps_give_the_mean_of_the_optima() -> None:
    made, weights = equal_a(), shares(problems())
    end = desk(FedAvg(), made, 500)[-1]
    assert distance(end, sum(weights[name] * problem.b for name, problem in made.items())) < 1e-12


def test_5_small_steps_tend_to_the_optimum_weighted_by_steps() -> None:
    """As lr -> 0: ``p_i K_i``, or ``p_i lr_i K_i`` where silos differ in their rates; the error is linear in lr."""
    errors = []
    for scale in (1.0, 0.1):
        made = problems(steps=STEPS, lr=tuple(scale * lr for lr in (0.01, 0.02, 0.005, 0.01)))
        pull = {name: share * made[name].steps * made[name].lr for name, share in shares(made).items()}
        errors.append(distance(fixed_point(made), optimum(made, pull)))
    assert errors[1] < 0.02 and errors[0] / errors[1] == pytest.approx(10, rel=0.15)


def test_fedavg_adds_nothing_to_a_silo_alone() -> None:
    """Oracle 11: one silo, rate 1, no momentum is local training. ``x + (y - x)`` has one rounding."""
    made = problems(1)
    run = LocalRun(np.zeros(5), np.zeros(5), {}, Zeros(5))
    descend(FedAvg(), replace(made["s0"], steps=50), run)
    assert distance(desk(FedAvg(), made, 10)[-1], run.params) < 1e-14


# Server optimizers over rounds


def test_7_fedavgm_with_one_step_is_the_heavy_ball() -> None:
    made, weights = problems(steps=1), shares(problems())
    path = desk(FedAvg(server=Sgd(momentum=0.9)), made, 50)
    before = point = np.zeros(5)
    for ours in path[1:]:
        gradient = sum(weights[name] * problem.gradient(point) for name, problem in made.items())
        before, point = point, point - 0.05 * gradient + 0.9 * (point - before)
        assert distance(ours, point) < 1e-11


def test_8_nesterov_outside_and_one_step_inside_is_data_parallel_nesterov() -> None:
    """DiLoCo with H = 1: torch's SGD with Nesterov on ``eta * gradient``."""
    made, weights = problems(steps=1), shares(problems())
    path = desk(FedAvg(server=Sgd(lr=0.75, momentum=0.9, nesterov=True)), made, 40)
    param = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.SGD([param], lr=0.75, momentum=0.9, nesterov=True)
    for ours in path[1:]:
        point = param.detach().numpy()
        param.grad = torch.from_numpy(0.05 * sum(weights[n] * p.gradient(point) for n, p in made.items()))
        theirs.step()
        assert distance(ours, param.detach().numpy()) < 1e-12


def test_a_server_optimizer_moves_the_model_and_not_the_buffers() -> None:
    """Batch-norm statistics are averaged plainly, whatever moves the parameters."""
    strategy = FedAvg(server=Adam(lr=0.5))
    state = strategy.init({"params": np.ones(3, np.float32), "buffers": np.full(2, 4.0, np.float32)})
    assert strategy.layout(state) == {"delta": 3, "buffers": 2} and set(strategy.broadcast(state)) == {
        "params",
        "buffers",
    }
    mean = {"delta": np.zeros(3, np.float32), "buffers": np.array([1.0, -1.0], np.float32)}
    moved = strategy.step(state, mean, CohortInfo(1, (1.0,), ({},)))
    assert moved["buffers"].tolist() == [5.0, 3.0] and moved["params"].tolist() == [1, 1, 1]
    assert state["buffers"].tolist() == [4.0, 4.0]


# FedNova


def nova(made: dict[str, Any], rounds: int = 3000) -> np.ndarray:
    return desk(FedNova(max_ratio=1e6), made, rounds)[-1]


def test_4_fednova_ends_where_steps_do_not_count() -> None:
    made = problems(steps=STEPS)
    per_step = {name: share / made[name].steps for name, share in shares(made).items()}
    assert distance(nova(made), fixed_point(made, per_step)) < 1e-11


def test_4_its_bias_halves_with_the_rate() -> None:
    """Ratio 10 per decade; FedAvg's bias does not vanish at all."""
    bias = []
    for lr in (0.005, 0.0025, 0.00025):
        made = problems(steps=STEPS, lr=lr)
        per_step = {name: share / made[name].steps for name, share in shares(made).items()}
        bias.append(distance(fixed_point(made, per_step), optimum(made)))
        assert distance(fixed_point(made), optimum(made)) > 0.3
    assert bias[0] / bias[1] == pytest.approx(2, rel=0.05) and bias[1] / bias[2] == pytest.approx(10, rel=0.1)
    assert distance(nova(problems(steps=STEPS, lr=0.005), 3000), optimum(problems())) == pytest.approx(
        bias[0], rel=1e-4
    )


def test_fednova_evens_out_learning_rates_too() -> None:
    """Per-silo rates: FedAvg tends to the ``p lr K`` optimum, FedNova to x* (its path contains the rate)."""
    made = problems(steps=STEPS, lr=(0.004, 0.002, 0.008, 0.004))
    assert distance(nova(made, 2000), optimum(made)) < 0.1
    assert distance(fixed_point(made), optimum(made)) > 0.3


def test_fednova_with_equal_steps_is_fedavg() -> None:
    made = problems()
    assert distance(desk(FedNova(), made, 40)[-1], desk(FedAvg(), made, 40)[-1]) < 1e-5  # float32 mean path


def test_fednova_caps_a_tiny_path() -> None:
    """A silo with a path below 1 / max_ratio of the mean pulls as if it had that much, and says so."""
    received = {"path": np.array([1.0], np.float32)}
    for path, divisor, capped in ((0.5, 0.5, 0.0), (0.05, 0.125, 1.0)):
        run = LocalRun(np.full(2, 3.0), np.full(2, 1.0), received, Zeros(2), path=path)
        report = FedNova(max_ratio=8).report(run)
        assert report.parts["delta"].tolist() == [2 / divisor] * 2
        assert report.scalars == {"path": path, "capped": capped, "exact": 1.0, "slope": 0.0}


def test_fednova_without_a_step_sends_nothing() -> None:
    run = LocalRun(np.ones(2), np.ones(2), {"path": np.zeros(1, np.float32)}, Zeros(2))
    assert FedNova().report(run).parts["delta"].tolist() == [0, 0]


def test_6_the_path_of_momentum() -> None:
    """``(x - y) / path -> gradient`` as lr -> 0, linearly, also with momentum: the path is ``lr * ||a||_1``, with
    ``||a||_1 = (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho)``."""
    errors = []
    for lr in (1e-4, 1e-5):
        problem = replace(problems()["s1"], steps=10, momentum=0.9, lr=lr)
        run = LocalRun(np.zeros(5), np.zeros(5), {}, Zeros(5))
        delta = descend(FedAvg(), problem, run).parts["delta"]
        assert run.path == pytest.approx(lr * (10 - 0.9 * (1 - 0.9**10) / 0.1) / 0.1, rel=1e-12)
        errors.append(distance(-delta / run.path, problem.gradient(np.zeros(5))))
    assert errors[0] < 0.02 and errors[0] / errors[1] == pytest.approx(10, rel=0.01)


# SCAFFOLD


def test_14_scaffold_reaches_the_optimum_whatever_the_steps() -> None:
    made = problems(steps=STEPS)
    path = desk(Scaffold(), made, 3000)
    assert distance(path[-1], optimum(made)) < 1e-12
    assert distance(fixed_point(made), optimum(made)) > 0.1, "where FedAvg is biased"


def test_14_its_controls_are_the_gradients_at_the_optimum() -> None:
    made, memory = problems(steps=STEPS), {name: Zeros(5) for name in problems()}
    strategy, state = Scaffold(), Scaffold().init({"params": np.zeros(5)})
    for _ in range(2000):
        received, reports = strategy.broadcast(state), {}
        for name, problem in made.items():
            run = LocalRun(received["params"].copy(), received["params"], received, memory[name])
            reports[name] = descend(strategy, problem, run).parts
        mean = {p: sum(w * reports[n][p] for n, w in shares(made).items()) for p in ("delta", "control")}
        state = strategy.step(state, mean, CohortInfo(4, (0.25,) * 4, ({},) * 4))
    for name, problem in made.items():
        assert distance(memory[name]["control"], problem.gradient(optimum(made))) < 1e-10
    assert distance(state["control"], np.zeros(5)) < 1e-10


def test_15_other_weights_for_the_control_lead_to_another_optimum() -> None:
    """The trap of NIID-Bench, planted: model weighted by rows, control uniform, ends at the uniform optimum."""
    made, uniform = problems(steps=STEPS), dict.fromkeys(problems(), 0.25)
    wrong = desk(Scaffold(), made, 4000, part_weights={"control": uniform})[-1]
    assert distance(wrong, optimum(made, uniform)) < 1e-10
    assert distance(wrong, optimum(made)) > 0.1


class DividesBySteps(Scaffold, frozen=True):
    """Algorithm 1 as printed: right for plain SGD only."""

    def report(self, run: LocalRun) -> Report:
        run.path = run.num_steps * run.lr
        return super().report(run)


def test_16_with_momentum_the_path_is_the_divisor() -> None:
    made = problems(steps=10, momentum=0.9, lr=0.01)
    assert distance(desk(Scaffold(), made, 3000)[-1], optimum(made)) < 1e-11
    with np.errstate(all="ignore"):
        wrong = desk(DividesBySteps(), made, 60)
    assert distance(wrong[-1], optimum(made)) > 1e3, "K lr as the divisor diverges"


def test_17_the_first_round_is_fedavgs_to_the_bit() -> None:
    made = problems(steps=STEPS)
    assert desk(Scaffold(), made, 1)[-1].tobytes() == desk(FedAvg(), made, 1)[-1].tobytes()


def test_17_option_two_is_the_mean_of_the_raw_gradients() -> None:
    problem, seen = replace(problems()["s1"], steps=7), []

    class Remembers(Scaffold, frozen=True):
        def direction(self, run: LocalRun, grad_at: Any) -> Any:
            seen.append(grad_at(run.params))
            return super().direction(run, grad_at)

    memory = Zeros(5)
    memory["control"] = np.full(5, 0.3)
    run = LocalRun(np.zeros(5), np.zeros(5), {"control": np.full(5, -0.2)}, memory)
    descend(Remembers(), problem, run)
    assert distance(memory["control"], np.mean(seen, axis=0)) < 1e-12


def test_scaffold_without_a_step_keeps_its_control() -> None:
    memory = Zeros(2)
    memory["control"] = np.ones(2)
    run = LocalRun(np.ones(2), np.ones(2), {"control": np.full(2, 5.0)}, memory)
    assert Scaffold().report(run).parts["control"].tolist() == [0, 0]


def test_scaffold_moves_its_control_by_the_share_that_took_part() -> None:
    state = Scaffold().init({"params": np.zeros(1)})
    mean = {"delta": np.zeros(1), "control": np.ones(1)}
    assert Scaffold().step(state, mean, CohortInfo(8, (0.5, 0.5), ({}, {})))["control"].tolist() == [0.25]


# FedProx


def test_18_without_a_pull_it_is_fedavg_to_the_bit() -> None:
    made = problems(steps=STEPS)
    assert desk(FedProx(mu=0), made, 20)[-1].tobytes() == desk(FedAvg(), made, 20)[-1].tobytes()


@pytest.mark.parametrize("mu", [0.1, 2.0])
def test_18_the_local_limit(mu: float) -> None:
    """Many steps end at ``(A + mu I)^-1 (A b + mu anchor)``."""
    problem, anchor = replace(problems()["s1"], steps=2000), np.full(5, 0.7)
    run = LocalRun(anchor.copy(), anchor, {}, Zeros(5))
    descend(FedProx(mu=mu), problem, run)
    limit = np.linalg.solve(problem.a + mu * np.eye(5), problem.a @ problem.b + mu * anchor)
    assert distance(anchor + run.params, limit) < 1e-12  # report() has made params the delta


def test_18_a_strong_pull_leaves_nothing_to_send() -> None:
    """The delta of a full local solve from 0 is ``(A + mu I)^-1 A b``: at most ``|A b| / mu``."""
    problem = problems()["s1"]
    pull = np.linalg.norm(problem.a @ problem.b)
    for mu in (1e1, 1e3, 1e5):
        run = LocalRun(np.zeros(5), np.zeros(5), {}, Zeros(5))
        delta = descend(FedProx(mu=mu), replace(problem, steps=300, lr=1 / (mu + 3)), run).parts["delta"]
        assert 0.5 * pull / (mu + 3) < np.linalg.norm(delta) <= pull / mu


# All of them


@pytest.mark.parametrize("strategy", ALL, ids=lambda each: each.name)
def test_the_state_that_is_passed_in_stays_as_it_is(strategy: Any) -> None:
    state = strategy.init({"params": np.arange(3, dtype=np.float32)})
    before = {name: part.tobytes() for name, part in state.items()}
    mean = {name: np.ones(size, np.float32) for name, size in strategy.layout(state).items()}
    after = strategy.step(state, mean, CohortInfo(2, (0.5, 0.5), ({"path": 1.0, "exact": 1.0},) * 2))
    assert {name: part.tobytes() for name, part in state.items()} == before
    assert after.keys() == state.keys() and {part.dtype for part in after.values()} == {np.dtype(np.float32)}
    assert set(strategy.broadcast(state)) <= set(state)


@pytest.mark.parametrize("strategy", ALL, ids=lambda each: each.name)
def test_a_report_has_the_parts_of_the_layout(strategy: Any) -> None:
    state = strategy.init({"params": np.zeros(5, np.float32)})
    received = strategy.broadcast(state)
    run = LocalRun(np.zeros(5, np.float32), received["params"], received, Zeros(5))
    report = descend(strategy, problems()["s0"], run)
    assert {name: part.size for name, part in report.parts.items()} == strategy.layout(state)
    assert list(report.parts) == list(strategy.layout(state)), "in the order of the packed vector"
