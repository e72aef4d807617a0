"""What happens in a run as figures for Prometheus, by way of Ray's own metrics: each name gets the prefix ``ray_``.

A convenience beside the journal: what goes wrong here is said once, in the driver's log, and is no fault of the run.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from orchestrator.core.events import (
    Contributor,
    Event,
    Figures,
    RoundClosed,
    RunClosed,
    RunOpened,
    SiloDown,
    SiloJoined,
    UpdateRefused,
    VersionEvaluated,
)

SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600]
"""Upper ends of the buckets: a round lasts from parts of a second to an hour. Ray keeps the buckets only, so that a
histogram's sum is a guess; the gauges ``siloray_last_...`` are exact."""

_log = logging.getLogger(__name__)


class RunMetrics:
    """Takes the events of one run. Every figure has the tags ``run`` and ``job``; the figures of a silo, ``silo``."""

    def __init__(self, run_id: str) -> None:
        self._tags = {"run": run_id, "job": ""}
        self._made: dict[str, Any] = {}
        self._online: set[str] = set()
        self._broken = False

    def __call__(self, event: Event) -> None:
        if self._broken:
            return
        try:
            self._take(event)
        except Exception as error:
            self._broken = True
            _log.warning("no more metrics for Prometheus: %s: %s", type(error).__name__, error)

    def _take(self, event: Event) -> None:
        match event:
            case RunOpened():
                self._open(event)
            case SiloJoined() | SiloDown():
                self._presence(event)
            case UpdateRefused():
                self._count(
                    "siloray_updates_refused_total", "Updates refused", silo=event.silo, code=event.code
                )
            case RoundClosed():
                self._close(event)
            case VersionEvaluated():
                self._evaluate(event.evaluated)
            case RunClosed():
                self._gauge("siloray_run_ended", "1 once the run has ended", 1, status=event.status)

    def _open(self, event: RunOpened) -> None:
        self._tags["job"] = event.name
        total = event.job.get("rounds", {}).get("total", 0)
        self._gauge("siloray_rounds_planned", "Rounds that the job asks for", total)
        self._gauge("siloray_version", "Newest durable model version", event.resumed_from or 0)

    def _presence(self, event: SiloJoined | SiloDown) -> None:
        if isinstance(event, SiloJoined):
            self._online.add(event.silo)
        else:
            self._online.discard(event.silo)
            self._count("siloray_silo_lost_total", "Times that the silo was lost", silo=event.silo)
        self._gauge("siloray_silos_joined", "Silos that take part now", len(self._online))

    def _close(self, event: RoundClosed) -> None:
        self._gauge("siloray_version", "Newest durable model version", event.version)
        self._observe(
            "siloray_round_seconds", "From one round's opening to the next's", event.seconds.get("round", 0.0)
        )
        self._gauge(
            "siloray_last_round_seconds", "The same, of the last round", event.seconds.get("round", 0.0)
        )
        self._count("siloray_bytes_up_total", "Bytes from silos to the driver", event.bytes_up)
        self._count("siloray_bytes_down_total", "Bytes from the driver to silos", event.bytes_down)
        self._gauge("siloray_update_norm", "Norm of the last change of the model", event.update_norm)
        for each in event.contributors:
            self._contribute(each)
        self._evaluate(event.evaluated)

    def _contribute(self, update: Contributor) -> None:
        self._count("siloray_updates_total", "Updates that went into a version", silo=update.silo)
        self._gauge(
            "siloray_staleness_versions", "Age of the silo's last update", update.staleness, silo=update.silo
        )
        if "train" in update.seconds:
            seconds, silo = update.seconds["train"], update.silo
            self._observe("siloray_train_seconds", "Training of one update, at the silo", seconds, silo=silo)
            self._gauge("siloray_last_train_seconds", "The same, of the last update", seconds, silo=silo)

    def _evaluate(self, figures: Figures) -> None:
        for name, value in figures.overall.items():
            self._gauge("siloray_metric", "Newest figure over all silos", value, metric=name)
        for silo, values in figures.silos.items():
            for name, value in values.items():
                self._gauge("siloray_silo_metric", "Newest figure of one silo", value, silo=silo, metric=name)

    def _count(self, name: str, what: str, by: float = 1.0, **tags: str) -> None:
        if by > 0:
            self._of(Counter, name, what, tags).inc(by, self._tags | tags)

    def _gauge(self, name: str, what: str, value: float, **tags: str) -> None:
        self._of(Gauge, name, what, tags).set(value, self._tags | tags)

    def _observe(self, name: str, what: str, value: float, **tags: str) -> None:
        def make(name: str, description: str, tag_keys: tuple[str, ...]) -> Histogram:
            return Histogram(name, description, SECONDS, tag_keys)

        self._of(make, name, what, tags).observe(value, self._tags | tags)

    def _of(self, kind: Callable[..., Any], name: str, what: str, tags: Mapping[str, str]) -> Any:
        if name not in self._made:
            self._made[name] = kind(name, description=what, tag_keys=(*self._tags, *tags))
        return self._made[name]
