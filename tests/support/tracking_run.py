"""Writes a run directory as a driver would, with made-up figures: what the tests of tracking follow."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.core.events import (
    Contributor,
    Event,
    Figures,
    ModelReady,
    RoundClosed,
    RunClosed,
    RunOpened,
    SiloDown,
    SiloJoined,
    UpdateRefused,
    VersionEvaluated,
)
from orchestrator.job import Job
from orchestrator.store import Store, checkpoint_name

SILOS = ("cleveland", "hungarian", "switzerland", "va")
ROWS = {"cleveland": 199, "hungarian": 172, "switzerland": 30, "va": 85}
FEATURES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope")
MODEL = {
    "entries": [
        {"name": "weight", "shape": [1, len(FEATURES)], "kind": "param", "shared": True},
        {"name": "bias", "shape": [1], "kind": "param", "shared": True},
    ],
    "input_shape": [len(FEATURES)],
    "input_dtype": "float32",
}


def job(total: int = 12, **more: Any) -> Job:
    document = {
        "name": "heart-disease",
        "task": {"name": "tabular", "dataset": "heart", "target": "num", "features": list(FEATURES)},
        "silos": list(SILOS),
        "rounds": {"mode": "sync", "total": total},
        "local": {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.03}},
        "stop": {"metric": "accuracy"},
        "tracking": {"experiment": "heart-disease", "every": 5},
        **more,
    }
    return Job.model_validate(document)


class Recorder:
    """A driver without silos: it appends the events of a run, and commits checkpoints of random weights."""

    def __init__(
        self, run_dir: Path, job: Job, run_id: str = "heart-disease-1", size: int = len(FEATURES) + 1
    ) -> None:
        self.job, self.run_id, self.size = job, run_id, size
        self.run_dir = run_dir
        self.store = Store(run_dir, keep=3)
        self.longest_s = 0.0
        """The longest that one append waited for anything."""
        self.model: dict[str, Any] | None = MODEL
        """None leaves the run without a description of its model, so that no time goes into logging models."""
        self.seed = 0
        """Another seed gives other outcomes."""

    def open(self, resumed_from: int | None = None) -> None:
        self.store.acquire("test")
        self.store.recover()
        self._append(
            RunOpened(
                run_id=self.run_id,
                name=self.job.name,
                job=self.job.model_dump(mode="json"),
                job_digest=self.job.digest,
                epoch=self.store.epoch,
                versions={"python": "3.11", "torch": "2.15"},
                resumed_from=resumed_from,
            )
        )
        for silo in self.job.silos:
            self._append(
                SiloJoined(
                    silo=silo,
                    incarnation="1",
                    fingerprint=f"sha256:{silo}",
                    num_examples={"train": ROWS.get(silo, 100), "test": 50},
                    num_parameters=self.size,
                    num_shared=self.size,
                    device="cpu",
                    node=f"{silo}-node",
                    versions={"python": "3.11"},
                )
            )
        if resumed_from is None and self.model is not None:
            ready = ModelReady(
                version=0,
                num_shared=self.size,
                schema_digest="0",
                model=self.model,
                checkpoint=checkpoint_name(0),
            )
            self.store.commit(0, self.state(0), _line(ready), {})

    def state(self, version: int) -> dict[str, np.ndarray]:
        return {"params": np.random.default_rng(version).normal(size=self.size).astype(np.float32)}

    def round(self, version: int) -> None:
        """Closes the round that makes ``version``."""
        if version == 3:
            self._append(UpdateRefused(silo="va", version=2, code="nonfinite", reason="NaN in the update"))
            self._append(SiloDown(silo="hungarian", version=2, why="its process ended"))
        began = _waited()
        event = closed(self.job.silos, version, self.seed)
        if version % self.job.tracking.every == 0:
            self.store.pins.add(version)
        self.store.commit(version, self.state(version), _line(event), {})
        self.longest_s = max(self.longest_s, _waited() - began)

    def close(self, version: int, status: str = "done") -> None:
        if status == "done":
            self._append(VersionEvaluated(evaluated=figures(self.job.silos, version, self.seed), best=True))
        ended = RunClosed(
            status=status,
            reason="all rounds done",
            version=version,
            parameters_digest="ab" * 32,
            best_version=version,
            best_metric="accuracy",
            best_value=0.8,
        )
        self._append(ended, durable=True)
        self.release()

    def release(self) -> None:
        self.store.release()

    def _append(self, event: Event, durable: bool = False) -> None:
        began = _waited()
        self.store.append(_line(event), durable)
        self.longest_s = max(self.longest_s, _waited() - began)


def figures(silos: tuple[str, ...], version: int, seed: int = 0) -> Figures:
    """Learning curves that differ by silo."""
    rng = np.random.default_rng((version, seed))
    each = {}
    for index, silo in enumerate(silos):
        best = 0.88 - 0.06 * index
        accuracy = best - (best - 0.5) * math.exp(-version / (3 + index)) + rng.normal() * 0.008
        loss = 0.35 + 0.05 * index + 0.5 * math.exp(-version / (4 + index)) + rng.normal() * 0.005
        each[silo] = {"accuracy": accuracy, "loss": loss}
    overall = {
        name: float(np.mean([values[name] for values in each.values()])) for name in ("accuracy", "loss")
    }
    return Figures(version=version, overall=overall, silos=each)


def closed(silos: tuple[str, ...], version: int, seed: int = 0) -> RoundClosed:
    rng = np.random.default_rng((version, seed, 1))
    total = sum(ROWS.get(silo, 100) for silo in silos)
    contributors = [
        Contributor(
            silo=silo,
            base_version=version - 1,
            staleness=0,
            weight=ROWS.get(silo, 100) / total,
            num_examples=ROWS.get(silo, 100),
            num_steps=10,
            norm=float(rng.uniform(0.1, 1)) / version,
            train={"loss": 0.4 + 0.5 * math.exp(-version / 4)},
            seconds={
                "load": 0.01,
                "evaluate": 0.02,
                "train": 0.2 + 0.1 * float(rng.uniform()),
                "pack": 0.001,
            },
            bytes_up=60,
        )
        for silo in silos
    ]
    return RoundClosed(
        version=version,
        contributors=contributors,
        evaluated=figures(silos, version - 1, seed),
        seconds={"wait": 0.3, "transfer": 0.004, "fold": 0.002, "step": 0.001, "round": 0.32},
        bytes_up=240,
        bytes_down=240,
        update_norm=0.5 / version,
        checkpoint=checkpoint_name(version),
        best=True,
        lineage=f"{version}-{seed}",
    )


def record(run_dir: Path, total: int = 12, **more: Any) -> Recorder:
    """A whole run, done."""
    recorder = Recorder(run_dir, job(total, **more))
    recorder.open()
    for version in range(1, total + 1):
        recorder.round(version)
    recorder.close(total)
    return recorder


def _waited() -> float:
    """Seconds by a clock that goes only while this thread waits for something: neither while it computes, nor while
    it could and another process has its processor, as on a busy machine."""
    queued_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.perf_counter() - time.thread_time() - queued_ns / 1e9


def _line(event: Event) -> dict[str, Any]:
    return json.loads(event.model_dump_json(exclude={"seq", "time"}))
