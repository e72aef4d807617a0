"""DiLoCo: long local phases, few rounds."""

from typing import ClassVar, Literal

from orchestrator.strategies.base import Averaging, Server
from orchestrator.strategies.server import Sgd


class DiLoCo(Averaging, frozen=True):
    """Hundreds of local steps, usually of AdamW, whose state goes on from round to round; outside, SGD with Nesterov
    momentum (Douillard et al. 2023, algorithm 1, arXiv 2311.08105: rate 0.7, momentum 0.9, 500 steps).

    The optimizer's state stays at the silo, as part of its private state: three times the model's size on its disk
    for AdamW, each of the last few versions. In asynchronous rounds Nesterov's momentum overshoots: ``server.delay``.
    """

    keeps_optimizer: ClassVar[bool] = True
    name: Literal["diloco"] = "diloco"
    server: Server = Sgd(lr=0.7, momentum=0.9, nesterov=True)
