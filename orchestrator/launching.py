"""A round's beginning: its version is published, and silos of the cohort are asked to train on it."""

from typing import Any

from orchestrator.attempt import Attempt
from orchestrator.core import events
from orchestrator.core.faults import fault
from orchestrator.core.messages import SiloId, Train
from orchestrator.published import PublishedModels

INLINE = 1 << 18
"""Elements of a packet that travel with the reply; larger ones are fetched while folding."""


class Launching:
    """Of one attempt at a run; holds the version that was published last, and what has been sent of it."""

    def __init__(self, attempt: Attempt, models: PublishedModels) -> None:
        self.attempt, self.rounds, self._models = attempt, attempt.rounds, models
        self._published: Any = None
        self.broadcast_bytes = 0
        """Of one copy of the version."""
        self.bytes_down = 0
        """Of all copies that went to silos."""

    async def publish(self) -> None:
        """Have the channel hold the version of the round that has just been opened."""
        broadcast = self.attempt.job.strategy.broadcast(self.attempt.model.state)
        self._published = await self.attempt.channel.publish(broadcast)
        self.broadcast_bytes = sum(part.nbytes for part in broadcast.values())
        self._models.publish(self.rounds.version, broadcast)
        self.bytes_down = 0

    def launch(self) -> None:
        """Set all to work that may begin now."""
        for silo in self.rounds.vacancies(self.attempt.enrolment.online):
            self.rounds.launched(silo)
            self.attempt.calls.start(silo, self._request(silo))
            self.bytes_down += self.broadcast_bytes
            version, attempt = self.rounds.version, self.rounds.attempts[silo]
            self.attempt.emit(events.SiloLaunched(silo=silo, version=version, attempt=attempt))
            fault("silo.launched")

    def _request(self, silo: SiloId) -> Train:
        attempt, head = self.attempt, self.attempt.store.head
        return Train(
            run_id=attempt.run_id,
            epoch=attempt.store.epoch,
            version=self.rounds.version,
            attempt=self.rounds.attempts[silo],
            model=self._published,
            model_digest=attempt.model.lineage,
            counted=self._counted(silo),
            ledger=attempt.ledgers.told(silo),
            num_steps=attempt.paces.steps(silo),
            inline=0 if attempt.job.sums is not None else INLINE,
            settings=attempt.model.settings,
            draw=attempt.draws[silo, self.rounds.version],
            keep=tuple(update.version for update in self.rounds.buffer if update.silo == silo),
            head=head.digest,
            head_length=head.length,
            contributors=tuple(sorted(attempt.folded)),
        )

    def _counted(self, silo: SiloId) -> int:
        """Version of the silo's newest update that is in the model, or waits to be folded."""
        waiting = (update.version for update in self.rounds.buffer if update.silo == silo)
        return max(self.attempt.folded.get(silo, -1), *waiting, -1)
