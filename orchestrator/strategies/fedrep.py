"""FedRep: first the silo's head, then the common body under it."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from orchestrator.core.protocols import Phase
from orchestrator.strategies.fedper import FedPer


class FedRep(FedPer, frozen=True):
    """As FedPer, but a training goes through the rows for the head alone, then for the body with the head as it is
    (Collins et al. 2021, algorithm 1, arXiv 2102.07078)."""

    name: Literal["fedrep"] = "fedrep"  # type: ignore[assignment]
    head_epochs: int | None = Field(default=None, ge=1)
    """Of the head (the paper's figures: 10, and one of the body); default: as long as the body's training."""

    def phases(self, length: Phase) -> tuple[Phase, ...]:
        head = Phase(epochs=self.head_epochs) if self.head_epochs is not None else length
        return replace(head, trains="own"), replace(length, trains="shared")
