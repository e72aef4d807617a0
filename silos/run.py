"""The run that a silo has in hand, and what it says of itself and of its work there."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.core.messages import Assess, Assessed, Joined, Judged, Train, Update
from orchestrator.core.metrics import values
from orchestrator.core.vector import Layout, Packet
from orchestrator.core.versions import versions
from orchestrator.job import Job
from silos.site import Assessment, Site, Trained, Trainer


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
        """The silo's description of itself."""
        return Joined(
            silo=self.site.name,
            incarnation=incarnation,
            schema_digest=self.trainer.schema_digest,
            num_parameters=self.trainer.num_parameters,
            num_shared=self.trainer.num_shared,
            num_examples=self.num_examples,
            fingerprint=self.site.fingerprint(self.job),
            device=self.trainer.device,
            node=platform.node(),
            loaded=self.trainer.loaded,
            model=self.trainer.describe(),
            versions=versions(),
        )

    def update(self, request: Train, trained: Trained, packet: Packet, pack_s: float) -> Update:
        """What came of a training. Without numbers it counts as one example, and says nothing of its steps."""
        layout = Layout.of(trained.parts)
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
            metrics=self.site.release(trained.metrics),
            train_metrics=self.site.release(trained.train_metrics),
            seconds={**trained.seconds, "pack": pack_s},
            packet_bytes=sum(array.nbytes for array in packet.values()),
        )

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

    def released(self, judged: Judged) -> Judged:
        """What may leave: an interval's width would tell the number of rows where that is kept in."""
        metrics = self.site.release(judged.metrics)
        bounds = (judged.intervals, judged.gains) if self.num_examples else ({}, {})
        intervals, gains = ({name: each[name] for name in metrics if name in each} for each in bounds)
        verdicts = {name: judged.verdicts[name] for name in metrics if name in judged.verdicts}
        return Judged(metrics, intervals, gains, verdicts)
