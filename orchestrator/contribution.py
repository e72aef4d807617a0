"""What each silo's updates are worth, from the utility of coalitions. Pure: each rule asks for one coalition after the
other, and is sent their utilities (larger is better).

Shapley (1953): a silo's mean gain over all orders in which the silos could have come. Exact for a few silos; sampled
with truncation beyond (GTG-Shapley's within-round part, Liu et al. 2022, arXiv 2109.02053): each silo comes first
equally often, and an order ends where what is left to gain is negligible.
"""

import math
from collections.abc import Generator, Sequence
from itertools import combinations
from statistics import fmean, stdev

from orchestrator.core.events import Worth
from orchestrator.core.random import rng_of

Coalition = frozenset[str]
Rule = Generator[Coalition, float, list[Worth]]

NEGLIGIBLE = 0.01
"""Share of all that there is to gain at which an order is cut off."""


def leave_one_out(players: Sequence[str]) -> Rule:
    """What all have more than all others have. A silo with a double is worth nothing by it."""
    everyone = frozenset(players)
    whole = yield everyone
    worths = []
    for player in players:
        worths.append(Worth(silo=player, value=whole - (yield everyone - {player})))
    return worths


def exact_shapley(players: Sequence[str]) -> Rule:
    """From all coalitions: 2^N."""
    utility: dict[Coalition, float] = {}
    for size in range(len(players) + 1):
        for members in combinations(players, size):
            utility[frozenset(members)] = yield frozenset(members)
    count = len(players)
    weight = [math.factorial(k) * math.factorial(count - 1 - k) / math.factorial(count) for k in range(count)]
    return [
        Worth(
            silo=player,
            value=math.fsum(
                weight[len(others)] * (utility[others | {player}] - value)
                for others, value in utility.items()
                if player not in others
            ),
        )
        for player in players
    ]


def sampled_shapley(players: Sequence[str], seed: int, orders: int) -> Rule:
    """From so many orders, with the standard error of the mean."""
    everyone: Coalition = frozenset(players)
    known: dict[Coalition, float] = {}
    for ends in (everyone, frozenset[str]()):
        known[ends] = yield ends
    whole, enough = known[everyone], NEGLIGIBLE * abs(known[everyone] - known[frozenset()])
    gains: dict[str, list[float]] = {player: [] for player in players}
    for number in range(orders):
        come: Coalition = frozenset()
        before = known[come]
        for player in _order(players, seed, number):
            come = come | {player}
            if abs(whole - before) <= enough:
                gains[player].append(0.0)
                continue
            if come not in known:
                known[come] = yield come
            gains[player].append(known[come] - before)
            before = known[come]
    return [
        Worth(
            silo=player, value=fmean(each), error=stdev(each) / math.sqrt(len(each)) if len(each) > 1 else 0.0
        )
        for player, each in gains.items()
    ]


def _order(players: Sequence[str], seed: int, number: int) -> list[str]:
    first = players[number % len(players)]
    rest = [player for player in players if player != first]
    drawn = rng_of(seed, "contribution", number).permutation(len(rest))
    return [first, *(rest[i] for i in drawn)]
