"""How much privacy is spent: epsilon of many Gaussian queries on the same data, composed by dp-accounting.

Neighbours: the data with and without one unit's contribution (a record, a patient, a silo). The figure is that of
privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022, "Connect the Dots"), and of the closed form
where nothing is sampled; Rényi's (Mironov 2017) is a cross-check beside it, and never below.
"""

import importlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from orchestrator.core.errors import BadInput, BadJob

FINEST = 1e-4
"""Step in which losses are counted where epsilon is from 1 to 10; finer below, coarser above."""

ROUGH = 8
"""Times the step, where a figure is only looked for."""

HOPELESS = 1e4
"""Where Rényi's bound says as much, nothing tighter is looked for."""

LOUDEST = 1e6
"""No larger noise multiplier is looked for."""


class Query(NamedTuple):
    """So many steps of a Gaussian query of sensitivity 1."""

    q: float
    """Probability with which a unit is in a step (Poisson sampling); 1: always."""
    sigma: float
    """Standard deviation of the noise over the sensitivity: the noise multiplier."""
    steps: int


def epsilon(queries: Iterable[Query], delta: float) -> float:
    """Epsilon of all queries together at this delta; infinite where one has no noise. Raises ValueError for numbers
    that mean nothing, and `BadInput` where dp-accounting is missing."""
    return _epsilon(_collapsed(queries), _checked(delta))


def epsilon_rdp(queries: Iterable[Query], delta: float) -> float:
    """The same by Rényi differential privacy: an upper bound, looser by a tenth or so."""
    return _epsilon_rdp(_collapsed(queries), _checked(delta))


def calibrated(epsilon: float, delta: float, q: float, steps: int, before: Sequence[Query] = ()) -> float:
    """The smallest noise multiplier, rounded up to 1e-4, with which ``steps`` such queries after those ``before``
    stay within ``epsilon``. Raises `BadJob` where none does."""
    spent = _epsilon(_collapsed(before), _checked(delta))
    if spent >= epsilon:
        raise BadJob(
            f"privacy: no noise keeps epsilon within {epsilon:g} at delta {delta:g}: {spent:.4g} is spent before"
        )

    def over(log_sigma: float, spend: Any = _roughly) -> float:
        found: float = spend(_collapsed([*before, Query(q, math.exp(log_sigma), steps)]), delta)
        return min(found, HOPELESS) - epsilon

    low, high = _bracket(over, epsilon, delta)
    root = _root(over, low, high, 1e-5)
    slope = (over(root + 0.01) - over(root)) / 0.01
    for _ in range(4):  # from the rough figure's root to the other's
        root -= (step := over(root, _epsilon) / slope)
        if abs(step) < 1e-5:
            break
    sigma = math.ceil(math.exp(root) * 1e4) / 1e4
    while over(math.log(sigma), _epsilon) > 0:
        sigma = round(sigma + 1e-4, 4)
    return sigma


def _bracket(over: Any, epsilon: float, delta: float) -> tuple[float, float]:
    """Logarithms of two multipliers: with one the budget is overspent, with the other it is not. A bound that costs
    next to nothing finds the latter."""

    def over_bound(log_sigma: float) -> float:
        found: float = over(log_sigma, _bound)
        return found

    loudest, measure = math.log(LOUDEST), over_bound
    if over_bound(loudest) > 0:  # of what was asked before the bound may be too much, and the loss itself not
        if over(loudest) > 0:
            raise BadJob(
                f"privacy: no noise multiplier up to {LOUDEST:g} keeps epsilon within {epsilon:g} at delta {delta:g}"
            )
        measure = over
    high = 0.0
    while measure(high) > 0:
        high += math.log(2)
    low = high - math.log(2)
    while measure(low) <= 0:
        low, high = low - math.log(2), low
    high = min(high, _root(measure, low, high, 0.01) + 0.02)
    low = high - 0.2
    while over(low) <= 0:
        low, high = low - 0.2, low
    return low, high


def _root(function: Any, low: float, high: float, xtol: float) -> float:
    return float(importlib.import_module("scipy.optimize").brentq(function, low, high, xtol=xtol))


def _collapsed(queries: Iterable[Query]) -> tuple[Query, ...]:
    """Equal queries in one, and all that see every unit in one Gaussian of the same loss: the cost is that of the
    different ones."""
    times: Counter[tuple[float, float]] = Counter()
    whole = 0.0
    for query in queries:
        q, sigma, steps = _checked_query(query)
        if q == 1 and sigma > 0:
            whole += steps / sigma**2
        elif q > 0:
            times[q, sigma] += steps
    rows = [Query(q, sigma, steps) for (q, sigma), steps in sorted(times.items()) if steps]
    return (*rows, Query(1.0, whole**-0.5, 1)) if whole else tuple(rows)


def _checked_query(query: Query) -> Query:
    if not (0 <= query.q <= 1 and 0 <= query.sigma < math.inf and query.steps >= 0):
        raise ValueError(f"{query} is no query")
    return query


def _checked(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    return delta


def _bound(queries: tuple[Query, ...], delta: float) -> float:
    return _of_gaussian(queries[0].sigma, delta) if _exact(queries) else _epsilon_rdp(queries, delta)


def _exact(queries: tuple[Query, ...]) -> bool:
    """Whether this is one Gaussian that sees every unit."""
    return len(queries) == 1 and queries[0].q == queries[0].steps == 1 and queries[0].sigma > 0


@lru_cache(maxsize=1 << 14)
def _of_gaussian(sigma: float, delta: float) -> float:
    """The closed form (Balle and Wang 2018, arXiv 1805.06530, theorem 8): what the loss distributions come to, without
    their package and at once."""
    log_cdf = importlib.import_module("scipy.special").log_ndtr

    def too_likely(epsilon: float) -> float:
        a, b = 1 / (2 * sigma), epsilon * sigma
        return float(math.exp(log_cdf(a - b)) - math.exp(epsilon + log_cdf(-a - b)) - delta)

    if too_likely(0.0) <= 0:
        return 0.0
    high = 1.0
    while too_likely(high) > 0:
        high *= 2
        if high > HOPELESS:
            return math.inf
    return _root(too_likely, 0.0, high, 1e-9)


def _roughly(queries: tuple[Query, ...], delta: float) -> float:
    """At a tenth of the price, and too high: by one part in ten thousand, or by ten in a hundred where many steps lose
    very little each."""
    return _epsilon(queries, delta, ROUGH)


@lru_cache(maxsize=1 << 14)
def _epsilon(queries: tuple[Query, ...], delta: float, coarser: int = 1) -> float:
    if _exact(queries):
        return _of_gaussian(queries[0].sigma, delta)
    bound = _epsilon_rdp(queries, delta)
    if not 0 < bound < HOPELESS:
        return bound
    width = FINEST * (max(0.1, min(1.0, bound)) if bound < 10 else bound / 10)
    width = 2.0 ** math.floor(math.log2(width)) if coarser == 1 else coarser * width
    losses = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    composed = losses.identity(value_discretization_interval=width)
    for query in queries:
        one = _losses(query.q, query.sigma, width)
        composed = composed.compose(one.self_compose(query.steps) if query.steps > 1 else one)
    return min(float(composed.get_epsilon_for_delta(delta)), bound)


@lru_cache(maxsize=32)
def _losses(q: float, sigma: float, width: float) -> Any:
    """Of one step. It takes most of the time, and every round of a job asks for the same, hence the few widths."""
    losses = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    return losses.from_gaussian_mechanism(sigma, value_discretization_interval=width, sampling_prob=q)


@lru_cache(maxsize=1 << 14)
def _epsilon_rdp(queries: tuple[Query, ...], delta: float) -> float:
    if not queries:
        return 0.0
    if any(query.sigma == 0 for query in queries):
        return math.inf
    accounting = _accounting()
    accountant = accounting.rdp.RdpAccountant()
    for query in queries:
        event = accounting.PoissonSampledDpEvent(query.q, accounting.GaussianDpEvent(query.sigma))
        accountant.compose(event, query.steps)
    # of a small sampled loss an order may come out as a rounding error; where it is below zero, dp-accounting makes
    # epsilon 0 of it
    sampled = sum(query.steps for query in queries if query.q < 1)
    floor = max(1e-9, 1e-13 * sampled) if sampled else 0.0
    reliable = [loss if loss > floor else math.inf for loss in accountant._rdp]
    found = float(accounting.rdp.compute_epsilon(accountant._orders, reliable, delta)[0])
    return math.inf if math.isnan(found) else found


@cache
def _accounting() -> Any:
    """Takes more than a second, and most commands have no use for it."""
    try:
        accounting = importlib.import_module("dp_accounting")
    except ModuleNotFoundError:
        remedy = "privacy: this machine has no dp-accounting; pip install 'siloray[dp]'"
        raise BadInput(remedy, remedy) from None
    # of orders that do not converge: they are left out, and the bound is that of the others
    logging.getLogger("absl").addFilter(lambda record: "_compute_log_a" not in record.getMessage())
    return accounting
