"""Finding the driver of a run that another command started: a process on this machine, or an actor on Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cli import run_dirs
from orchestrator.cli.run_handle import Run


@contextmanager
def attached(run_dir: Path, address: str | None) -> Iterator[Run]:
    """Raises `BadInput` where no driver works on the run."""
    if address is None and run_dirs.is_served(run_dir):
        from orchestrator.transport import served

        yield served.attach(run_dir)
        return
    from orchestrator.transport import ray as transport

    try:
        yield transport.attach(run_dir, address)
    finally:
        transport.shutdown()
