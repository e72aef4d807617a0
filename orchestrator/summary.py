"""What a run came to, made from its journal alone: pure in `summarise`, one file in `write_summary`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.core.events import Event, Figures, parse
from orchestrator.disk import put
from orchestrator.history import History
from orchestrator.journal import JOURNAL, read_journal

SUMMARY = "summary.json"

_CONTRIBUTOR = {"silo", "weight", "staleness", "base_version", "num_examples", "num_steps", "norm", "privacy"}


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Makes ``summary.json`` from the run's journal, in place of an older one, and returns it."""
    summary = read_summary(run_dir)
    put(run_dir / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The summary of a run as far as it has come. Raises JournalDamaged."""
    lines, _ = read_journal(run_dir / JOURNAL)
    return summarise(parse(lines))


def summarise(events: Iterable[Event]) -> dict[str, Any]:
    """The content of ``summary.json``. ``status`` is ``unfinished`` as long as the run has not ended."""
    seen = History.of(events)
    return {
        **_identity(seen),
        "initial": {"metrics": _metrics(seen.figures.get(0))},
        "versions": [_version(seen, version) for version in sorted(seen.rounds)],
        "mode": _fields(seen.mode, "version", "mode", "reason", "seconds") if seen.mode else None,
        "refused": [_fields(each, "version", "silo", "code", "reason") for each in seen.refused],
        "lost": [_fields(each, "version", "silo", "why", "time") for each in seen.lost],
        "declined": [_fields(each, "silo", "code", "reason") for each in seen.declined.values()],
        "busy": [_fields(each, "silo", "reason", "time") for each in seen.busy],
        "turned_away": [
            _fields(each, "who", "code", "reason", "times") for each in seen.turned_away.values()
        ],
        "best": _best(seen),
        "never_contributed": _never(seen),
        "silos": {name: _silo(seen, name) for name in seen.silos},
        "report": _report(seen),
        "release": _release(seen),
        "drift": [
            _fields(each, "silo", "version", "signals", "norm", "cosine", "loss") for each in seen.alarms
        ],
        "resumed": max(0, seen.num_opened - 1),
        "redone_rounds": seen.num_dropped + sum(version in seen.rounds for version in seen.in_hand),
    }


def _fields(event: Event, *names: str) -> dict[str, Any]:
    return {name: getattr(event, name) for name in names}


def _identity(seen: History) -> dict[str, Any]:
    opened, closed = seen.opened, seen.closed
    return {
        "run_id": opened.run_id if opened else None,
        "name": opened.name if opened else None,
        "status": closed.status if closed else "unfinished",
        "reason": closed.reason if closed else "",
        "job_digest": opened.job_digest if opened else None,
        "parameters_digest": closed.parameters_digest if closed else None,
        "simulated": seen.simulated is not None,
        "total_rounds": opened.job.get("rounds", {}).get("total") if opened else None,
        "started": seen.started,
        "ended": seen.ended,
    }


def _metrics(figures: Figures | None) -> dict[str, Any]:
    if figures is None:
        return {"global": {}, "silos": {}}
    return {"global": figures.overall, "silos": figures.silos}


def _version(seen: History, version: int) -> dict[str, Any]:
    closed, figures = seen.rounds[version], seen.figures.get(version)
    return {
        "version": version,
        "contributors": [each.model_dump(include=_CONTRIBUTOR) for each in closed.contributors],
        "metrics": _metrics(figures),
        "missing": figures.missing if figures else seen.silos,
        "seconds": closed.seconds,
        "bytes_up": closed.bytes_up,
        "bytes_down": closed.bytes_down,
        "update_norm": closed.update_norm,
        "lineage": closed.lineage,
    }


def _best(seen: History) -> dict[str, Any] | None:
    """As the run's end names it; of an unfinished run, the last version that was marked."""
    closed = seen.closed
    if closed is not None and closed.best_version is not None:
        return {"version": closed.best_version, "metric": closed.best_metric, "value": closed.best_value}
    if seen.best is None or seen.opened is None:
        return None
    metric = seen.opened.job.get("stop", {}).get("metric", "loss")
    return {"version": seen.best, "metric": metric, "value": seen.figures[seen.best].overall.get(metric)}


def _never(seen: History) -> list[str]:
    if seen.closed is not None:
        return seen.closed.never_contributed
    given = {each.silo for closed in seen.rounds.values() for each in closed.contributors}
    held_out = seen.opened.job.get("held_out", []) if seen.opened else []
    return [name for name in seen.silos if name not in given and name not in held_out]


def _report(seen: History) -> dict[str, Any] | None:
    """What the end of the run says of each silo; None where nothing was assessed."""
    verdict = seen.verdict
    if verdict is None:
        return None
    assessed = {silo: each for silo, each in seen.assessed.items() if each.version == verdict.version}
    ordered = [silo for silo in seen.silos if silo in assessed]
    drop = {"seq", "time", "type"}
    return {
        **verdict.model_dump(exclude=drop),
        "silos": {silo: assessed[silo].model_dump(exclude={*drop, "silo", "version"}) for silo in ordered},
        "contributions": seen.contributions.model_dump(exclude=drop) if seen.contributions else None,
    }


def _release(seen: History) -> dict[str, Any] | None:
    """The vote on the best version; None where there was none."""
    voted = seen.release
    if voted is None:
        return None
    drop = {"seq", "time", "type"}
    said = {silo: seen.attacked[silo] for silo in seen.silos if silo in seen.attacked}
    return {
        **voted.model_dump(exclude=drop),
        "silos": {
            silo: each.model_dump(exclude={*drop, "silo", "version", "lineage", "receipt"})
            for silo, each in said.items()
            if each.lineage == voted.lineage
        },
    }


def _silo(seen: History, name: str) -> dict[str, Any]:
    """``first`` and ``last``: the silo's figures of the earliest and the latest version that it evaluated."""
    joined = seen.joined.get(name)
    own = [figures.silos[name] for _, figures in sorted(seen.figures.items()) if name in figures.silos]
    return {
        "num_examples": joined.num_examples if joined else {},
        "quarantined": joined.quarantined if joined else {},
        "labels": joined.labels if joined else {},
        "fingerprint": joined.fingerprint if joined else None,
        "planned": joined.planned if joined else {},
        "metrics": joined.metrics if joined else "open",
        "privacy": seen.spent.get(name, {}),
        "first": own[0] if own else {},
        "last": own[-1] if own else {},
    }
