"""Whether a vote on a release came to what the journal says, on the version that it says."""

from collections.abc import Mapping

from orchestrator.core.events import ReleaseVoted, RoundClosed, SiloAttacked
from orchestrator.job import Job
from orchestrator.verdict import Check
from orchestrator.voting import miscounted, told


class Votes:
    """Of one run."""

    def __init__(self) -> None:
        self.check = Check("release")
        self._voted: dict[str, SiloAttacked] = {}

    def take(self, event: SiloAttacked) -> None:
        """A silo's newest one counts."""
        self._voted[event.silo] = event

    def outcome(
        self, place: int, event: ReleaseVoted, job: Job | None, rounds: Mapping[int, RoundClosed]
    ) -> None:
        """Count again. ``rounds``: of the versions that count."""
        self.check.found = f"version {event.version} {told(event.model_dump())}"
        settings, training = (job.release, job.training) if job else (None, ())
        if settings is None or miscounted(event, self._voted, settings, training):
            self.check.wrong.append(f"line {place + 1}: the votes come to something else")
        made = rounds.get(event.version)
        nobody = not event.lineage and not event.votes
        if made is not None and event.lineage != made.lineage and not nobody:
            self.check.wrong.append(f"line {place + 1}: the vote was on another version {event.version}")
