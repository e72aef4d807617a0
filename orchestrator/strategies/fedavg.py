"""Federated averaging."""

from typing import Literal

from orchestrator.strategies.base import Averaging


class FedAvg(Averaging, frozen=True):
    """Weighted mean of the silos' deltas (McMahan et al. 2017, algorithm 1, arXiv 1602.05629)."""

    name: Literal["fedavg"] = "fedavg"
