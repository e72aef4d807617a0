"""What happens again and again."""

from orchestrator.core.repeats import KINDS, Repeats


def test_the_first_tenth_hundredth_time() -> None:
    repeats = Repeats()
    told = [repeats.told("a") for _ in range(1000)]
    assert [times for times in told if times is not None] == [1, 10, 100, 1000]


def test_each_kind_has_its_own_count() -> None:
    repeats = Repeats()
    assert [repeats.told(*what) for what in (("a", "b"), ("a", "c"), ("a", "b"), ("ab",))] == [1, 1, None, 1]


def test_kinds_beyond_all_measure_count_as_one() -> None:
    repeats = Repeats()
    told = [repeats.told(str(number)) for number in range(KINDS + 10_000)]
    assert sum(times is not None for times in told) == KINDS + 5
    assert repeats.told("0") is None and [repeats.told("1") for _ in range(9)][-1] == 10, (
        "the known ones go on"
    )
