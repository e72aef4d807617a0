"""Contributions at the driver: models of coalitions, made of the silos' sums, are measured by every silo that trained.

The utility of a model is the job's metric pooled over the test rows of all silos that trained. A silo that does not
measure one of them leaves no comparable utilities: then there are no values, and the run says why.
"""

import asyncio
from typing import Literal

from orchestrator.attempt import Attempt
from orchestrator.contribution import Coalition, Rule, exact_shapley, leave_one_out, sampled_shapley
from orchestrator.core import events
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Evaluate, Evaluated, SiloId
from orchestrator.core.metrics import MetricSums, larger_is_better, pooled
from orchestrator.gate import unsound
from orchestrator.report import EXACT
from orchestrator.shares import Shares

Method = Literal["leave_one_out", "shapley", "sampled_shapley"]


class NotValued(Exception):
    """Why there are no values."""


async def value(attempt: Attempt) -> None:
    """Find and record what each silo's updates are worth, where the job asks for it and it is not known yet."""
    shares, known = attempt.model.shares, attempt.valued
    if shares is None or (known is not None and known.lineage == attempt.model.lineage):
        return
    attempt.emit(await _Valuing(attempt, shares).found())


class _Valuing:
    def __init__(self, attempt: Attempt, shares: Shares) -> None:
        self.attempt, self.shares = attempt, shares
        self.metric, self.sign = (
            attempt.job.stop.metric,
            1.0 if larger_is_better(attempt.job.stop.metric) else -1.0,
        )
        self.measured: dict[Coalition, float] = {}
        """The metric by coalition."""

    async def found(self) -> events.ContributionsFound:
        shares, state = self.shares, self.attempt.model.state
        method, rule = self._rule()
        worths: list[events.Worth] = []
        why_not = ""
        try:
            worths = await self._played(rule)
        except NotValued as why:
            why_not = str(why)
        return events.ContributionsFound(
            lineage=self.attempt.model.lineage,
            method=method,
            metric=self.metric,
            worths=worths,
            initial=self.measured.get(frozenset()),
            final=self.measured.get(frozenset(shares.silos)),
            unexplained=await asyncio.to_thread(shares.unexplained, state),
            num_evaluations=len(self.measured),
            why_not=why_not,
        )

    def _rule(self) -> tuple[Method, Rule]:
        job, silos = self.attempt.job, self.shares.silos
        if job.report.contribution == "leave_one_out":
            return "leave_one_out", leave_one_out(silos)
        if len(silos) <= EXACT:
            return "shapley", exact_shapley(silos)
        return "sampled_shapley", sampled_shapley(silos, job.seed, job.report.permutations)

    async def _played(self, rule: Rule) -> list[events.Worth]:
        """The rule's answer, once it has had the utility of every coalition that it asks for."""
        try:
            coalition = next(rule)
            while True:
                coalition = rule.send(self.sign * await self._utility(coalition))
        except StopIteration as end:
            found: list[events.Worth] = end.value
            return found

    async def _utility(self, coalition: Coalition) -> float:
        attempt, silos = self.attempt, sorted(self.shares.silos)
        model = await asyncio.to_thread(self.shares.model, coalition, attempt.model.state["params"].size)
        published = await attempt.channel.publish(model)
        replies = await asyncio.gather(
            *(self._ask(silo, published) for silo in silos), return_exceptions=True
        )
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        sums = [reply for reply in replies if not isinstance(reply, BaseException)]
        try:
            value = pooled(sums)[self.metric].value
        except (KeyError, ValueError):
            value = None
        if value is None:
            raise NotValued(f"the silos' sums give no '{self.metric}'")
        self.measured[coalition] = value
        return value

    async def _ask(self, silo: SiloId, published: object) -> MetricSums:
        attempt = self.attempt
        if silo not in attempt.enrolment.online:
            raise NotValued(f"{silo} is not there to measure")
        request = Evaluate(
            run_id=attempt.run_id,
            epoch=attempt.store.epoch,
            version=attempt.model.version,
            model=published,
            counted=attempt.folded.get(silo, -1),
        )
        try:
            reply = await attempt.calls.ask(silo, request)
        except SiloLost as lost:
            attempt.emit(
                events.SiloDown(silo=silo, version=request.version, why=f"contributions: {lost.why}")
            )
            raise NotValued(str(lost)) from None
        if not isinstance(reply, Evaluated) or unsound(reply.metrics) is not None:
            raise NotValued(f"{silo} did not measure: {getattr(reply, 'reason', 'no sound sums')}")
        return reply.metrics
