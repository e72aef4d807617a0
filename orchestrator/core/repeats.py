"""What happens again and again is told the first, tenth, hundredth time."""

import threading
from collections import Counter

KINDS = 1_000
"""Different things that are counted by themselves: whoever can invent new ones fills neither memory nor disk."""


class Repeats:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self._times: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def told(self, *what: str) -> int | None:
        """It happened: how often until now, where that is to be told."""
        with self._lock:
            kind = what if what in self._times or len(self._times) < KINDS else ()
            self._times[kind] += 1
            times = self._times[kind]
        return times if str(times).rstrip("0") == "1" else None
