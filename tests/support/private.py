"""Quadratic silos that say what a training costs, and have figures of both kinds: bounded and not."""

from dataclasses import replace

from orchestrator.core.messages import Judged
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.privacy.accountant import Query
from silos.site import Assessment, Order, Trained
from silos.spending import Spend
from tests.support.quadratic import QuadraticTrainer

LOUD = Spend(Query(1.0, 4.0, 1))
"""Epsilon 0.93 at delta 1e-5, by itself."""
LOSS = Sums("mean", (40.0, 90.0))
RIGHT = Sums("mean", (6000.0, 9000.0))


class Private(QuadraticTrainer):
    """Costs the same each time."""

    spend: Spend | None = LOUD

    def spends(self, order: Order) -> Spend | None:
        return self.spend

    def most(self, version: int) -> Spend | None:
        return self.spend

    def evaluate(self, order: Order) -> MetricSums:
        return {"loss": LOSS, "accuracy": RIGHT}

    def train(self, order: Order) -> Trained:
        return replace(super().train(order), train_metrics={"loss": LOSS})

    def assess(self, order: Order) -> Assessment:
        bounds, gains = {"accuracy": (0.6, 0.7)}, {"accuracy": (0.0, 0.1)}
        seen = Judged(self.evaluate(order), bounds, gains, {"accuracy": "same"})
        curve = ((1, self.evaluate(order)),)
        return Assessment(
            models={"global": seen, "alone": seen}, curve=curve, accepted=3, num_steps=5, seconds={}
        )


class Open(Private):
    """Trains without noise."""

    spend = None
