"""Opening hours: when a silo takes part. ``Mon-Fri 20:00-06:00`` also covers the mornings after."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = "(?:" + "|".join(DAYS) + ")"
_WINDOW = re.compile(rf"({_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)*) (\d\d):(\d\d)-(\d\d):(\d\d)")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Window:
    """Minutes of the day on some days; one that ends at or before its start ends on the next day."""

    days: frozenset[int]
    start: int
    stop: int

    @property
    def length(self) -> int:
        """In minutes."""
        return (self.stop - self.start - 1) % _DAY_MINUTES + 1


def parse(text: str) -> Window:
    """Read ``Mon-Fri 20:00-06:00`` or ``Sat,Sun 00:00-24:00``; ValueError in one line."""
    found = _WINDOW.fullmatch(text)
    if not found:
        raise ValueError(f"expected days and hours such as 'Mon-Fri 20:00-06:00', got '{text[:60]}'")
    hours = [int(each) for each in found.groups()[1:]]
    start, stop = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
    if max(hours[1], hours[3]) > 59 or start >= _DAY_MINUTES or stop > _DAY_MINUTES:
        raise ValueError(f"'{text}': no such time of day")
    if start == stop:
        raise ValueError(f"'{text}': begins and ends at once; a whole day is 00:00-24:00")
    return Window(frozenset(_days(found[1])), start, stop)


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name; ValueError in one line."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise ValueError(f"no time zone '{name[:60]}'; expected one such as 'Europe/Zurich'") from None


def is_open(windows: Iterable[Window], local: datetime) -> bool:
    """Whether one of the windows covers this moment, given in the silo's local time."""
    minute = local.hour * 60 + local.minute
    return any(_covers(each, local.weekday(), minute) for each in windows)


def next_opening(windows: Iterable[Window], local: datetime) -> str:
    """Day and time (``Mon 20:00``) of the next window to begin."""
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    starts = [
        begin
        for window in windows
        for ahead in range(8)
        if (begin := midnight + timedelta(days=ahead, minutes=window.start)) > local.replace(tzinfo=None)
        and begin.weekday() in window.days
    ]
    soonest = min(starts)
    return f"{DAYS[soonest.weekday()]} {soonest:%H:%M}"


def _covers(window: Window, day: int, minute: int) -> bool:
    """The window of this day, or what is left of yesterday's."""
    today = day in window.days and 0 <= minute - window.start < window.length
    over_midnight = window.start + window.length - _DAY_MINUTES
    return today or ((day - 1) % 7 in window.days and minute < over_midnight)


def _days(text: str) -> Iterable[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        yield from ((begin + step) % 7 for step in range((end - begin) % 7 + 1))
