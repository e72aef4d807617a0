"""How much goes into a frame: as much as the line takes in time."""

from collections.abc import Callable
from time import monotonic

from orchestrator.transport.flight_client import Slow
from orchestrator.transport.mailbox import CHUNK, UNIT

FIRST_CHUNK = 1 << 14
"""Elements in the first frames on a line of unknown speed."""
LONG_S, SHORT_S = 2.0, 0.25
"""A frame that takes longer, or shorter, makes the next ones smaller, or larger."""


class Pace:
    """Of one line, for whatever moves over it."""

    def __init__(self) -> None:
        self.chunk = FIRST_CHUNK
        """Most elements of the next frame."""

    def move(self, start: int, stop: int, move: Callable[[int, int], None]) -> None:
        """Move a range in pieces; one that was too slow (`Slow`) is moved again in smaller ones."""
        while start < stop:
            end, began = min(start + self.chunk, stop), monotonic()
            try:
                move(start, end)
                start = end
            except Slow:
                self.slow()
            took = monotonic() - began
            if took > LONG_S:
                self.chunk = max(UNIT, self.chunk // 2)
            elif took < SHORT_S:
                self.chunk = min(CHUNK, self.chunk * 2)

    def slow(self) -> None:
        """A frame did not get through in time."""
        self.chunk = max(UNIT, self.chunk // 4)
