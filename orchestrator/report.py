"""The job's ``report`` section: what is found out about each silo at the end of a run."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

EXACT = 8
"""Silos up to which Shapley values are computed from all coalitions."""

Steps = Annotated[int, Field(ge=1)]


class ReportSettings(BaseModel, frozen=True, extra="forbid"):
    """At the end each silo compares, on its own test rows, the best version with that version after some local steps,
    with a model trained on its rows alone, and with its personal model where the strategy makes one."""

    silos: bool = True
    """False: none of this."""
    adapt: tuple[Steps, ...] = Field(default=(1, 5, 10, 50), max_length=20)
    """Local steps after which the received model is measured, besides 0. The best of them on the silo's validation
    rows (a fifth of its training rows) is its fine-tuned model, if it is better there than the received one."""
    alone: bool = True
    """Train a model on the silo's rows alone, from the same initial parameters, for as many steps as the run had of
    the silo."""
    max_steps: int = Field(default=2_000, ge=1)
    """Of that model, at most: it costs as much as the silo's part in the run did."""
    resamples: int = Field(default=200, ge=200, le=10_000)
    """Of the silo's test rows, for the intervals."""
    do_no_harm: Literal["warn", "block"] = "warn"
    """Where a silo is worse off with the best version than alone: say so, or keep the registry's alias ``champion``
    where it is, too."""
    drift: bool = True
    """Watch each silo's updates for a change of their norm, direction and training loss."""
    contribution: Literal["none", "leave_one_out", "shapley"] = "none"
    """What each silo's updates are worth, by the models of coalitions: up to 2^N evaluations at every silo for up to
    eight silos, and as many models in the driver's memory as there are silos, twice."""
    permutations: int = Field(default=20, ge=4, le=1_000)
    """Orders of the silos by which Shapley values of more than eight are estimated."""

    @field_validator("adapt")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError("give rising numbers of steps")
        return steps

    def num_evaluations(self, num_silos: int) -> int:
        """Evaluations at each silo, at most: of the last version, the assessment, and those of coalitions."""
        if self.contribution == "none":
            return 1 + self.silos
        if self.contribution == "leave_one_out":
            return 1 + self.silos + num_silos + 1
        if num_silos <= EXACT:
            return 1 + self.silos + (1 << num_silos)
        return 1 + self.silos + 2 + self.permutations * num_silos
