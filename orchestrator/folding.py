"""A round's updates become one mean. Who turns out unfit or lost on the way is left out, and the rest is folded anew
while it is enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.attempt import Attempt
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import MOST_DRAWS, CohortInfo, Update
from orchestrator.fetching import Fetching
from orchestrator.pipeline import Combined, UpdateUnfit
from orchestrator.privacy.sealing import SumFailed
from orchestrator.published import PublishedModels
from orchestrator.sealed import SealedSums
from orchestrator.weighing import cohort_of


@dataclass(frozen=True, slots=True)
class Folded:
    """The mean, and what is in it."""

    updates: list[Update]
    """In the order of the sum."""
    cohort: CohortInfo
    combined: Combined


class Folding:
    """Of one attempt at a run."""

    def __init__(self, attempt: Attempt, models: PublishedModels, sums: SealedSums | None) -> None:
        self.attempt, self.rounds, self._models, self._sums = attempt, attempt.rounds, models, sums

    async def fold(self) -> Folded | None:
        """Fold what the round holds. Updates that turn out unfit or lost are left out; None if what remains is
        not enough, and the round stays open."""
        while True:
            updates = self.rounds.close()
            try:
                self._check_metrics(updates)
                await self._check_models(updates)
                if self._sums is None:
                    return await self._plain(updates)
                return await self._summed(self._sums, updates)
            except SumFailed as failed:
                self._give_back_after(failed, updates)
            except UpdateUnfit as unfit:
                self.rounds.give_back([each for each in updates if each is not unfit.update])
                self.attempt.unfit(unfit.update.silo, unfit.update.version, unfit.code, unfit.reason)
            except SiloLost as lost:
                self._give_back_without(lost, updates)
            if not self.rounds.due(self.attempt.enrolment.online, self.attempt.clock()):
                return None

    def _check_metrics(self, updates: Sequence[Update]) -> None:
        """Not at arrival: which of two updates is the odd one must not depend on which came first."""
        found = self.attempt.board.odd([update.metrics for update in updates])
        if found is not None:
            index, name = found
            raise UpdateUnfit(
                updates[index], "metrics", f"its sums of '{name}' do not add up with the others'"
            )

    async def _check_models(self, updates: Sequence[Update]) -> None:
        """Each was trained from the very model that was published, as its silo has signed."""
        strange = await self._models.strange(self.rounds.version, updates)
        if strange is not None:
            raise UpdateUnfit(strange, "receipt", "was trained from another model than the one published")

    def _cohort(self, updates: Sequence[Update]) -> CohortInfo:
        return cohort_of(self.attempt.balance, updates, self.rounds.version + 1, self.rounds.policy)

    async def _plain(self, updates: list[Update]) -> Folded:
        """One after the other, each in the clear. Raises `UpdateUnfit` and `SiloLost`."""
        fetch, cohort = Fetching(self.attempt, self._fetch_s()), self._cohort(updates)
        return Folded(updates, cohort, await self.attempt.model.fold(updates, cohort, fetch))

    def _fetch_s(self) -> float:
        """How long an update may take to come: to the round's deadline, and a patience where that is near or over."""
        if self.rounds.deadline == math.inf:
            return math.inf
        return max(self.rounds.deadline - self.attempt.clock(), self.attempt.patience_s)

    async def _summed(self, sums: SealedSums, updates: list[Update]) -> Folded:
        """What came of a sum that nobody can look into; who was lost on the way is not in it. Raises `SumFailed`."""
        model = self.attempt.model
        summed = await sums.fold(updates, self._cohort(updates), model.room(sum(model.layout.values())))
        for silo, why in sums.steps.lost.items():
            self.attempt.lost(silo, self.rounds.version, why)
        self._hear_refusals(sums)
        return Folded(summed.updates, self._cohort(summed.updates), summed.combined)

    def _hear_refusals(self, sums: SealedSums) -> None:
        for silo, refusal in sums.steps.refused.items():
            self.attempt.unfit(silo, self.rounds.version, refusal.code, refusal.reason)

    def _give_back_after(self, failed: SumFailed, updates: Sequence[Update]) -> None:
        """The sum was not opened: the updates of silos that did their part may be summed anew."""
        assert self._sums is not None
        steps = self._sums.steps
        unfit = failed.why.keys() - steps.lost.keys()
        again = any(each.code == "bound" for each in steps.refused.values())
        if (again or failed.bound & unfit) and self._drawn_anew(failed, updates):
            return
        if failed.bound:
            required = self.rounds.policy.required | failed.bound
            self.rounds.policy = self.rounds.policy.model_copy(update={"required": required})
        self.rounds.give_back([each for each in updates if each.silo not in failed.why])
        for update in updates:
            if update.silo in steps.lost:
                self._perished(update, steps.lost[update.silo])
            elif update.silo in unfit and update.silo not in steps.refused:
                self.attempt.unfit(update.silo, update.version, "sum", failed.why[update.silo])
        self._hear_refusals(self._sums)

    def _drawn_anew(self, failed: SumFailed, updates: Sequence[Update]) -> bool:
        """An update that was opened before, in a sum that this run has not kept or cannot have again, is summed with
        the same silos only. All train once more, on other batches, and sum that; False where it was tried often
        enough."""
        assert self._sums is not None
        draws, steps = self.attempt.draws, self._sums.steps
        if max(draws[update.silo, update.version] for update in updates) >= MOST_DRAWS:
            return False
        for update in updates:
            refusal = steps.refused.get(update.silo)
            if update.silo in steps.lost:
                self._perished(update, steps.lost[update.silo])
            elif refusal is not None and refusal.code != "bound":
                self.attempt.unfit(update.silo, update.version, refusal.code, refusal.reason)
            elif refusal is None and update.silo in failed.why:
                self.attempt.unfit(update.silo, update.version, "sum", failed.why[update.silo])
            else:
                self.rounds.spoilt(update)
                draws[update.silo, update.version] += 1
            if refusal is not None and refusal.code == "bound":
                self.attempt.refuse(update.silo, update.version, refusal.code, refusal.reason)
        return True

    def _give_back_without(self, lost: SiloLost, updates: Sequence[Update]) -> None:
        self.rounds.give_back([each for each in updates if each.silo != lost.silo])
        for update in (each for each in updates if each.silo == lost.silo):
            self._perished(update, lost.why)

    def _perished(self, update: Update, why: str) -> None:
        self.rounds.perished(update)
        self.attempt.lost(update.silo, update.version, why)
