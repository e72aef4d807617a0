"""What is written down about the updates that went into a version."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from orchestrator.core.events import Contributor
from orchestrator.core.messages import SiloId, Update
from orchestrator.core.metrics import values
from orchestrator.pipeline import Combined


def contributors(
    updates: Sequence[Update],
    combined: Combined,
    version: int,
    broadcast_bytes: int,
    privacy: Mapping[SiloId, Mapping[str, float]] = MappingProxyType({}),
) -> list[Contributor]:
    """One entry per update, in the order of the sum; ``version`` is the one that the round opened with. ``privacy``:
    what the version costs each silo, besides what the silos say themselves."""
    rows = zip(updates, combined.weights, combined.norms, combined.cosines, strict=True)
    return [
        _contributor(*row, version, broadcast_bytes, privacy.get(update.silo, {}))
        for update, row in zip(updates, rows, strict=True)
    ]


def timed(update: Update, took_s: float) -> Update:
    """With what the call took besides the silo's own work, as far as the driver can see it."""
    transfer_s = max(0.0, took_s - math.fsum(update.seconds.values()))
    return replace(update, seconds={**update.seconds, "transfer": transfer_s})


def _contributor(
    update: Update,
    weight: float,
    norm: float | None,
    cosine: float | None,
    version: int,
    bytes_down: int,
    privacy: Mapping[str, float],
) -> Contributor:
    return Contributor(
        silo=update.silo,
        base_version=update.version,
        staleness=version - update.version,
        weight=weight,
        num_examples=update.num_examples,
        num_steps=update.num_steps,
        norm=norm,
        cosine=cosine,
        train=values(update.train_metrics),
        seconds=update.seconds,
        bytes_up=update.packet_bytes,
        privacy={**update.privacy, **privacy},
        receipt=update.receipt,
        bytes_down=bytes_down,
    )
