"""A silo's site in a simulation: its real data and training, and nothing of it on the silo's own records."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.core.metrics import MetricSums
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite
from silos.identity import Identity
from silos.policy import review
from silos.site import Assessment, Cancelled, Findings, Guard, Order, Trainer
from silos.state import SiloState


class SimulatedSite(ConfiguredSite):
    """The policy's rules on jobs and metrics hold. Its hours, budgets and approvals do not, for time is simulated and
    no result leaves this process; ledger and audit stay as they are, and private state lies in ``folder``."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        lifted = {"max_rounds": None, "max_evaluations": None, "approval": "none", "freeze": "none"}
        policy = self.config.policy.model_copy(update=lifted)
        self.config = self.config.model_copy(update={"policy": policy})
        self._scratch = folder
        self._trainer: Trainer | None = None

    def review(self, job: Job) -> str | None:
        return review(job, self.config)

    @cached_property
    def guard(self) -> Guard:  # type: ignore[override]
        return Guard()

    @cached_property
    def identity(self) -> Identity:
        """Of no consequence: the silo's own key signs nothing here."""
        return Identity.alone(self.name)

    @property
    def own_folder(self) -> Path:
        return self._scratch

    def trainer(self, job: Job) -> Trainer:
        self._trainer = super().trainer(job)
        return self._trainer

    def assess(self, trainer: Trainer, order: Order) -> Assessment:
        """Nothing: a simulation is about time, and training once more alone takes real time."""
        return Assessment(models={}, curve=(), accepted=0, num_steps=0, seconds={})

    def attack(self, trainer: Trainer, order: Order) -> Findings:
        """None: nothing is released."""
        raise Cancelled("policy", f"{self.name} is simulated and makes no attacks")

    def _planted(self, job: Job, task: Any) -> Any:
        """No canaries: the same simulation again is to be the same."""
        return task

    def judge(self, run_id: str, version: int, model: Parts) -> MetricSums:
        """What the silo would say of this model; empty before it has joined."""
        if self._trainer is None:
            return {}
        state = SiloState(self.state_folder(run_id), self.key).after(version)
        order = Order(version=version, received=model, state=state, tick=lambda *_: None)
        return self.release(self.metrics_rule.of_test(self._trainer.evaluate(order)))


def judged(sites: Mapping[str, SimulatedSite], run_id: str, version: int, model: Parts) -> list[MetricSums]:
    """All silos' sums of this model, by the silos' names."""
    return [sites[name].judge(run_id, version, model) for name in sorted(sites)]
