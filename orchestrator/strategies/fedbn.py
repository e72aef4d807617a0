"""FedBN: layers of normalisation stay at the silo."""

from typing import ClassVar, Literal

from orchestrator.core.protocols import PrivateLayers
from orchestrator.strategies.base import Averaging


class FedBN(Averaging, frozen=True):
    """Scales, shifts and statistics of normalisation are each silo's own, for silos whose inputs differ (scanners,
    sensors) while what they mean is the same (Li et al. 2021, arXiv 2102.07623). What is shared is averaged as in
    FedAvg. A silo that joins later begins with the statistics of the start."""

    private_layers: ClassVar[PrivateLayers] = "norm"
    name: Literal["fedbn"] = "fedbn"
