"""Which driver the silo obeys: the newest that has asked in the run."""

import threading

from orchestrator.core.messages import Request
from silos.state import SiloState


class Fence:
    """Of a run that was joined, a new process of the silo knows the newest driver, too. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest = "", 0
        """Run and epoch of the driver that asked last."""

    def outdated(self, request: Request, state: SiloState) -> bool:
        """Whether a newer driver has asked for anything in this run; if not, older ones are over from now on."""
        with self._lock:
            known = state.epoch
            newest = max(known or 0, self._newest_in(request.run_id))
            if request.epoch < newest:
                return True
            self._newest = request.run_id, request.epoch
            if known is not None and request.epoch > known:
                state.fence(request.epoch)
        return False

    def keep(self, request: Request, state: SiloState) -> None:
        """The run is joined: put its newest driver on disk."""
        with self._lock:
            state.fence(max(request.epoch, self._newest_in(request.run_id), state.epoch or 0))

    def _newest_in(self, run_id: str) -> int:
        """Epoch of the newest driver that asked lately, if that was in this run."""
        newest_run, epoch = self._newest
        return epoch if newest_run == run_id else 0
