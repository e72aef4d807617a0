"""Epsilon against published and recomputed tables, the closed form where there is one, and what must always hold."""

import math
import subprocess
import sys

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from orchestrator.core.errors import BadInput, BadJob
from orchestrator.privacy.accountant import Query, calibrated, epsilon, epsilon_rdp

MNIST = 256 / 60_000
TABLE = [
    # query, delta, RDP, PLD; Opacus' RDP and PRV where it was asked
    (Query(0.01, 4.0, 10_000), 1e-5, 1.0355, 0.9470, 1.0355, 0.9569),
    (Query(MNIST, 1.3, 3515), 1e-5, 0.9544, 0.8645, None, None),
    (Query(MNIST, 1.1, 14_062), 1e-5, 2.5966, 2.3817, 2.5966, 2.3917),
    (Query(MNIST, 0.7, 10_546), 1e-5, 6.3195, 5.6394, 6.3181, 5.6498),
    (Query(64 / 2000, 1.0, 625), 1e-5, 5.7133, 5.1534, 5.7130, 5.1637),
    (Query(1.0, 1.0, 1), 1e-5, 4.7285, 4.3772, 4.7285, 4.3874),
    (Query(1.0, 10.0, 50), 1e-5, 3.1890, 2.943226, 3.1890, 2.9534),
    (Query(1.0, 4.0, 10), 1e-5, 3.6171, 3.3414, 3.6171, 3.3516),
    (Query(1.0, 10.0, 100), 1e-5, 4.7285, 4.3772, 4.7285, 4.3874),
    (Query(0.05, 1.0, 1500), 1e-6, 16.5719, 15.3588, 16.5002, 15.3694),
    (Query(4 / 199, 1.0, 1500), 1e-3, 3.8713, 3.3653, 3.8706, 3.3757),
    (Query(4 / 30, 1.0, 1500), 1e-3, 49.748, 38.9438, None, 38.9559),
]


@pytest.mark.parametrize(("query", "delta", "rdp", "pld", "opacus_rdp", "opacus_prv"), TABLE)
def test_the_tables(
    query: Query, delta: float, rdp: float, pld: float, opacus_rdp: float | None, opacus_prv: float | None
) -> None:
    assert epsilon(iter([query]), delta) == pytest.approx(pld, abs=1e-3)
    assert epsilon_rdp([query], delta) == pytest.approx(rdp, abs=1e-3)
    if opacus_rdp is not None:
        assert epsilon_rdp([query], delta) == pytest.approx(opacus_rdp, abs=1e-2, rel=5e-3)
    if opacus_prv is not None:  # it adds 0.01 for its own error
        assert opacus_prv - 0.015 < epsilon([query], delta) < opacus_prv


@pytest.mark.parametrize("sigma", [1.0, 10 / math.sqrt(50), 5.0, 0.5])
def test_without_sampling_the_closed_form_is_known(sigma: float) -> None:
    """Balle and Wang 2018, theorem 8; and dp-accounting comes to it."""

    def missing(eps: float) -> float:
        a, b = 1 / (2 * sigma), eps * sigma
        return float(norm.cdf(a - b) - math.exp(eps + norm.logcdf(-a - b)) - 1e-5)

    exact = brentq(missing, 0, 50, xtol=1e-10)
    assert epsilon([Query(1.0, sigma, 1)], 1e-5) == pytest.approx(exact, abs=2e-5)
    assert epsilon([Query(1.0, 2 * sigma, 3), Query(1.0, 2 * sigma, 1)], 1e-5) == pytest.approx(
        exact, abs=2e-5
    )
    composed = from_gaussian_mechanism(sigma, value_discretization_interval=1e-4)
    assert composed.get_epsilon_for_delta(1e-5) == pytest.approx(exact, abs=2e-5)


def test_of_different_queries() -> None:
    rows = [Query(64 / 2000, 1.0, 20)] * 3 + [Query(128 / 2000, 1.5, 40)]
    assert epsilon(rows, 1e-5) == pytest.approx(2.238, abs=1e-3)
    assert epsilon(rows[::-1], 1e-5) == epsilon(rows, 1e-5)
    assert epsilon([Query(64 / 2000, 1.0, 60), rows[3]], 1e-5) == epsilon(rows, 1e-5)
    # two Gaussians that see everybody are one: 1 / 2^2 + 1 / 1^2 = 1 / 0.8944^2
    pair = [Query(1.0, 2.0, 1), Query(1.0, 1.0, 1), *rows]
    assert epsilon(pair, 1e-5) == pytest.approx(epsilon([Query(1.0, 0.8**0.5, 1), *rows], 1e-5), abs=1e-9)


rows = st.builds(
    Query, st.sampled_from([1e-3, 0.02, 0.3, 1.0]), st.floats(0.5, 30), st.sampled_from([1, 30, 1000])
)


@settings(max_examples=4, deadline=None)
@given(st.lists(rows, min_size=1, max_size=2), rows, st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_what_always_holds(queries: list[Query], one: Query, delta: float) -> None:
    spent = epsilon(queries, delta)
    assert 0 <= spent <= epsilon_rdp(queries, delta)
    assert epsilon([*queries, one], delta) >= spent * (1 - 1e-3)


@pytest.mark.parametrize("sigma, expected", [(3.9, 0.2765), (20.0, 0.0454)])
def test_many_steps_that_each_lose_next_to_nothing(sigma: float, expected: float) -> None:
    query = Query(0.001, sigma, 100_000)
    assert epsilon([query], 1e-5) == pytest.approx(expected, rel=1e-2)
    assert epsilon([query], 1e-5) < epsilon_rdp([query], 1e-5) < 1.3 * expected


def test_nothing_asked_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], 1e-5) == epsilon([Query(0.0, 1.0, 10), Query(0.5, 1.0, 0)], 1e-5) == 0
    assert epsilon([Query(0.5, 0.0, 1)], 1e-5) == epsilon_rdp([Query(1.0, 0.0, 1)], 1e-5) == math.inf
    assert epsilon([Query(1.0, 1e-3, 1000)], 1e-5) == math.inf
    assert epsilon([Query(1.0, 1e6, 1)], 1e-5) == 0


@pytest.mark.parametrize(
    "query",
    [Query(1.1, 1, 1), Query(-0.1, 1, 1), Query(0.1, math.nan, 1), Query(0.1, -1.0, 1), Query(1, 1, -1)],
)
def test_what_is_no_query(query: Query) -> None:
    with pytest.raises(ValueError, match="no query"):
        epsilon([query], 1e-5)
    with pytest.raises(ValueError, match="delta"):
        epsilon([], 0.0)


def test_noise_for_a_target() -> None:
    small = Query(64 / 2000, 1.3605, 625)
    assert calibrated(3, 1e-5, small.q, small.steps) == pytest.approx(1.3605, abs=1.5e-4)
    before = [Query(64 / 2000, 2.0, 20)]
    sigma = calibrated(2, 1e-5, small.q, 20, before)
    assert 1.99 < epsilon([*before, Query(small.q, sigma, 20)], 1e-5) <= 2
    assert calibrated(4.377178, 1e-5, 1, 1) == pytest.approx(1.0, abs=2e-4)
    for target in (0.01, 200.0):
        assert epsilon([Query(1, calibrated(target, 1e-5, 1, 3), 3)], 1e-5) == pytest.approx(target, rel=1e-2)


def test_where_no_noise_is_enough() -> None:
    before = [Query(64 / 2000, 1.0, 625)]
    with pytest.raises(
        BadJob, match=r"no noise keeps epsilon within 5 at delta 1e-05: 5\.153 is spent before"
    ):
        calibrated(5, 1e-5, 0.01, 10, before)
    with pytest.raises(BadJob, match="no noise multiplier up to 1e\\+06"):
        calibrated(1e-9, 1e-12, 1, 10**9)


def test_a_missing_package_is_named_and_not_imported_in_vain() -> None:
    script = (
        "import sys, orchestrator.job, orchestrator.privacy.accountant as accountant\n"
        "assert not any('dp_accounting' in name or name.startswith('scipy') for name in sys.modules)\n"
        "sys.modules['dp_accounting'] = None\n"
        "try:\n    accountant.epsilon([accountant.Query(.5, 1, 1)], 1e-5)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert (
        said == f"{BadInput.__name__} privacy: this machine has no dp-accounting; pip install 'siloray[dp]'\n"
    )
