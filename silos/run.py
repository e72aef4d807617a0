"""The run that a silo has in hand, and what it says of itself and of its work there."""

import base64
import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.core.errors import BadJob
from orchestrator.core.messages import Assess, Assessed, Attack, Attacked, Joined, Judged, Train, Update
from orchestrator.core.metrics import MetricSums, values
from orchestrator.core.vector import Layout, Packet
from orchestrator.core.versions import versions
from orchestrator.job import Job
from orchestrator.privacy.accountant import Query
from orchestrator.privacy.fixed_point import Shapes, extra, shapes_of
from orchestrator.privacy.sealing import settings_digest
from silos.metrics_rule import MetricsRule
from silos.odometer import Spent
from silos.site import Assessment, Cancelled, Findings, Order, Site, Trained, Trainer
from silos.spending import Spend
from silos.sum_terms import not_told


@dataclass(frozen=True, slots=True)
class Run:
    """By its id, with the model and the data that are open for it."""

    id: str
    job: Job
    site: Site
    trainer: Trainer
    num_examples: dict[str, int]
    """As the driver was told: empty where the policy keeps them in."""

    @classmethod
    def of(cls, id: str, job: Job, site: Site, trainer: Trainer) -> "Run":
        """With the numbers that may leave now."""
        return cls(id, job, site, trainer, site.counts(trainer))

    def joined(self, incarnation: str) -> Joined:
        """The silo's description of itself. Raises `Cancelled` where the whole job costs more privacy than there is."""
        self.settle()
        data = self.site.files_fingerprint(self.job)
        planned = self.site.guard.planned(self.job, self.id, data, self.plan())
        return Joined(
            silo=self.site.name,
            incarnation=incarnation,
            schema_digest=self.trainer.schema_digest,
            num_parameters=self.trainer.num_parameters,
            num_shared=self.trainer.num_shared,
            num_examples=self.num_examples,
            quarantined=self.site.quarantined(),
            labels=self.site.labels(),
            fingerprint=self.site.fingerprint(self.job),
            device=self.trainer.device,
            node=platform.node(),
            loaded=self.trainer.loaded,
            model=self.trainer.describe(),
            versions=versions(),
            key=base64.b64encode(self.site.identity.public).decode(),
            metrics=self.site.metrics_rule.mode,
            planned=self._figures(planned),
        )

    def settle(self, order: Order | None = None) -> None:
        """Find the noise of a job that states what it may cost; see `Trainer.settle`. Raises `Cancelled`."""
        spec = self.job.dp_sgd
        if spec is None or spec.target_epsilon is None or self.site.name not in self.job.training:
            return
        had = self.site.guard.had(self.job, self.site.files_fingerprint(self.job))
        try:
            self.trainer.settle(had, self.id, order)
        except BadJob as error:
            raise Cancelled("policy", f"{self.site.name}: {error}") from None

    def plan(self) -> list[Spend]:
        """What the job will ask of the data, if this silo is in every round and every evaluation."""
        rounds = range(self.job.rounds.total) if self.site.name in self.job.training else ()
        looks, rule = self.job.report.num_evaluations(len(self.job.training)), self.site.metrics_rule
        trainings = (self._with_figures(self.trainer.most(version), rule) for version in rounds)
        return [*(spend for each in trainings for spend in each), *rule.spend * looks]

    def spends(self, order: Order, rule: MetricsRule) -> list[Spend]:
        """What one training costs. Raises `Cancelled` as `settle` does."""
        self.settle(order)
        return self._with_figures(self.trainer.spends(order), rule)

    def _with_figures(self, training: Spend | None, rule: MetricsRule) -> list[Spend]:
        """With the update's part in a noised sum, and the figures that come with it."""
        own, multiplier = [] if training is None else [training], self.job.facts.noise_multiplier
        if self.job.noise is not None and multiplier is not None:
            own.append(Spend(Query(1.0, multiplier, 1), unit="silo"))
        return [*own, *rule.spend]

    def update(
        self,
        request: Train,
        trained: Trained,
        packet: Packet,
        pack_s: float,
        received: str,
        rule: MetricsRule,
        spent: Spent | None,
    ) -> Update:
        """What came of a training. Without numbers it counts as one example, and says nothing of its steps."""
        layout = Layout.of(trained.parts)
        figures = self.in_sums(trained.metrics, rule, request.draw)
        told, summed = self.told(trained.metrics, rule), shapes_of(figures)
        open_ = bool(self.num_examples)
        num_examples, num_steps = (trained.num_examples, trained.num_steps) if open_ else (1, 0)
        return Update(
            silo=self.site.name,
            run_id=request.run_id,
            epoch=request.epoch,
            version=request.version,
            attempt=request.attempt,
            model_digest=request.model_digest,
            job_digest=self.job.digest,
            layout=tuple(zip(layout.names, layout.sizes, strict=True)),
            weight=self.job.combine.weight(self.site.name, num_examples),
            num_examples=num_examples,
            num_steps=num_steps,
            scalars=trained.scalars,
            metrics=told,
            train_metrics=self.told(trained.train_metrics, rule),
            seconds={**trained.seconds, "pack": pack_s},
            packet_bytes=self._num_bytes(packet, layout.size, summed),
            received=received,
            summed=summed,
            hidden=not_told(figures, told),
            settings=settings_digest(request.settings) if self.job.sums else "",
            draw=request.draw,
            privacy=self._figures(spent),
            ledger=None if spent is None else spent.head,
        )

    def _figures(self, spent: Spent | None) -> dict[str, float]:
        """Of the privacy spent, as far as they may leave."""
        return {} if spent is None or (spent.of_rows and not self.num_examples) else spent.figures

    def told(self, metrics: MetricSums, rule: MetricsRule) -> MetricSums:
        """Figures that were made under this rule, as far as they may leave; none where another one holds by now."""
        return self.site.release(metrics) if self.site.metrics_rule == rule else {}

    def in_sums(self, metrics: MetricSums, rule: MetricsRule, draw: int) -> MetricSums:
        """What of them goes into a sum. Those of a model are the same with every training from it, so that what only a
        sum shows is in the first sum alone."""
        if self.job.sums is None:
            return {}
        return self.told(metrics, rule) if draw else self.site.release_in_sums(metrics)

    def _num_bytes(self, packet: Packet, size: int, summed: Shapes) -> int:
        """Of what will leave."""
        sums = self.job.sums
        if sums is None:
            return sum(array.nbytes for array in packet.values())
        return sums.packet_bytes(size + extra(summed), sums.fixed_point(self.job.max_in_sum))

    def ruled(self, found: Assessment, rule: MetricsRule) -> Assessment:
        """What may be told of an assessment. With noise, of the received model only: the others were made from training
        rows, without any. Intervals, and what was accepted, tell of single rows."""
        if rule.mode == "open":
            return found
        seen = found.models.get("global") if rule.mode == "noised" else None
        models = {} if seen is None else {"global": Judged(rule.of_test(seen.metrics), {}, {}, {})}
        return replace(found, models=models, curve=(), accepted=0)

    def assessed(self, request: Assess, found: Assessment) -> Assessed:
        """What came of an assessment; its models and curve as the silo knows them."""
        return Assessed(
            silo=self.site.name,
            version=request.version,
            model_digest=request.model_digest,
            models=dict(found.models),
            curve=found.curve,
            accepted=found.accepted,
            num_steps=found.num_steps if self.num_examples else 0,
            seconds=found.seconds,
        )

    def attacked(self, request: Attack, found: Findings) -> Attacked:
        """The vote, and what else of the findings may leave: scores are figures on the silo's rows, too."""
        told = self.site.tell(found)
        scores = told.scores if self.site.metrics_rule.mode == "open" else {}
        return Attacked(
            silo=self.site.name,
            version=request.version,
            model_digest=request.model_digest,
            vote=found.vote,
            verdicts=dict(told.verdicts),
            scores=dict(scores),
            why="; ".join(f"{name}: {why}" for name, why in told.why.items()),
            seconds=sum(found.seconds.values()),
        )

    def card(self, request: Assess, found: Assessment) -> dict[str, Any]:
        """What the silo knows of the model that it keeps. Whose updates are in it the driver knows."""
        assert found.own is not None
        entries = self.trainer.describe()["entries"]
        return {
            "model": found.own.kind,
            "silo": self.site.name,
            "run": self.id,
            "version": request.version,
            "model_digest": request.model_digest,
            "job": self.job.name,
            "job_digest": self.job.digest,
            "strategy": self.job.strategy.name,
            "task": self.job.task.model_dump(mode="json"),
            "silos": list(self.job.silos),
            "own_updates": request.trainings,
            "private": [each["name"] for each in entries if not each["shared"] and not each["frozen"]],
            "accepted_steps": found.accepted,
            "num_examples": self.trainer.num_examples,
            "metrics": {name: values(each.metrics) for name, each in found.models.items()},
            "kept_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }

    def released(self, judged: Judged, rule: MetricsRule) -> Judged:
        """What may leave: an interval's width would tell the number of rows where that is kept in."""
        metrics = self.told(judged.metrics, rule)
        bounds = (judged.intervals, judged.gains) if self.num_examples else ({}, {})
        intervals, gains = ({name: each[name] for name in metrics if name in each} for each in bounds)
        verdicts = {name: judged.verdicts[name] for name in metrics if name in judged.verdicts}
        return Judged(metrics, intervals, gains, verdicts)
