"""What is written down about the updates that went into a version."""

from collections.abc import Sequence

from orchestrator.core.events import Contributor
from orchestrator.core.messages import Update
from orchestrator.core.metrics import values
from orchestrator.pipeline import shares_of


def contributors(
    updates: Sequence[Update],
    discounts: Sequence[float],
    norms: Sequence[float],
    version: int,
    broadcast_bytes: int,
) -> list[Contributor]:
    """One entry per update, in the order of the sum; ``version`` is the one that the round opened with."""
    rows = zip(updates, shares_of(updates), discounts, norms, strict=True)
    return [
        _contributor(update, share * discount, norm, version, broadcast_bytes)
        for update, share, discount, norm in rows
    ]


def _contributor(update: Update, weight: float, norm: float, version: int, bytes_down: int) -> Contributor:
    return Contributor(
        silo=update.silo,
        base_version=update.version,
        staleness=version - update.version,
        weight=weight,
        num_examples=update.num_examples,
        num_steps=update.num_steps,
        norm=norm,
        train=values(update.train_metrics),
        seconds=update.seconds,
        bytes_up=update.packet_bytes,
        bytes_down=bytes_down,
    )
