"""What a run does for each of its silos, from their assessments. Pure.

A silo is *harmed* where the global model is worse for it than one trained on its rows alone by more than the noise of
its test rows: where all of the 95 % interval of the paired difference lies on the wrong side of zero. A difference
within the interval, and a tie, harms nobody. That allows for the noise of the rows, not for that of training.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from orchestrator.core.events import Assessment, RunAssessed, SiloAssessed, Spread
from orchestrator.core.metrics import larger_is_better


def spread(figures: Mapping[str, float], metric: str) -> Spread:
    """Of a figure over silos; there is at least one."""
    rises, values = larger_is_better(metric), list(figures.values())
    worst = (min if rises else max)(figures, key=lambda silo: figures[silo])
    return Spread(
        mean=statistics.fmean(values),
        std=statistics.pstdev(values),
        worst=figures[worst],
        worst_silo=worst,
        p10=float(np.quantile(values, 0.1 if rises else 0.9)),
        jain=jain(values),
    )


def jain(values: Sequence[float]) -> float | None:
    """``(sum a)^2 / (N sum a^2)``: 1 where all have the same, 1/N where one has all (Jain et al. 1984)."""
    squares = sum(value * value for value in values)
    if min(values) < 0 or squares == 0:
        return None
    return float(sum(values) ** 2 / (len(values) * squares))


def judged(
    assessed: Iterable[SiloAssessed], silos: Sequence[str], version: int, metric: str, block: bool
) -> RunAssessed:
    """All together. ``silos``: those that trained; ``block``: a verdict against the model keeps the alias."""
    by_silo = {each.silo: each for each in sorted(assessed, key=lambda each: each.silo)}
    trained = {silo: each for silo, each in by_silo.items() if not each.held_out}
    apart = {silo: each for silo, each in by_silo.items() if each.held_out}
    compared = any("alone" in each.models for each in trained.values())
    benefit = {silo: gain for silo, each in trained.items() if (gain := _benefit(each, metric)) is not None}
    verdicts = {silo: _verdict(each, metric) for silo, each in trained.items()}
    harmed = sorted(silo for silo, said in verdicts.items() if said == "worse")
    unknown = sorted(silo for silo in silos if verdicts.get(silo) is None) if compared else []
    return RunAssessed(
        version=version,
        metric=metric,
        spreads=_spreads(trained, metric),
        held_out={**_spreads(apart, metric), **_curve(apart, metric)},
        benefit=benefit,
        worse=sorted(silo for silo, gain in benefit.items() if gain < 0),
        harmed=harmed,
        unknown=unknown,
        do_no_harm=not harmed and not unknown if compared else None,
        blocked=block and bool(harmed),
    )


def _verdict(each: SiloAssessed, metric: str) -> str | None:
    model = each.models.get("global")
    return None if model is None else model.verdicts.get(metric)


def _benefit(each: SiloAssessed, metric: str) -> float | None:
    ours, alone = (_figure(each.models.get(name), metric) for name in ("global", "alone"))
    if ours is None or alone is None:
        return None
    return ours - alone if larger_is_better(metric) else alone - ours


def _figure(model: Assessment | None, metric: str) -> float | None:
    return None if model is None else model.metrics.get(metric)


def _spreads(assessed: Mapping[str, SiloAssessed], metric: str) -> dict[str, Spread]:
    """By model, over the silos that have it."""
    found = {}
    for name in sorted({model for each in assessed.values() for model in each.models}):
        figures = {silo: _figure(each.models.get(name), metric) for silo, each in assessed.items()}
        known = {silo: value for silo, value in figures.items() if value is not None}
        if known:
            found[name] = spread(known, metric)
    return found


def _curve(assessed: Mapping[str, SiloAssessed], metric: str) -> dict[str, Spread]:
    points: dict[int, dict[str, float]] = {}
    for silo, each in assessed.items():
        for point in each.curve:
            if metric in point.metrics:
                points.setdefault(point.steps, {})[silo] = point.metrics[metric]
    return {f"after {steps} steps": spread(figures, metric) for steps, figures in sorted(points.items())}
