"""Silos of unequal speed on the virtual clock: when each way of running the rounds reaches a target.

    python -m benchmarks.stragglers fashion --cells FOLDER [--seeds 0]
    python -m benchmarks.stragglers profiles --cells FOLDER [--seeds 0 1 2] [--profiles dm adv] [--policies ...]
    python -m benchmarks.stragglers tables --cells FOLDER

``fashion`` is the setting of notes/learning_targets.md section 3.3: Fashion-MNIST, Dirichlet(.5), ten parties, of which
seven need one unit of time for a local epoch and the others 2, 4 and 8. ``profiles`` is that of notes/algorithms.md
section 3.5: eight silos with skewed labels (`benchmarks.skewed`), 20 steps of batch 32, lr .2; the target is 96 % of
the accuracy of training on all rows. Drivers, strategies, silos and training are the real ones, in one process. A cell
that is in ``FOLDER/stragglers.jsonl`` is not run again.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks import fashion, skewed
from orchestrator.core.metrics import values
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from orchestrator.simulation.figures import idle_share, reached
from orchestrator.simulation.loop import now
from orchestrator.simulation.run import Simulated, simulate
from orchestrator.simulation.speeds import speeds_of
from silos.site import Order
from silos.trainer import TorchTrainer

SHARE = 0.96
"""Of the accuracy of centralised training."""
LATE = 0.9
"""The last accuracy is the mean over versions made after this share of the run."""
ENDLESS = 1_000_000

FASHION: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "sync": ({"mode": "sync"}, {"name": "fedavg"}, 72),
    "FedBuff K=5": ({"mode": "async", "buffer": 5}, {"name": "fedavg"}, 16),
    "FedAsync .6": ({"mode": "fedasync"}, {"name": "fedasync", "alpha": 0.6, "rho": 0}, 16),
}
"""Rounds, strategy, and units of time."""

_TWICE = {"name": "sgd", "lr": 2}
_CORRECTED = {"mode": "async", "equal_time": True, "rate_correction": True}
POLICIES: dict[str, dict[str, Any]] = {
    "sync": {},
    "sync, server lr 2": {"strategy": {"name": "fedavg", "server": _TWICE}},
    "equal time, quorum 6/8, grace, server lr 2": {
        "rounds": {"mode": "semi_sync", "equal_time": True, "grace": 0.25, "staleness_exponent": 0},
        "strategy": {"name": "fednova", "server": _TWICE},
    },
    "equal time, rate correction, buffer 4, server lr 2": {
        "rounds": _CORRECTED,
        "strategy": {"name": "fednova", "server": _TWICE},
    },
    "equal time, rate correction, buffer 4": {"rounds": _CORRECTED, "strategy": {"name": "fednova"}},
    "FedBuff K=4": {"rounds": {"mode": "async"}},
    "AREA x2": {
        "rounds": {"mode": "async"},
        "strategy": {"name": "area", "stretch": 2},
        "combine": {"name": "mean", "weights": "rows"},
    },
    "auto, server lr 2": {"rounds": {"mode": "auto"}, "strategy": {"name": "fednova", "server": _TWICE}},
    "sync, server lr 3": {"strategy": {"name": "fedavg", "server": {"name": "sgd", "lr": 3}}},
    "FedAsync .6": {"rounds": {"mode": "fedasync"}, "strategy": {"name": "fedasync"}},
}
TUNED = [name for name in POLICIES if name.startswith("sync")]
HORIZONS = {"dm": 5_000.0, "geo8": 7_000.0, "adv": 7_000.0, "even": 2_500.0}
"""Virtual seconds, by profile. ``adv`` is ``dm`` where three classes lie only with the two slowest silos."""
PER_STEP = {"adv": "dm"}


class Cells:
    """What has been measured."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "stragglers.jsonl"

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def run(self, key: dict[str, Any], work: Any) -> None:
        if any(all(known.get(name) == value for name, value in key.items()) for known in self.read()):
            return
        began = time.process_time()
        cell = {**key, **work(), "cpu_s": round(time.process_time() - began, 1)}
        with self.file.open("a") as out:
            out.write(json.dumps(cell) + "\n")
        print({name: value for name, value in cell.items() if name != "curve"}, flush=True)


# Fashion-MNIST


def fashion_cell(policy: str, seed: int, data: Path) -> dict[str, Any]:
    rounds, strategy, units = FASHION[policy]
    images = fashion.Images(data)
    sections = fashion.job({"name": "fedavg"}, ENDLESS).model_dump(mode="json", exclude_unset=True)
    stop = {"metric": "accuracy", "wall_time_s": units}
    rounds = {"total": ENDLESS, "patience_s": 36000, **rounds}
    job = Job.model_validate({**sections, "rounds": rounds, "strategy": strategy, "stop": stop})
    timings = speeds_of("1x7,2,4,8", job.silos, per="epoch")
    with tempfile.TemporaryDirectory(prefix="stragglers") as name:
        makers = fashion.makers(images, "dir0.5", seed, Path(name) / "silos")
        run = simulate(
            job, makers, timings, Path(name) / "run", judge=_whole_test(job, images), judge_all=True
        )
    points = [each for each in run.points if each.time <= units]
    at = {t: [p.metrics["accuracy"] for p in points if p.time <= t][-1] for t in (4, 8, 12, 16)}
    return {
        "updates_by_16": sum(work.due <= 16 for work in run.works),
        "first_70": reached(points, "accuracy", 0.70),
        "first_75": reached(points, "accuracy", 0.75),
        "at": {str(t): round(value, 4) for t, value in at.items()},
        "round_units": round(mean(closed.seconds["round"] for closed in run.rounds), 3),
    }


def _whole_test(job: Job, images: fashion.Images) -> Any:
    task = fashion.OneSilosImages(images, torch.arange(64), 0, whole=True)
    trainer = TorchTrainer(job, "judge", task, "cpu")

    def judge(version: int, model: Parts) -> Mapping[str, float]:
        order = Order(version=version, received=model, state={}, tick=lambda *_: None)
        return values(trainer.evaluate(order))

    return judge


# profiles


def skewed_job(policy: str, horizon: float, federation: skewed.Federation) -> Job:
    """``weights: rows`` gives the job the silos' numbers of rows."""
    sections = POLICIES[policy]
    rows = {name: len(task.train[1]) for name, task in federation.silos.items()}
    combine = {"combine": {**sections["combine"], "weights": rows}} if "combine" in sections else {}
    return Job.model_validate(
        {
            "name": "skewed",
            "task": {"name": "benchmarks.skewed:Rows", "dataset": "none"},
            "silos": list(skewed.SILOS),
            "rounds": {"total": ENDLESS, "patience_s": 1e5, **sections.get("rounds", {})},
            "strategy": sections.get("strategy", {"name": "fedavg"}),
            "local": {"steps": 20, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.2}},
            "stop": {"metric": "accuracy", "wall_time_s": horizon},
            **combine,
        }
    )


@cache
def _federation(profile: str, seed: int) -> tuple[skewed.Federation, float]:
    federation = skewed.Federation(seed, rare=profile == "adv")
    return federation, federation.centralised(skewed_job("sync", 1.0, federation))


def profile_cell(profile: str, policy: str, seed: int) -> dict[str, Any]:
    federation, centralised = _federation(profile, seed)
    horizon = HORIZONS[profile]
    job = skewed_job(policy, horizon, federation)
    pooled, late = federation.judge(job), _Late(federation, job, horizon)

    def judge(version: int, model: Parts) -> Mapping[str, float]:
        late.take(model)
        return pooled(version, model)

    with tempfile.TemporaryDirectory(prefix="stragglers") as name:
        timings = speeds_of(PER_STEP.get(profile, profile), job.silos, seed)
        makers = federation.makers(Path(name) / "silos")
        run = simulate(job, makers, timings, Path(name) / "run", judge=judge, judge_all=True)
    assert run.outcome.status == "done", run.outcome
    return {"centralised": round(centralised, 4), **_figures(run, horizon, centralised), "worst": late.worst}


class _Late:
    """Accuracy on each silo's own classes, over the versions of the last tenth of a run."""

    def __init__(self, federation: skewed.Federation, job: Job, horizon: float) -> None:
        self.federation, self.job, self.after = federation, job, LATE * horizon
        self.seen: list[dict[str, float]] = []

    def take(self, model: Parts) -> None:
        if now() >= self.after and len(self.seen) < 20:
            self.seen.append(self.federation.by_silo(self.job, model))

    @property
    def worst(self) -> float | None:
        if not self.seen:
            return None
        return round(min(mean(each[silo] for each in self.seen) for silo in skewed.SILOS), 4)


def _figures(run: Simulated, horizon: float, centralised: float) -> dict[str, Any]:
    found = [point.metrics["accuracy"] for point in run.points if point.time >= LATE * horizon]
    target = reached(run.points, "accuracy", SHARE * centralised)
    shares = [idle_share(run.works, silo, run.ended) for silo in run.job.silos]
    return {
        "target_at": None if target is None else round(target, 1),
        "last": round(mean(found), 4) if found else None,
        "most": round(max(point.metrics["accuracy"] for point in run.points), 4),
        "idle": round(mean(shares), 3),
        "idle_most": round(max(shares), 3),
        "updates": sum(len(closed.contributors) for closed in run.rounds),
        "versions": len(run.rounds),
        "steps_per_s": round(
            sum(work.num_steps for work in run.works if work.end == "arrived") / run.ended, 3
        ),
    }


# tables


def tables(cells: Sequence[Mapping[str, Any]]) -> None:
    for profile in HORIZONS:
        known = [each for each in cells if each.get("profile") == profile]
        if known:
            print(f"\n{profile}\n")
            _profile_table(known)
    known = [each for each in cells if each["what"] == "fashion"]
    if known:
        print("\nFashion-MNIST, Dirichlet(.5), 1x7, 2, 4, 8 units per epoch\n")
        print(
            "| policy | seed | updates by t=16 | t=4 | t=8 | t=12 | t=16 | .70 at | .75 at |\n|" + "---|" * 9
        )
        for each in known:
            at = " | ".join(f"{each['at'][t]:.4f}" for t in ("4", "8", "12", "16"))
            firsts = f"{each['first_70']} | {each['first_75']}"
            print(f"| {each['policy']} | {each['seed']} | {each['updates_by_16']} | {at} | {firsts} |")


def _profile_table(known: Sequence[Mapping[str, Any]]) -> None:
    print(
        "| policy | reached | time to target | x sync | x tuned sync | last | worst silo | idle | steps/s |"
    )
    print("|---|" + "---:|" * 8)
    for policy in dict.fromkeys(each["policy"] for each in known):
        own = [each for each in known if each["policy"] == policy]
        hit = [each["target_at"] for each in own if each["target_at"] is not None]
        times = "–" if not hit else " / ".join(f"{each:.0f}" for each in hit)
        row = [
            policy,
            f"{len(hit)} of {len(own)}",
            times,
            _ratios(own, known, ["sync"]),
            _ratios(own, known, TUNED),
        ]
        row += [_mean(own, "last"), _mean(own, "worst"), f"{mean(each['idle'] for each in own):.0%}"]
        print(f"| {' | '.join([*row, _mean(own, 'steps_per_s')])} |")


def _mean(cells: Iterable[Mapping[str, Any]], name: str) -> str:
    found = [each[name] for each in cells if each[name] is not None]
    return f"{mean(found):.4g}" if found else "–"


def _ratios(
    own: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]], beside: Sequence[str]
) -> str:
    """Seed by seed: how many times sooner than the best of these."""
    found = []
    for each in own:
        others = [o for o in known if o["policy"] in beside and o["seed"] == each["seed"] and o["target_at"]]
        if others and each["target_at"]:
            found.append(min(o["target_at"] for o in others) / each["target_at"])
    if not found:
        return "–"
    return (
        f"{mean(found):.2f}" if len(found) == 1 else f"{mean(found):.2f} ({min(found):.2f}–{max(found):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["fashion", "profiles", "tables"])
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=fashion.ROOT, help="Fashion-MNIST with its partitions.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--profiles", nargs="+", choices=HORIZONS, default=list(HORIZONS))
    parser.add_argument("--policies", nargs="+", default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells(asked.cells)
    for seed in asked.seeds if asked.what == "fashion" else ():
        for policy in asked.policies or FASHION:
            key = {"what": "fashion", "policy": policy, "seed": seed}
            cells.run(key, lambda p=policy, s=seed: fashion_cell(p, s, asked.data))
    for seed in asked.seeds if asked.what == "profiles" else ():
        for profile in asked.profiles:
            for policy in asked.policies or POLICIES:
                key = {"what": "profile", "profile": profile, "policy": policy, "seed": seed}
                cells.run(key, lambda p=profile, q=policy, s=seed: profile_cell(p, q, s))
    tables(cells.read())


if __name__ == "__main__":
    main()
