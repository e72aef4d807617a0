"""Opening hours, over midnight and over the end of the week."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from silos import hours

MONDAY = datetime(2026, 6, 1, tzinfo=ZoneInfo("Europe/Zurich"))


def at(text: str) -> datetime:
    day, _, time = text.partition(" ")
    hour, minute = time.split(":")
    return MONDAY.replace(day=1 + hours.DAYS.index(day), hour=int(hour), minute=int(minute))


@pytest.mark.parametrize(
    ("window", "moment", "covered"),
    [
        ("Mon-Fri 20:00-06:00", "Mon 19:59", False),
        ("Mon-Fri 20:00-06:00", "Mon 20:00", True),
        ("Mon-Fri 20:00-06:00", "Tue 05:59", True),
        ("Mon-Fri 20:00-06:00", "Tue 06:00", False),
        ("Mon-Fri 20:00-06:00", "Mon 03:00", False),
        ("Mon-Fri 20:00-06:00", "Sat 03:00", True),
        ("Mon-Fri 20:00-06:00", "Sat 20:00", False),
        ("Sat,Sun 00:00-24:00", "Sun 23:59", True),
        ("Sat,Sun 00:00-24:00", "Mon 00:00", False),
        ("Fri-Mon 09:00-17:00", "Sun 12:00", True),
        ("Fri-Mon 09:00-17:00", "Wed 12:00", False),
        ("Sun 22:00-02:00", "Mon 01:59", True),
        ("Mon 00:00-00:01", "Mon 00:00", True),
        ("Mon 22:00-00:00", "Mon 23:59", True),
        ("Mon 22:00-00:00", "Tue 00:00", False),
    ],
)
def test_what_a_window_covers(window: str, moment: str, covered: bool) -> None:
    assert hours.is_open([hours.parse(window)], at(moment)) is covered


@pytest.mark.parametrize(
    ("windows", "moment", "opening"),
    [
        (["Mon-Fri 20:00-06:00"], "Sat 07:00", "Mon 20:00"),
        (["Mon-Fri 20:00-06:00"], "Tue 06:00", "Tue 20:00"),
        (["Wed 10:00-11:00"], "Wed 11:00", "Wed 10:00"),
        (["Wed 10:00-11:00", "Sat 08:00-09:00"], "Thu 00:00", "Sat 08:00"),
    ],
)
def test_when_it_opens_again(windows: list[str], moment: str, opening: str) -> None:
    assert hours.next_opening([hours.parse(each) for each in windows], at(moment)) == opening


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mon",
        "Mon 8-17",
        "Mon 08:00-24:01",
        "Mon 24:00-06:00",
        "Mon 08:60-09:00",
        "Mon 08:00-08:00",
        "mon 08:00-09:00",
        "Mon-Fri  08:00-09:00",
        "Mon 08:00-09:00 ",
        "Mon 08:00-09:00\n",
        "Montag 08:00-09:00",
        "Mon- 08:00-09:00",
        "Mon 8:00-09:00",
    ],
)
def test_windows_that_are_none(text: str) -> None:
    with pytest.raises(ValueError) as error:
        hours.parse(text)
    assert "\n" not in str(error.value).removesuffix(f"'{text}'")


@pytest.mark.parametrize("name", ["", "Zurich", "../etc/passwd", "/etc/passwd", "Europe"])
def test_zones_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        hours.zone(name)
