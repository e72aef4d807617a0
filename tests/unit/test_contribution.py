"""What silos are worth (notes, oracle 45), and the models of coalitions."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from orchestrator.contribution import Coalition, Rule, exact_shapley, leave_one_out, sampled_shapley
from orchestrator.core.events import Worth
from orchestrator.shares import Shares, without_shares

Utility = Callable[[Coalition], float]


def played(rule: Rule, utility: Utility, asked: list[Coalition] | None = None) -> dict[str, Worth]:
    coalition = next(rule)
    while True:
        if asked is not None:
            asked.append(coalition)
        try:
            coalition = rule.send(utility(coalition))
        except StopIteration as end:
            return {each.silo: each for each in end.value}


def values(rule: Rule, utility: Utility) -> dict[str, float]:
    return {silo: each.value for silo, each in played(rule, utility).items()}


def game(players: str, seed: int = 0) -> Utility:
    rng = np.random.default_rng(seed)
    table = {
        frozenset(s): float(rng.normal()) for k in range(len(players) + 1) for s in combinations(players, k)
    }
    return table.__getitem__


@pytest.mark.parametrize("seed", range(3))
def test_shapley_values_add_up_to_all_that_was_gained(seed: int) -> None:
    utility = game("abcdef", seed)
    found = values(exact_shapley("abcdef"), utility)
    assert sum(found.values()) == pytest.approx(
        utility(frozenset("abcdef")) - utility(frozenset()), abs=1e-14
    )


def test_equal_silos_have_equal_values_and_one_who_adds_nothing_has_none() -> None:
    def utility(coalition: Coalition) -> float:
        pair = len(coalition & {"a", "b"})
        return pair**2 + 3.0 * ("c" in coalition) * pair

    found = values(exact_shapley("abcd"), utility)
    assert found["a"] == pytest.approx(found["b"], abs=4e-15)
    assert found["d"] == pytest.approx(0, abs=4e-15)


def test_in_an_additive_game_each_has_its_own_value() -> None:
    worth = {"a": 0.5, "b": -1.0, "c": 2.0}

    def utility(coalition: Coalition) -> float:
        return sum(worth[silo] for silo in coalition)

    assert values(exact_shapley("abc"), utility) == pytest.approx(worth)
    assert values(leave_one_out("abc"), utility) == pytest.approx(worth)
    assert values(sampled_shapley("abc", 0, 6), utility) == pytest.approx(worth, abs=0.02)


def test_a_silo_with_a_double_is_worth_nothing_when_left_out() -> None:
    """What counts is which rows are covered; ``b`` has those of ``a``."""
    rows = {"a": {1, 2, 3}, "b": {1, 2, 3}, "c": {4}}

    def utility(coalition: Coalition) -> float:
        return float(len(set().union(*(rows[silo] for silo in coalition))))

    assert values(leave_one_out("abc"), utility) == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert values(exact_shapley("abc"), utility) == pytest.approx({"a": 1.5, "b": 1.5, "c": 1.0})


def test_samples_estimate_the_exact_values_within_their_errors() -> None:
    players = "abcdefghij"
    strength = {silo: 1.0 + i for i, silo in enumerate(players)}

    def utility(coalition: Coalition) -> float:
        return float(np.sqrt(sum(strength[silo] for silo in coalition)))

    exact, sampled = (
        values(exact_shapley(players), utility),
        played(sampled_shapley(players, 3, 300), utility),
    )
    for silo, each in sampled.items():
        assert each.error > 0
        assert abs(each.value - exact[silo]) < 4 * each.error + 0.01 * utility(frozenset(players))
    assert played(sampled_shapley(players, 3, 10), utility) == played(
        sampled_shapley(players, 3, 10), utility
    )
    assert played(sampled_shapley(players, 4, 10), utility) != played(
        sampled_shapley(players, 3, 10), utility
    )


def test_an_order_ends_where_nothing_is_left_to_gain_and_no_coalition_is_asked_for_twice() -> None:
    asked: list[Coalition] = []
    played(sampled_shapley("abcdefghij", 0, 10), lambda coalition: float(bool(coalition)), asked)
    assert len(asked) == 2 + 10 and len(set(asked)) == len(asked)
    everything: list[Coalition] = []
    played(exact_shapley("abcd"), game("abcd"), everything)
    assert len(everything) == len(set(everything)) == 16


def test_all_silos_together_are_the_model_and_nobody_is_the_initial_one() -> None:
    """Rounds with a server rate, unequal weights, other parts in the packet, and buffers behind them."""
    rng, shares = np.random.default_rng(0), Shares(("a", "b", "c"))
    state = {
        "params": rng.normal(size=6).astype(np.float32),
        "buffers": rng.normal(size=2).astype(np.float32),
    }
    shares.begin(state)
    first, layout = state, {"delta": 6, "control": 6, "buffers": 2}
    for rate in (1.0, 0.5, 2.0):
        terms = shares.room(3, 14)
        weights = rng.dirichlet(np.ones(3))
        for term, weight in zip(terms, weights, strict=True):
            term[:] = weight * rng.normal(size=14)
        mean = sum(terms)
        after = {
            "params": state["params"] + np.float32(rate) * mean[:6],
            "buffers": state["buffers"] + mean[12:],
        }
        shares.add(["a", "b", "c"], list(weights), state, after, layout)
        state = after
    whole, nobody = shares.model({"a", "b", "c"}, 6), shares.model((), 6)
    np.testing.assert_allclose(whole["params"], state["params"], atol=2e-6)
    np.testing.assert_allclose(whole["buffers"], state["buffers"], atol=2e-6)
    assert nobody["params"].tobytes() == first["params"].tobytes()
    assert shares.unexplained(state) < 1e-6
    one = shares.model({"b"}, 6)["params"]
    weight = shares.weights[1] / shares.weights.sum()
    np.testing.assert_allclose(one, first["params"] + shares.sums["b"][:6] / weight, rtol=1e-5)


def test_what_momentum_added_is_not_explained() -> None:
    shares, state = Shares(("a",)), {"params": np.zeros(2, np.float32)}
    shares.begin(state)
    shares.room(1, 2)[0][:] = (1.0, 0.0)
    after = {"params": np.array([1.0, 1.0], np.float32)}
    shares.add(["a"], [1.0], state, after, {"delta": 2})
    assert shares.unexplained(after) == pytest.approx(1 / np.sqrt(2))


def test_a_checkpoint_brings_the_sums_back() -> None:
    shares = Shares(("a", "b"))
    shares.begin({"params": np.ones(3, np.float32)})
    shares.sums["b"] += 2
    shares.weights += (1, 3)
    state = {"params": np.zeros(3, np.float32), **shares.vectors()}
    again = Shares(("a", "b"))
    again.restore(state)
    assert again.model({"b"}, 3)["params"].tobytes() == shares.model({"b"}, 3)["params"].tobytes()
    assert set(without_shares(state)) == {"params"}
