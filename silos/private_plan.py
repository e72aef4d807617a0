"""What a job's trainings with DP-SGD cost a silo's records, and the noise that a target takes. Pure arithmetic."""

from collections.abc import Sequence

from orchestrator.core.errors import BadJob
from orchestrator.job import Job
from orchestrator.local import Local
from orchestrator.privacy.accountant import Query, calibrated, epsilon
from orchestrator.privacy.dp_sgd import DpSgd
from silos.private_steps import PrivateSteps
from silos.spending import Charge, Spend, of_training
from silos.steps import num_steps

LOUDEST = 100.0
"""Noise multiplier beyond which nothing is learnt: so little of the target is left."""


class PrivatePlan:
    """Of one silo and one job."""

    def __init__(self, job: Job, spec: DpSgd, local: Local, steps: PrivateSteps) -> None:
        self._job, self._spec, self._local, self._steps = job, spec, local, steps

    def spends(self, version: int, asked: int | None) -> Spend:
        """By the most steps that the training may make, where the driver has asked for so many: fewer are no privacy
        regained."""
        return Spend(self._query(self._num_steps(version, asked)), self._spec.unit, "train")

    def most(self, version: int) -> Spend:
        """By the most steps that the driver may ever ask for."""
        return Spend(self._query(self._most_steps(version)), self._spec.unit, "train")

    def settle(
        self, had: Sequence[Charge], run_id: str, version: int | None = None, asked: int | None = None
    ) -> None:
        """Find the noise with which all that the job may still ask stays within its target, after what the silo's
        ledger says was asked before. A run goes on with the noise that it began with, unless trainings were done anew
        since. ``version``: of the training ahead; None: the silo joins. Raises `BadJob` where no noise will do."""
        target, steps = self._spec.target_epsilon, self._steps
        if target is None:
            return
        kind = self._spec.unit, "train"
        own = [each.spend for each in had if each.run == run_id and each.spend[1:] == kind]
        if version is None and own:
            steps.noise_multiplier = own[-1].query.sigma
            return
        ahead = self._ahead(version, asked)
        before, delta = of_training(had, self._spec.unit), self._spec.delta
        if steps.noise_multiplier is None or epsilon([*before, self._query(ahead)], delta) > target:
            steps.noise_multiplier = _of_use(calibrated(target, delta, steps.chance, ahead, before))

    def _ahead(self, version: int | None, asked: int | None) -> int:
        """Steps of the training ahead, and of those that may follow."""
        first = 0 if version is None else version + 1
        this = 0 if version is None else self._num_steps(version, asked)
        return this + sum(self._most_steps(each) for each in range(first, self._job.rounds.total))

    def _most_steps(self, version: int) -> int:
        return self._job.rounds.most_steps(self._num_steps(version, None))

    def _num_steps(self, version: int, asked: int | None) -> int:
        return num_steps(self._job.strategy, self._local, self._steps, version, asked)

    def _query(self, num: int) -> Query:
        sigma = self._steps.noise_multiplier
        assert sigma is not None  # settled when the silo joined
        return Query(self._steps.chance, sigma, num)


def _of_use(sigma: float) -> float:
    if sigma > LOUDEST:
        raise BadJob(
            f"privacy.target_epsilon: after what is spent before, the steps ahead take noise of {sigma:.3g} times "
            "max_grad_norm, under which nothing is learnt: give a larger target, or fewer steps"
        )
    return sigma
