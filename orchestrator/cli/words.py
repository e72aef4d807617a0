"""Numbers and times as people read them. Plain strings: nothing here draws."""

import time
from collections.abc import Sequence

from orchestrator.core.printable import printable

_BARS = "▁▂▃▄▅▆▇█"


def figure(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """``0.12 s``, ``48 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """``12 B``, ``3.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def clock(seconds: float) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def some(names: Sequence[str], most: int = 4) -> str:
    """``a, b, c, d and 6 more``."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last ``width`` values as bars."""
    recent = values[-width:]
    low, high = min(recent, default=0.0), max(recent, default=0.0)
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, int(8 * (value - low) / span))] for value in recent)


def one_line(text: object) -> str:
    """Whatever it is, on one line, and nothing in it that a terminal would act on."""
    return printable(" ".join(str(text).split()))
