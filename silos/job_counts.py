"""What each job has had of a silo: since when it takes part, and the work that was begun for it.

On disk and by the job's digest: neither another run of the same job nor a new process of the silo gets it anew.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from orchestrator.core.errors import BadInput
from silos.audit import write_private

Kind = Literal["trained", "evaluated"]


class Entry(BaseModel, frozen=True, extra="forbid"):
    """One job's."""

    first_join: float
    """In seconds since 1970."""
    trained: tuple[str, ...] = ()
    evaluated: tuple[str, ...] = ()
    """Digests of different pieces of work, in the order in which they were begun."""


class JobCounts:
    """A small file per job. Raises `BadInput` where one is broken or cannot be written."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder / "jobs", clock

    def first_join(self, job_digest: str) -> float | None:
        """When the job joined first; None where it never did."""
        entry = self._read(job_digest)
        return None if entry is None else entry.first_join

    def join(self, job_digest: str) -> None:
        """The job takes part, for the first time or again."""
        if self._read(job_digest) is None:
            self._save(job_digest, Entry(first_join=self._clock()))

    def begin(self, job_digest: str, kind: Kind, work: str, most: int) -> bool:
        """Whether this work is among the first ``most`` different ones of its kind, and may begin. The same again
        costs nothing. Durable before it returns."""
        entry = self._read(job_digest) or Entry(first_join=self._clock())
        begun: tuple[str, ...] = getattr(entry, kind)
        if work in begun:
            return True
        if len(begun) >= most:
            return False
        self._save(job_digest, entry.model_copy(update={kind: (*begun, work)}))
        return True

    def _read(self, job_digest: str) -> Entry | None:
        path = self._path(job_digest)
        try:
            return Entry.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise BadInput(f"{path}: not what siloray wrote; remove it to begin anew") from None

    def _save(self, job_digest: str, entry: Entry) -> None:
        write_private(self._path(job_digest), entry.model_dump_json() + "\n")

    def _path(self, job_digest: str) -> Path:
        return self._folder / f"{job_digest}.json"
