"""The round machine under thousands of random policies and misbehaving silos (DESIGN section 5)."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.rounds import RoundPolicy
from tests.property.simulation import Simulation, World


@st.composite
def policies(draw: Any) -> tuple[RoundPolicy, int]:
    """A policy and a number of silos that it fits."""
    num_silos = draw(st.integers(1, 8))
    cohort = draw(st.integers(1, num_silos))
    buffer = draw(st.integers(1, cohort))
    fewest = draw(st.integers(1, buffer))
    required = draw(st.sets(st.integers(0, num_silos - 1), max_size=min(cohort, 2)))
    policy = RoundPolicy(
        cohort_size=cohort,
        buffer_size=buffer,
        min_updates=fewest,
        min_silos=draw(st.integers(1, fewest)),
        max_staleness=draw(st.sampled_from([0, 0, 1, 3, 20])),
        grace=draw(st.sampled_from([0.0, 0.0, 0.25, 2.0])),
        deadline_s=draw(st.none() | st.floats(0.5, 30)),
        hand_in_s=draw(st.sampled_from([None, 0.5, 5.0])),
        max_attempts=draw(st.integers(1, 3)),
        required=frozenset(f"s{i:02d}" for i in required),
    )
    return policy, num_silos


shares = st.sampled_from([0.0, 0.05, 0.2])


@settings(max_examples=400, deadline=None)
@given(
    policies(),
    st.fixed_dictionaries(
        dict.fromkeys(("lost", "refused", "declined", "twice", "perished", "left"), shares)
    ),
    st.integers(0, 2**20),
    st.booleans(),
)
def test_no_promise_is_broken(
    case: tuple[RoundPolicy, int], faults: dict[str, float], seed: int, gone: bool
) -> None:
    policy, num_silos = case
    world = World(num_silos, **faults, gone=frozenset(["s00"]) if gone else frozenset())
    Simulation(policy, world, seed).run()


def test_two_thousand_policies() -> None:
    """The same on plain random numbers, so that the count does not depend on hypothesis."""
    chance, outcomes = random.Random(0), {"done": 0, "hopeless": 0}
    for seed in range(2000):
        simulation = Simulation(*_drawn(chance), seed)
        outcomes[simulation.run()] += 1
    print(f"2000 policies: {outcomes}")
    assert outcomes["done"] > 1000, "most worlds can be lived in"
    assert outcomes["hopeless"] > 100, "and some cannot"


def _drawn(chance: random.Random) -> tuple[RoundPolicy, World]:
    num_silos = chance.randint(1, 10)
    cohort = chance.randint(1, num_silos)
    buffer = chance.randint(1, cohort)
    fewest = chance.randint(1, buffer)
    policy = RoundPolicy(
        cohort_size=cohort,
        buffer_size=buffer,
        min_updates=fewest,
        min_silos=chance.randint(1, fewest),
        max_staleness=chance.choice([0, 1, 2, 12, 100]),
        grace=chance.choice([0.0, chance.uniform(0, 1)]),
        deadline_s=chance.choice([None, chance.uniform(1, 20)]),
        hand_in_s=chance.choice([None, chance.uniform(0.1, 5)]),
        max_attempts=chance.randint(1, 4),
        required=frozenset(chance.sample([f"s{i:02d}" for i in range(num_silos)], chance.choice([0, 0, 1]))),
    )
    shares = [chance.choice([0.0, chance.uniform(0, 0.2)]) for _ in range(5)]
    world = World(num_silos, *shares, left=chance.choice([0.0, 0.0, 0.02]))
    return policy, world


@pytest.mark.parametrize("seed", range(5))
def test_honest_silos_always_finish(seed: int) -> None:
    """Without faults every policy ends, and a synchronous one takes every silo every time."""
    chance = random.Random(seed)
    for _ in range(40):
        policy, world = _drawn(chance)
        assert Simulation(policy, World(world.num_silos), seed).run() == "done"
    policy = RoundPolicy(cohort_size=5, buffer_size=5, min_updates=5)
    simulation = Simulation(policy, World(5), seed)
    assert simulation.run() == "done"
    assert simulation.trace == [[(f"s{i:02d}", version) for i in range(5)] for version in range(10)]


def test_sync_does_not_depend_on_who_is_fast() -> None:
    """Random cohorts of 3 in 6; other paces, other losses, the same rounds."""
    policy = RoundPolicy(cohort_size=3, buffer_size=3, min_updates=3, max_attempts=50)
    traces = []
    for lost in (0.0, 0.2, 0.4):
        simulation = Simulation(policy, World(6, lost=lost, slowest=1 + 50 * lost), seed=7)
        assert simulation.run() == "done"
        traces.append(simulation.trace)
    assert traces[0] == traces[1] == traces[2]
    assert len({tuple(silo for silo, _ in taken) for taken in traces[0]}) > 3


def test_grace_takes_in_more_and_waits_no_longer_than_it_says() -> None:
    """8 silos, quorum 6: with grace more updates of the version in hand, for a part of the time of waiting for all."""

    def lived(**numbers: Any) -> tuple[float, float]:
        policy = RoundPolicy(cohort_size=8, max_staleness=1, **numbers)
        simulation = Simulation(policy, World(8, slowest=4.0), seed=3, rounds=60)
        assert simulation.run() == "done"
        return simulation.now, sum(len(taken) for taken in simulation.trace) / 60

    (quick, few), (slower, more), (slowest, _) = (
        lived(buffer_size=6),
        lived(buffer_size=6, grace=0.25),
        lived(buffer_size=8),
    )
    assert few < more <= 8 and quick < slower < slowest


def test_a_deadline_at_which_work_is_handed_in_loses_none() -> None:
    """Without it what slow silos did is lost when the round closes."""
    handed = {}
    for hand_in_s in (None, 60.0):
        policy = RoundPolicy(cohort_size=6, buffer_size=6, min_updates=3, deadline_s=4.0, hand_in_s=hand_in_s)
        simulation = Simulation(policy, World(6), seed=5, rounds=30)
        assert simulation.run() == "done"
        handed[hand_in_s] = [len(taken) for taken in simulation.trace]
    assert set(handed[60.0]) == {6} and min(handed[None]) < 6


def test_async_keeps_fast_silos_busy() -> None:
    """8 silos, one ten times slower: FedBuff closes many rounds in the time in which sync closes one."""

    def seconds_per_update(**numbers: Any) -> float:
        simulation = Simulation(
            RoundPolicy(cohort_size=8, **numbers), World(8, slowest=1.0), seed=1, rounds=40
        )
        simulation.pace["s03"] = 10.0
        assert simulation.run() == "done"
        return simulation.now / sum(len(taken) for taken in simulation.trace)

    sync = seconds_per_update(buffer_size=8, min_updates=8)
    buffered = seconds_per_update(buffer_size=4, max_staleness=12)
    assert sync > 5 * buffered
