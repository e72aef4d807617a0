"""Server optimizers against closed forms and torch (oracles 7, 8, 10). float64 vectors, so that only the
float32 constants (learning rate, tau) are rounded: hence 1e-7 where they are no short binary numbers."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.strategies.server import Adagrad, Adam, Sgd, Yogi

TAU = 1e-3


def deltas(count: int, size: int = 6, dtype: type = np.float64) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((count, size)).astype(dtype))


def applied(server: Any, given: list[np.ndarray]) -> list[np.ndarray]:
    """Parameters after each delta."""
    state = {"params": np.zeros_like(given[0]), **server.init(np.zeros_like(given[0]))}
    path = []
    for delta in given:
        before = {name: part.copy() for name, part in state.items()}
        new = server.apply(state, delta.copy())
        assert all(np.array_equal(state[name], before[name]) for name in before), (
            "the old state must stay as it is"
        )
        state = {**state, **new}
        path.append(state["params"])
    return path


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_sgd_on_the_negative_delta(momentum: float, nesterov: bool) -> None:
    given, server = deltas(20), Sgd(lr=0.75, momentum=momentum, nesterov=nesterov)
    param = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.SGD([param], lr=0.75, momentum=momentum, nesterov=nesterov and momentum > 0)
    for delta, ours in zip(given, applied(server, given), strict=True):
        param.grad = -torch.from_numpy(delta)
        theirs.step()
        np.testing.assert_allclose(ours, param.detach().numpy(), rtol=1e-13, atol=1e-13)


def test_fedavgm_is_the_heavy_ball() -> None:
    """``x_{t+1} = x_t + lr d_t + beta (x_t - x_{t-1})`` over 50 steps."""
    given, beta = deltas(50), 0.9
    path = [np.zeros(6), *applied(Sgd(lr=0.5, momentum=beta), given)]
    for t in range(1, 50):
        np.testing.assert_allclose(
            path[t + 1], path[t] + 0.5 * given[t] + beta * (path[t] - path[t - 1]), atol=1e-12
        )


def test_without_momentum_and_with_rate_one_the_delta_is_added_to_the_bit() -> None:
    given = deltas(1, dtype=np.float32)
    assert applied(Sgd(), given)[0].tobytes() == given[0].tobytes()
    assert applied(Sgd(nesterov=True), given)[0].tobytes() == given[0].tobytes()


def test_one_step_of_fedadam_from_v_at_tau_squared() -> None:
    """``lr (1 - beta1) D / (sqrt((1 - beta2) D^2 + beta2 tau^2) + tau)``: Reddi et al., algorithm 2."""
    (delta,) = deltas(1)
    expected = 0.25 * 0.1 * delta / (np.sqrt(0.01 * delta**2 + 0.99 * TAU**2) + TAU)
    (ours,) = applied(Adam(lr=0.25, tau=TAU, initial_v=TAU**2), [delta])
    np.testing.assert_allclose(ours, expected, rtol=1e-7)


def test_fedadam_is_not_torchs_adam() -> None:
    """No bias correction: the first step is shorter by ``(1 - beta1) / sqrt(1 - beta2)``, here 0.1 / 0.1 = 1 at
    beta2 .99 and 3.16 at .999, in the limit of small tau."""
    (delta,) = deltas(1)
    (ours,) = applied(Adam(lr=0.25, beta2=0.999, tau=1e-9), [delta])
    np.testing.assert_allclose(np.abs(ours), 0.25 * 0.1 / np.sqrt(0.001), rtol=1e-6)


def test_adagrad_after_equal_deltas() -> None:
    """With beta1 = 0 the t-th step is ``lr D / (sqrt(v0 + t D^2) + tau)``."""
    (delta,) = deltas(1)
    path = applied(Adagrad(lr=0.25, beta1=0.0, tau=TAU, initial_v=0.5), [delta] * 8)
    steps = [0.25 * delta / (np.sqrt(0.5 + t * delta**2) + TAU) for t in range(1, 9)]
    np.testing.assert_allclose(path[-1], np.sum(steps, axis=0), rtol=1e-7)


@pytest.mark.parametrize(("v", "moves"), [(4.0, -1), (0.25, +1), (1.0, 0)])
def test_yogi_moves_v_by_the_sign(v: float, moves: int) -> None:
    """``v - (1 - beta2) D^2 sign(v - D^2)`` with D = 1: by a fixed amount, where Adam's is proportional."""
    one = np.ones(1)
    assert Yogi().second_moment(np.array([v]), one)[0] == pytest.approx(v + moves * 0.01)
    assert Adam().second_moment(np.array([v]), one)[0] == pytest.approx(0.99 * v + 0.01)


@pytest.mark.parametrize("server", [Adagrad(), Adam(), Yogi()])
def test_a_zero_update_leaves_the_weights(server: Any) -> None:
    zero = np.zeros(4, np.float32)
    state = {"params": np.arange(4, dtype=np.float32), **server.init(zero)}
    moved = server.apply(state, zero.copy())
    assert moved["params"].tolist() == [0, 1, 2, 3] and all(
        np.isfinite(part).all() for part in moved.values()
    )


@pytest.mark.parametrize(
    "server", [Sgd(momentum=0.9), Sgd(momentum=0.9, nesterov=True), Adagrad(), Adam(), Yogi(), Sgd(lr=0.5)]
)
def test_everything_stays_float32(server: Any) -> None:
    state = {"params": np.ones(4, np.float32), **server.init(np.ones(4, np.float32))}
    moved = server.apply(state, np.full(4, 0.1, np.float32))
    assert {part.dtype for part in moved.values()} == {np.dtype(np.float32)}
    assert moved.keys() == state.keys()
