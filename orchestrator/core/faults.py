"""Fault points: named places in the code where a test may make this process fail.

``SILORAY_FAULT=point:nth:action`` fires once, when ``point`` is passed for the ``nth`` time (from 1).
Actions: ``kill`` (SIGKILL to this process), ``raise`` (FaultInjected), ``enospc`` (the disk is full),
``delay`` or ``delay:seconds`` (default 1). The variable is read once, at import.

A process that is killed and started anew would meet the same fault again. ``SILORAY_FAULT_ONCE=path`` names a
file that the first to fire makes; where it is there, nobody fires.
"""

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass, field

FAULT_POINTS = (
    # driver
    "round.opened",
    "silo.launched",
    "update.arrived",
    "round.closing",
    "round.folded",
    "state.stepped",
    "round.closed",
    "silo.assessed",
    # store
    "checkpoint.files",
    "checkpoint.manifest",
    "checkpoint.renamed",
    "journal.appended",
    "commit.done",
    # silo
    "silo.trained",
    "silo.replied",
)
"""Passed by every job."""

SOME_JOBS = (
    "silo.attacked",
    *("ledger.opened", "ledger.written", "ledger.durable"),
    *("sum.keys", "sum.peers", "sum.seal", "sum.unmask"),
)
"""Passed by jobs with a release gate, by silos that enter in their privacy ledger what a job is about to spend, and by
drivers of secure sums."""

ACTIONS = ("kill", "raise", "enospc", "delay")


class FaultInjected(Exception):
    """What the action ``raise`` raises."""


@dataclass(slots=True)
class _Trap:
    """One armed fault; ``left`` counts down to the passage that fires."""

    point: str
    left: int
    action: str
    seconds: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def parse(cls, text: str) -> "_Trap":
        """Raises ValueError with one line when the text is not ``point:nth:action``."""
        point, nth, action, seconds = (*text.split(":", 3), "", "", "")[:4]
        if point not in points() or not nth.isdecimal() or int(nth) < 1 or action not in ACTIONS:
            raise ValueError(
                f"SILORAY_FAULT={text!r}: expected point:nth:action, with a point of "
                f"{', '.join(points())} and an action of {', '.join(ACTIONS)}"
            )
        return cls(point, int(nth), action, float(seconds or 1))

    def fires(self) -> bool:
        """Counts one passage; true at the nth."""
        with self.lock:
            self.left -= 1
            return self.left == 0 and _first()

    def act(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "raise":
            raise FaultInjected(self.point)
        elif self.action == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.point)
        else:
            time.sleep(self.seconds)


def _first() -> bool:
    path = os.environ.get("SILORAY_FAULT_ONCE")
    if not path:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


_trap: _Trap | None = None


def arm(text: str | None) -> None:
    """Arms the fault that ``text`` describes in this process, in place of any other; None disarms."""
    global _trap
    _trap = _Trap.parse(text) if text else None


def fault(point: str) -> None:
    """Passes a fault point: does nothing unless a test armed this one."""
    if _trap is not None and _trap.point == point and _trap.fires():
        _trap.act()


def points() -> tuple[str, ...]:
    """The names of all fault points."""
    return FAULT_POINTS + SOME_JOBS


arm(os.environ.get("SILORAY_FAULT"))
