"""What the command line holds of a run. `orchestrator.transport.ray` gives it; a test plays it back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Outcome(Protocol):
    """How a run ended."""

    @property
    def status(self) -> str:
        """``done``, ``stopped`` or ``failed``."""
        ...

    @property
    def exit_code(self) -> int: ...

    @property
    def reason(self) -> str: ...


class Run(Protocol):
    """A run whose driver is alive, or was when it was asked for."""

    @property
    def run_id(self) -> str: ...

    @property
    def run_dir(self) -> Path:
        """On the driver's machine."""
        ...

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        """Events behind the cursor ``after``, and the next cursor; blocks up to ``wait_s`` for the first.

        From cursor 0 come all durable events since the run was first opened, and what is happening now.
        A cursor below ``after`` says that the driver was started anew and its events are counted afresh.
        Raises CannotGoOn when the driver is gone for good.
        """
        ...

    def outcome(self) -> Outcome | None:
        """None while the run goes on."""
        ...

    def stop(self, now: bool = False, within_s: float | None = None) -> None:
        """Ask to finish the round, keep it, and end as ``stopped``; ``now``: without the round in hand;
        ``within_s``: without it if it takes longer than that."""
        ...

    def close(self) -> None:
        """Let the driver's process go, once the run has ended."""
        ...


class SiloLine(Protocol):
    """One silo in the answer to ``siloray silos``."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str:
        """``online``, ``starting``, ``away``."""
        ...

    @property
    def node(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def datasets(self) -> Mapping[str, Mapping[str, int]]:
        """Rows by data set and split, as far as the silo's policy lets them out."""
        ...
