"""FedPer: the head stays at the silo."""

from typing import ClassVar, Literal

from orchestrator.core.protocols import PrivateLayers
from orchestrator.strategies.base import Averaging


class FedPer(Averaging, frozen=True):
    """Common layers below, each silo's own layers on top, trained together (Arivazhagan et al. 2019, arXiv 1912.00818).
    Silos may so differ in what a class means. The head neither travels nor is averaged."""

    private_layers: ClassVar[PrivateLayers] = "head"
    name: Literal["fedper"] = "fedper"
    head: tuple[str, ...] = ()
    """Globs over names of parameters; default: the last layer that has parameters."""

    @property
    def private_globs(self) -> tuple[str, ...]:
        return self.head
