"""Where an agent's silo works: what that must do, and how it is done in the agent's own process."""

import os
import sys
from collections.abc import Callable
from typing import Protocol

from orchestrator.core.messages import Reply, Request, Stop
from silos.silo import Silo


class Workplace(Protocol):
    """Where the silo is."""

    def handle(self, request: Request) -> Reply:
        """From several threads, for `AT_ONCE`; from one for the rest."""
        ...

    def restart(self) -> None:
        """End what hangs, and start the silo anew."""
        ...


class InThread:
    """The silo is an object of this process. A restart makes it anew; what is left of the old one may not write."""

    def __init__(self, start: Callable[[], Silo]) -> None:
        self._start = start
        self._silo = start()
        self._stop: Stop | None = None

    def handle(self, request: Request) -> Reply:
        self._stop = Stop(run_id=request.run_id, epoch=request.epoch)
        return self._silo.handle(request)

    def restart(self) -> None:
        old, self._silo = self._silo, self._start()
        if self._stop is not None:
            old.handle(self._stop)


class InProcess(InThread):
    """As the command runs it: a restart replaces the whole process, which ends threads that hang."""

    def restart(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
