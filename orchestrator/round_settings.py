"""What a job says about its rounds: a mode, and the numbers that it stands for."""

import math
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from orchestrator.core.rounds import RoundPolicy

Mode = Literal["sync", "over_selected", "quorum", "semi_sync", "async", "fedasync", "auto"]
SPREAD = 4.0
"""In rounds of equal time a silo makes at most so many times, and at least this part of, the steps of the job."""
GRACE = 0.25
"""Of the time that a quorum took; with which ``mode: auto`` waits for the rest."""


class RoundSettings(BaseModel, frozen=True, extra="forbid"):
    """How many rounds, and the mode: a preset for the numbers below, each of which may be given as well.

    ``sync`` waits for the cohort. ``over_selected`` draws 1.2 times as many as it waits for. ``quorum`` closes
    at its deadline with three quarters. ``semi_sync`` closes on three quarters and takes the late ones, once
    stale, next time. ``async`` closes on half the cohort (FedBuff). ``fedasync`` closes on each update. ``auto``
    begins as ``sync``; after some rounds it goes on like that where silos are equally fast, and else as ``semi_sync``
    with ``equal_time`` and ``grace``, and says why.

    ``sync``, ``over_selected``, ``quorum`` and ``auto`` close without silos whose update is refused, as long as three
    quarters of the cohort are left; the others with any one silo. ``min_updates`` replaces both numbers.
    """

    mode: Mode = "sync"
    total: int = Field(ge=1)
    cohort: int | None = Field(default=None, ge=1)
    """Silos drawn for a version; default all."""
    buffer: int | None = Field(default=None, ge=1)
    """Updates on which a round closes; with ``auto`` once it does not wait for all."""
    grace: float = Field(default=0.0, ge=0, le=10)
    """A round that has its updates waits for the rest, for this share of the time that it took until then."""
    min_updates: int | None = Field(default=None, ge=1)
    """Fewest silos in an average, whoever is refused, declines or is lost: a round that cannot have so many ends
    the run. With so many a round closes at its deadline, or when nothing more can come."""
    max_staleness: int | None = Field(default=None, ge=0)
    staleness_exponent: float | None = Field(default=None, ge=0)
    """Late updates are multiplied by ``(1 + versions late) ** -exponent``: by default 0.5, and 0 where ``auto`` or
    ``rate_correction`` sees to it that slow silos count in full."""
    rate_correction: bool = False
    """Where silos deliver at their own pace, an update counts for its silo's share times the versions since the silo
    counted last. Otherwise the model goes where the fast silos' rows are, and classes that only slow ones have are
    lost."""
    equal_time: bool = False
    """The driver asks each silo for as many local steps as it makes while the others make theirs: from a quarter to
    four times what the job says. For strategies whose outcome does not depend on it."""
    deadline_s: float | None = Field(default=None, gt=0)
    partial: bool = False
    """At the deadline silos at work hand in what they have done, for which they have ``patience_s``."""
    max_attempts: int = Field(default=3, ge=1)
    """Trainings that a silo may start on one version."""
    patience_s: float = Field(default=120.0, gt=0)
    """A silo that shows no progress for so long is restarted; a run that waits for silos gives up after ten
    times as long (and resumes with the same command), not counting time in which one of them says that it is
    closed or works for another run. Updates have as long to come when their round's deadline is over."""

    @model_validator(mode="after")
    def _deadline(self) -> Self:
        if self.mode == "quorum" and self.deadline_s is None:
            raise ValueError("mode 'quorum' needs 'deadline_s' (seconds that a round may last)")
        if self.partial and self.deadline_s is None:
            raise ValueError("'partial' needs 'deadline_s': until then silos train on")
        return self

    @property
    def asks_for_steps(self) -> bool:
        """Whether a training may ever have another number of local steps than the job says."""
        return self.equal_time or self.mode == "auto" or self.partial

    def most_steps(self, usual: int) -> int:
        """That the driver may ask of a training which makes so many as the job says."""
        return math.floor(usual * SPREAD) if self.equal_time or self.mode == "auto" else usual

    def policy(self, num_silos: int, required: frozenset[str]) -> RoundPolicy:
        """The numbers for this many silos."""
        cohort = min(self.cohort or num_silos, num_silos)
        buffer, fewest, staleness = self._preset(cohort)
        if self.mode != "auto":
            buffer = self.buffer or buffer
        fewest = self.min_updates or min(fewest, buffer)
        return RoundPolicy(
            cohort_size=cohort,
            buffer_size=buffer,
            min_updates=fewest,
            min_silos=self.min_updates or min(fewest, _most(cohort)),
            max_staleness=staleness if self.max_staleness is None else self.max_staleness,
            staleness_exponent=self._exponent,
            grace=0.0 if self.mode == "auto" else self.grace,
            deadline_s=self.deadline_s,
            hand_in_s=self.patience_s if self.partial else None,
            max_attempts=self.max_attempts,
            required=required,
        )

    def relaxed(self, policy: RoundPolicy) -> RoundPolicy:
        """The numbers once ``auto`` has found silos of unequal speed."""
        quorum = self.buffer or math.ceil(0.75 * policy.cohort_size)
        return policy.model_copy(
            update={"buffer_size": max(quorum, policy.min_updates), "grace": self.grace or GRACE}
        )

    @property
    def _exponent(self) -> float:
        if self.staleness_exponent is not None:
            return self.staleness_exponent
        return 0.0 if self.rate_correction or self.mode == "auto" else 0.5

    def _preset(self, cohort: int) -> tuple[int, int, int]:
        """Buffer, fewest updates, staleness."""
        most = _most(cohort)
        match self.mode:
            case "sync":
                return cohort, cohort, 0
            case "over_selected":
                wanted = max(1, int(cohort / 1.2))
                return wanted, wanted, 0
            case "quorum":
                return cohort, most, 0
            case "semi_sync":
                return most, 1, 1
            case "auto":
                return cohort, most, 1
            case "async":
                return max(1, cohort // 2), 1, 10
            case "fedasync":
                return 1, 1, 100


def _most(cohort: int) -> int:
    """Three quarters."""
    return max(1, round(0.75 * cohort))
