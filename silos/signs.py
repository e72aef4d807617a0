"""A silo's signs of life."""

from collections.abc import Callable

MARK_S = 1.0
"""Between two marks where their number would tell the number of batches."""


class Signs:
    """What the silo does, and a count that rises with everything it did."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.phase, self.version, self.num_steps, self.total_steps = "idle", -1, 0, 0
        self.marks = 0
        self.tells_counts = True
        """False: neither steps nor marks say how many batches there are."""
        self._clock, self._marked_at = clock, clock()

    def mark(self, phase: str, version: int, num_steps: int = 0, total_steps: int = 0) -> None:
        """Something was done."""
        self.phase, self.version = phase, version
        self.num_steps, self.total_steps = (num_steps, total_steps) if self.tells_counts else (0, 0)
        if self.tells_counts or self._clock() - self._marked_at >= MARK_S:
            self.moved()

    def moved(self) -> None:
        """Bytes were."""
        self.marks, self._marked_at = self.marks + 1, self._clock()
