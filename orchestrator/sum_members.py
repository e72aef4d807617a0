"""What silos bring to a sum: which updates, and which metrics."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.core.messages import SiloId, Update
from orchestrator.privacy.sealing import Member

MOST_UPDATES = 2
"""Of one silo in a sum: the newest ones."""


def newest(updates: Sequence[Update], factors: Sequence[float]) -> tuple[list[Update], list[float]]:
    """The newest updates of each silo, as many as a sum has room for, and their factors."""
    pairs = list(zip(updates, factors or (1.0,) * len(updates), strict=True))
    kept = [
        pair
        for i, pair in enumerate(pairs)
        if sum(later.silo == pair[0].silo for later, _ in pairs[i + 1 :]) < MOST_UPDATES
    ]
    return [update for update, _ in kept], [factor for _, factor in kept]


def members_of(updates: Sequence[Update], factors: Sequence[float]) -> dict[SiloId, Member]:
    """By silo."""
    by_silo: dict[SiloId, list[tuple[Update, float]]] = {}
    for update, factor in zip(updates, factors, strict=True):
        by_silo.setdefault(update.silo, []).append((update, factor))
    return {
        silo: Member(
            silo,
            tuple(update.version for update, _ in brought),
            tuple(update.received for update, _ in brought),
            tuple(factor for _, factor in brought),
            tuple(update.settings for update, _ in brought),
            brought[-1][0].hidden,
            tuple(update.draw for update, _ in brought),
        )
        for silo, brought in by_silo.items()
    }


def usual_shapes(all_shapes: Iterable[Any]) -> tuple[tuple[str, str, int], ...]:
    """Metrics of the sum, each in the shape that most silos have; one that has it not adds nothing."""
    said = Counter((name, kind, size) for shapes in all_shapes for name, kind, size in shapes)
    usual: dict[str, tuple[str, str, int]] = {}
    for shape, _ in sorted(said.items(), key=lambda each: (-each[1], each[0])):
        usual.setdefault(shape[0], shape)
    return tuple(usual[name] for name in sorted(usual))
