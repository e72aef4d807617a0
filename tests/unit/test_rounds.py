"""The round machine, step by step by hand: who may train, when a round closes, what counts."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.core.rounds import RoundPolicy, Rounds
from orchestrator.job import RoundSettings
from tests.support.updates import update

ABCD = ("a", "b", "c", "d")


def first(version: int, candidates: Sequence[str], size: int) -> Collection[str]:
    return candidates[:size]


def rounds(cohort: int = 4, buffer: int = 4, online: Sequence[str] = ABCD, **numbers: Any) -> Rounds:
    made = Rounds(
        RoundPolicy(
            cohort_size=cohort, buffer_size=buffer, min_updates=numbers.pop("min_updates", buffer), **numbers
        ),
        first,
    )
    made.open(online, 0.0)
    return made


def launch(machine: Rounds, online: Collection[str] = ABCD) -> list[str]:
    ready = machine.vacancies(online)
    for silo in ready:
        machine.launched(silo)
    return ready


def deliver(machine: Rounds, *silos: str, version: int = 0) -> None:
    for silo in silos:
        assert machine.arrived(update(silo, version), 0.0)


def test_sync_waits_for_all_and_sums_in_silo_order() -> None:
    machine = rounds()
    assert launch(machine) == list(ABCD) and launch(machine) == []
    deliver(machine, "d", "b", "a")
    assert not machine.due(ABCD, 1e9) and machine.awaited() == ["c"]
    deliver(machine, "c")
    assert machine.due(ABCD, 0.0)
    assert [each.silo for each in machine.close()] == list(ABCD) and not machine.buffer


def test_nobody_trains_a_version_twice() -> None:
    machine = rounds(buffer=2)
    launch(machine)
    deliver(machine, "a")
    assert launch(machine) == []
    machine.lost("b")
    assert launch(machine) == ["b"], "who lost its work has not delivered"


def test_a_second_update_on_a_version_does_not_count() -> None:
    machine = rounds()
    launch(machine)
    deliver(machine, "a")
    assert not machine.arrived(update("a", 0), 0.0) and len(machine.buffer) == 1


def test_attempts_are_counted() -> None:
    machine = rounds(max_attempts=2)
    for _ in range(2):
        assert "a" in launch(machine)
        machine.lost("a")
    assert "a" not in machine.vacancies(ABCD)
    deliver(machine, "b", "c", "d")
    assert machine.hopeless(ABCD) and not machine.due(ABCD, 1e9)


def test_who_declined_is_not_asked_again() -> None:
    machine = rounds()
    launch(machine)
    machine.declined("a")
    assert "a" not in machine.vacancies(ABCD)
    machine.open(ABCD, 0.0)
    assert "a" in machine.vacancies(ABCD), "another version is another question"


def test_the_gate_makes_a_silo_absent() -> None:
    machine = rounds()
    launch(machine)
    deliver(machine, "a", "b", "c")
    machine.refuse("d", 0)
    assert machine.due(ABCD, 0.0) and "d" not in machine.vacancies(ABCD)
    machine.close()
    machine.open(ABCD, 0.0)
    assert machine.vacancies(ABCD) == list(ABCD)


def test_a_refusal_of_old_work_leaves_new_work_alone() -> None:
    """Folding may refuse version 0's update of a silo that trains version 1 already."""
    machine = rounds(buffer=1, max_staleness=3)
    launch(machine)
    deliver(machine, "a")
    machine.close()
    machine.open(ABCD, 0.0)
    deliver(machine, "b")
    machine.launched("b")
    machine.buffer.clear()
    machine.refuse("b", 0)
    assert machine.in_flight["b"] == 1, "it is busy, and its work is welcome"
    assert machine.arrived(update("b", 1), 0.0)


def test_refused_silos_do_not_lower_the_floor() -> None:
    machine = rounds(min_updates=3, min_silos=3)
    launch(machine)
    deliver(machine, "a", "b")
    machine.refuse("c", 0)
    assert not machine.due(ABCD, 1e9) and not machine.hopeless(ABCD), "d may still come"
    machine.refuse("d", 0)
    assert not machine.due(ABCD, 1e9) and machine.hopeless(ABCD)
    assert machine.num_lacking() == 1 and machine.awaited() == ["c", "d"]


def test_silos_that_take_no_part_do_not_lower_the_floor() -> None:
    machine = rounds(min_updates=3, min_silos=3, online=("a", "b"))
    assert machine.cohort == {"a", "b"}
    launch(machine)
    deliver(machine, "a", "b")
    assert not machine.due(("a", "b"), 1e9) and machine.hopeless(("a", "b"))
    assert machine.num_lacking() == 1 and machine.awaited() == []


def test_lost_silos_do_not_lower_the_floor() -> None:
    machine = rounds(min_updates=3, min_silos=3, deadline_s=1.0)
    launch(machine)
    deliver(machine, "a", "b")
    machine.lost("c")
    machine.lost("d")
    assert not machine.due(("a", "b"), 5.0) and machine.hopeless(("a", "b"))
    assert launch(machine) == ["c", "d"]
    deliver(machine, "c")
    assert machine.due(ABCD, 5.0)


def test_two_updates_of_one_silo_are_one_silo() -> None:
    machine = rounds(buffer=2, min_silos=2, max_staleness=1)
    launch(machine)
    deliver(machine, "a", "b")
    machine.close()
    machine.open(ABCD, 0.0)
    deliver(machine, "c")
    launch(machine)
    deliver(machine, "c", version=1)
    assert len(machine.buffer) == 2 and not machine.due(ABCD, 1e9)
    deliver(machine, "a", version=1)
    assert machine.due(ABCD, 0.0)
    assert [(each.silo, each.version) for each in machine.close()] == [("a", 1), ("c", 0), ("c", 1)]


def test_all_refused_is_hopeless_and_never_due() -> None:
    machine = rounds()
    launch(machine)
    for silo in ABCD:
        machine.refuse(silo, 0)
    assert not machine.due(ABCD, 1e9) and machine.hopeless(ABCD)


def test_quorum_closes_at_the_deadline() -> None:
    machine = rounds(min_updates=3, deadline_s=10.0)
    launch(machine)
    deliver(machine, "a", "b")
    assert not machine.due(ABCD, 10.0)
    deliver(machine, "c")
    assert not machine.due(ABCD, 9.9) and machine.due(ABCD, 10.0)
    machine.close()
    assert machine.open(ABCD, 10.0) == ["d"], "its work can no longer be used"
    assert machine.deadline == 20.0


def test_quorum_closes_when_nothing_more_can_come() -> None:
    machine = rounds(min_updates=3, deadline_s=10.0)
    launch(machine)
    deliver(machine, "a", "b", "c")
    machine.lost("d")
    assert not machine.due(ABCD, 0.0), "d may try again"
    assert machine.due(("a", "b", "c"), 0.0), "d is away"


def test_over_selection_takes_the_first() -> None:
    machine = rounds(cohort=4, buffer=3)
    launch(machine)
    deliver(machine, "d", "c", "a")
    assert machine.due(ABCD, 0.0)
    assert [each.silo for each in machine.close()] == ["a", "c", "d"]
    assert machine.open(ABCD, 0.0) == ["b"]
    assert not machine.arrived(update("b", 0), 0.0) and "b" not in machine.in_flight
    assert machine.vacancies(ABCD) == list(ABCD)


def test_semi_sync_takes_the_late_once_stale() -> None:
    machine = rounds(buffer=3, max_staleness=1)
    launch(machine)
    deliver(machine, "a", "b", "c")
    machine.close()
    assert machine.open(ABCD, 0.0) == []
    assert launch(machine) == ["a", "b", "c"], "d is still busy with version 0"
    deliver(machine, "d")
    assert launch(machine) == ["d"], "stale work is no reason not to train the new version"
    deliver(machine, "a", "b", version=1)
    assert [(each.silo, each.version) for each in machine.close()] == [("a", 1), ("b", 1), ("d", 0)]


def test_too_stale_is_dropped() -> None:
    machine = rounds(buffer=1, max_staleness=1)
    launch(machine)
    deliver(machine, "a")
    for _ in range(2):
        machine.close()
        cancelled = machine.open(ABCD, 0.0)
    assert set(cancelled) == {"b", "c", "d"}
    assert not machine.arrived(update("b", 0), 0.0) and machine.buffer == []


def test_a_version_of_the_future_is_not_usable() -> None:
    assert not rounds().arrived(update("a", 7), 0.0)


def test_never_more_in_flight_than_the_cohort() -> None:
    machine = rounds(cohort=2, buffer=1, max_staleness=5)
    assert launch(machine) == ["a", "b"]
    deliver(machine, "a")
    machine.close()
    machine.sample = lambda version, candidates, size: ["c", "d"]
    machine.open(ABCD, 0.0)
    assert launch(machine) == ["c"], "b is still at work"


def test_required_silos_fail_closed() -> None:
    machine = rounds(cohort=3, buffer=2, min_updates=1, deadline_s=1.0, required=frozenset("d"))
    assert machine.cohort == {"a", "b", "d"}, "required ones are drawn always"
    launch(machine)
    deliver(machine, "a", "b")
    assert machine.missing() == ["d"] and not machine.due(ABCD, 1e9)
    machine.lost("d")
    assert not machine.due(("a", "b"), 1e9) and machine.hopeless(("a", "b"))
    machine.declined("d")
    assert not machine.due(ABCD, 1e9)
    deliver(machine, "d")
    assert machine.due(ABCD, 0.0)


def test_a_required_silo_that_is_refused_fails_closed() -> None:
    machine = rounds(required=frozenset("d"))
    launch(machine)
    deliver(machine, "a", "b", "c")
    machine.refuse("d", 0)
    assert not machine.due(ABCD, 1e9) and machine.hopeless(ABCD)


def test_an_update_that_perished_may_be_made_again() -> None:
    machine = rounds()
    launch(machine)
    deliver(machine, "a", "b", "c", "d")
    updates = machine.close()
    machine.give_back(updates[1:])
    machine.perished(updates[0])
    machine.lost("a")
    assert not machine.due(ABCD, 0.0) and launch(machine) == ["a"]
    deliver(machine, "a")
    assert [each.silo for each in machine.close()] == list(ABCD)


def test_a_quorum_waits_a_little_for_the_rest() -> None:
    """A quarter of the time that the quorum took, and only while somebody may yet come."""
    machine = rounds(buffer=3, grace=0.25, max_staleness=1)
    launch(machine)
    for at, silo in ((2.0, "a"), (5.0, "b"), (8.0, "c")):
        assert not machine.due(ABCD, at)
        assert machine.arrived(update(silo, 0), at)
    assert machine.next_moment(8.0) == 10.0
    assert not machine.due(ABCD, 9.9) and machine.due(ABCD, 10.0)
    assert machine.arrived(update("d", 0), 9.0)
    assert machine.due(ABCD, 9.0), "nobody is left to wait for"
    machine.close()
    machine.open(ABCD, 10.0)
    assert machine.next_moment(10.0) == float("inf"), "the next round measures anew"


def test_grace_ends_with_the_deadline_and_with_hope() -> None:
    machine = rounds(buffer=2, grace=10.0, deadline_s=6.0)
    launch(machine)
    machine.arrived(update("a", 0), 1.0)
    machine.arrived(update("b", 0), 4.0)
    assert machine.next_moment(4.0) == 6.0 and not machine.due(ABCD, 5.9) and machine.due(ABCD, 6.0)
    machine.lost("c")
    machine.declined("d")
    assert not machine.due(ABCD, 5.0), "c may try again"
    machine.declined("c")
    assert machine.due(ABCD, 5.0)


def test_a_buffer_that_a_refusal_made_full_has_no_grace() -> None:
    machine = rounds(grace=0.5)
    launch(machine)
    deliver(machine, "a", "b", "c")
    machine.refuse("d", 0)
    assert machine.due(ABCD, 0.0)


def test_work_is_handed_in_after_the_deadline() -> None:
    machine = rounds(deadline_s=6.0, hand_in_s=2.0, min_updates=1)
    launch(machine)
    machine.arrived(update("a", 0), 1.0)
    assert machine.next_moment(1.0) == 6.0 and machine.next_moment(6.0) == 8.0
    assert not machine.due(ABCD, 7.9) and machine.due(ABCD, 8.0)
    for silo in "bcd":
        machine.arrived(update(silo, 0), 6.5)
    assert machine.due(ABCD, 6.5), "it has what it waited for"


def test_28_with_one_silo_that_never_answers_a_quorum_goes_on_and_a_barrier_does_not() -> None:
    machine = rounds(buffer=3, max_staleness=1, grace=0.25)
    for version in range(5):
        for silo in launch(machine):
            if silo != "d":
                machine.arrived(update(silo, version), version + 0.5)
        assert machine.due(ABCD, version + 0.7)
        machine.close()
        for late in machine.open(ABCD, version + 1.0):
            machine.lost(late)
    barrier = rounds(min_updates=3, deadline_s=6.0)
    launch(barrier)
    deliver(barrier, "a", "b", "c")
    assert [barrier.due(ABCD, at) for at in (0.0, 5.9, 6.0, 7.0)] == [False, False, True, True]
    barrier.close()
    assert not barrier.due(ABCD, 7.0), "once per round"


def test_how_late_updates_can_really_be() -> None:
    assert RoundPolicy(cohort_size=4, buffer_size=4, max_staleness=9).most_stale == 0
    assert RoundPolicy(cohort_size=4, buffer_size=3, max_staleness=9).most_stale == 9
    assert RoundPolicy(cohort_size=4, buffer_size=4, max_staleness=9, deadline_s=1).most_stale == 9


def test_only_candidates_are_drawn() -> None:
    machine = rounds(cohort=3, buffer=3)
    assert machine.cohort == {"a", "b", "c"}
    machine.open(["d"], 0.0)
    assert machine.cohort == {"d"}


@pytest.mark.parametrize("staleness, factor", [(0, 1.0), (1, 0.7071), (2, 0.5774), (3, 0.5)])
def test_22_the_discount_by_age(staleness: int, factor: float) -> None:
    """Xie et al.: polynomial with a = 1/2; constant with a = 0."""
    policy = RoundPolicy(cohort_size=1, buffer_size=1)
    assert policy.discount(staleness) == pytest.approx(factor, abs=5e-5)
    assert RoundPolicy(cohort_size=1, buffer_size=1, staleness_exponent=0).discount(staleness) == 1.0


@pytest.mark.parametrize(
    "numbers", [(4, 5, 1, ()), (4, 3, 4, ()), (1, 1, 1, ("a", "b")), (0, 0, 0, ())], ids=str
)
def test_numbers_that_contradict_each_other(numbers: tuple[int, int, int, tuple[str, ...]]) -> None:
    cohort, buffer, fewest, required = numbers
    with pytest.raises(ValidationError):
        RoundPolicy(cohort_size=cohort, buffer_size=buffer, min_updates=fewest, required=required)


def test_the_floor_is_no_higher_than_what_a_round_closes_with() -> None:
    with pytest.raises(ValidationError, match="min_silos <= min_updates, got 3, 2"):
        RoundPolicy(cohort_size=4, buffer_size=4, min_updates=2, min_silos=3)


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("sync", (8, 8, 8, 6, 0)),
        ("over_selected", (8, 6, 6, 6, 0)),
        ("quorum", (8, 8, 6, 6, 0)),
        ("semi_sync", (8, 6, 1, 1, 1)),
        ("async", (8, 4, 1, 1, 10)),
        ("fedasync", (8, 1, 1, 1, 100)),
        ("auto", (8, 8, 6, 6, 1)),
    ],
)
def test_modes_are_numbers(mode: str, expected: tuple[int, ...]) -> None:
    settings = RoundSettings(mode=mode, total=1, deadline_s=1 if mode == "quorum" else None)
    assert numbers(settings.policy(8, frozenset())) == expected


def numbers(policy: RoundPolicy) -> tuple[int, ...]:
    return (
        policy.cohort_size,
        policy.buffer_size,
        policy.min_updates,
        policy.min_silos,
        policy.max_staleness,
    )


@pytest.mark.parametrize("mode", ["sync", "over_selected", "semi_sync", "async", "fedasync", "auto"])
@pytest.mark.parametrize("num_silos", [1, 2, 3, 5, 11])
def test_every_mode_fits_every_federation(mode: str, num_silos: int) -> None:
    policy = RoundSettings(mode=mode, total=1, cohort=7).policy(num_silos, frozenset())
    assert 1 <= policy.min_silos <= policy.min_updates <= policy.buffer_size
    assert policy.buffer_size <= policy.cohort_size == min(7, num_silos)
    relaxed = RoundSettings(mode="auto", total=1, cohort=7).relaxed(policy)
    assert policy.min_updates <= max(relaxed.buffer_size, policy.min_updates) <= policy.cohort_size


def test_what_auto_may_come_to() -> None:
    """Both ways the same floor, so that a silo's policy can judge the job."""
    settings = RoundSettings(mode="auto", total=1)
    first = settings.policy(8, frozenset())
    then = settings.relaxed(first)
    assert numbers(then) == (8, 6, 6, 6, 1) and (first.grace, then.grace) == (0, 0.25)
    assert first.most_stale == 0 and then.most_stale == 1 and first.staleness_exponent == 0
    assert RoundPolicy.model_validate(then.model_dump()) == then
    given = RoundSettings(mode="auto", total=1, buffer=4, grace=0.5, min_updates=5)
    assert given.relaxed(given.policy(8, frozenset())).buffer_size == 5
    assert given.relaxed(given.policy(8, frozenset())).grace == 0.5


def test_given_numbers_win_over_the_mode() -> None:
    settings = RoundSettings(mode="semi_sync", total=1, buffer=2, min_updates=2, max_staleness=4, cohort=3)
    assert numbers(settings.policy(8, frozenset())) == (3, 2, 2, 2, 4)


@pytest.mark.parametrize("mode", ["sync", "quorum", "semi_sync"])
def test_a_given_floor_holds_in_every_mode(mode: str) -> None:
    settings = RoundSettings(mode=mode, total=1, min_updates=4, deadline_s=1.0)
    policy = settings.policy(8, frozenset())
    assert (policy.min_updates, policy.min_silos) == (4, 4)


def test_a_given_floor_is_never_lowered_to_fit() -> None:
    """Fewer silos than it, or a mode that closes on fewer updates: the job contradicts itself."""
    with pytest.raises(ValidationError, match="min_updates <= buffer_size"):
        RoundSettings(mode="fedasync", total=1, min_updates=2).policy(8, frozenset())
    with pytest.raises(ValidationError, match="got 3, 2, 2"):
        RoundSettings(total=1, min_updates=3).policy(2, frozenset())
