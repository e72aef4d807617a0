"""One silo of five is five times slower: time to a target accuracy on real processes, and on the virtual clock.

    python -m benchmarks.stragglers_real [--seeds 0 1 2] [--policies sync auto]

Each silo is an actor of a Ray that runs here, and each run is the command ``siloray run``. Digits of 8 x 8 pixels in
Dirichlet(0.3) shares, 15 batches of 16 a round where the driver says nothing else; batches come at a given pace
(`benchmarks.paced`). Time is from the opening of the first round to the version on which the run's own pooled accuracy
has reached the target, without the start of processes. Beside it ``siloray simulate`` of the same job and pace, where
every version is judged at all silos.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure
from benchmarks.real_job import running_ray
from orchestrator.journal import read_journal

SILOS = tuple(f"silo-{i}" for i in range(5))
SLOW = SILOS[1]
TIMES, PACE_S, STEPS = 5.0, 0.03, 15
SPEC = {
    "name": "image_classification",
    "dataset": "digits",
    "num_classes": 10,
    "channels": 1,
    "mean": [0.305],
    "std": [0.376],
    "model": {"name": "cnn"},
}
NOVA = {"name": "fednova"}
POLICIES: dict[str, dict[str, Any]] = {
    "sync": {"rounds": {"mode": "sync"}},
    "equal time": {"rounds": {"mode": "sync", "equal_time": True}, "strategy": NOVA},
    "quorum, grace": {"rounds": {"mode": "semi_sync", "grace": 0.25, "rate_correction": True}},
    "auto": {"rounds": {"mode": "auto"}, "strategy": NOVA},
    "FedBuff": {"rounds": {"mode": "async"}},
    "async, corrected": {"rounds": {"mode": "async", "rate_correction": True}},
    "FedAsync": {"rounds": {"mode": "fedasync"}, "strategy": {"name": "fedasync"}},
}
"""Sections of the job; FedNova where silos make unequal numbers of steps."""


def document(policy: str, seed: int, target: float, pace_s: float) -> dict[str, Any]:
    sections = POLICIES[policy]
    total = 600 if "async" in sections["rounds"]["mode"] else 150
    options = {"spec": SPEC, "slow": SLOW, "times": TIMES, "pace_s": pace_s}
    return {
        "name": "stragglers",
        "task": {"name": "benchmarks.paced:PacedImages", "dataset": "digits", "options": options},
        "silos": list(SILOS),
        "strategy": sections.get("strategy", {"name": "fedavg"}),
        "rounds": {"total": total, **sections["rounds"]},
        "local": {
            "steps": STEPS,
            "batch_size": 16,
            "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
        },
        "stop": {"metric": "accuracy", "target": target},
        "seed": seed,
    }


def write_silos(folder: Path, seed: int) -> Path:
    """Five silos of the digits, each of which allows the task."""
    out = folder / f"cut-{seed}"
    cut = ["partition", "digits", "--silos", len(SILOS), "--rule", "dirichlet", "--alpha", 0.3]
    command(*cut, "--seed", seed, "--out", out)
    for file in out.rglob("silo.yaml"):
        text = file.read_text()
        assert "allow_tasks" in text
        file.write_text(text.split("policy:")[0] + "policy: {allow_code: [benchmarks.paced]}\n")
    return next(iter(sorted(out.rglob(f"{SILOS[0]}/silo.yaml")))).parent.parent


def command(*arguments: Any) -> str:
    return measure.run_command([sys.executable, "-m", "orchestrator", *map(str, arguments)]).stdout


def real(job: Path, silos: Path, folder: Path, address: str) -> dict[str, float]:
    """Seconds to the target, rounds, and accuracy of the version that ended the run, at all silos."""
    where = ("--address", address, "--silos-dir", silos, "--runs-dir", folder)
    command("run", job, *where, "--new", "--no-track")
    (run,) = folder.iterdir()
    lines, _ = read_journal(run / "journal.jsonl")
    closed = [line for line in lines if line["type"] == "round_closed"]
    (last,) = [line for line in lines if line["type"] == "version_evaluated"]
    (end,) = [line for line in lines if line["type"] == "run_closed"]
    assert "target" in end["reason"], end
    return {
        "seconds": closed[-1]["time"] - closed[0]["time"] + closed[0]["seconds"]["round"],
        "rounds": len(closed),
        "accuracy": last["evaluated"]["overall"]["accuracy"],
    }


def virtual(job: Path, silos: Path, folder: Path, target: float) -> float | None:
    """Seconds of the virtual clock to the target."""
    speeds = ",".join(f"{name}={PACE_S * (TIMES if name == SLOW else 1)}" for name in SILOS)
    options = ("--silos-dir", silos, "--target", target, "--out", folder, "--no-plots", "--json")
    told = json.loads(command("simulate", job, "--speeds", speeds, *options).splitlines()[-1])
    return told["policies"][0]["time_to_target"]


def compared(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    with running_ray(folder) as address:
        for seed in options.seeds:
            silos = write_silos(folder, seed)
            for policy in options.policies:
                where = folder / f"{seed}-{list(POLICIES).index(policy)}"
                where.mkdir()
                for name, pace_s in (("job.yaml", PACE_S), ("simulated.yaml", 0.0)):
                    made = document(policy, seed, options.target, pace_s)
                    (where / name).write_text(json.dumps(made))
                row = {
                    "policy": policy,
                    "seed": seed,
                    **real(where / "job.yaml", silos, where / "runs", address),
                }
                row["virtual"] = virtual(where / "simulated.yaml", silos, where / "simulated", options.target)
                print(json.dumps(row), flush=True)
                found.append(row)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Medians over seeds (lowest-highest), and how many times faster than the first policy of the same seed."""
    rows = []
    for policy in dict.fromkeys(row["policy"] for row in found):
        ours = [row for row in found if row["policy"] == policy]
        first = [row for row in found if row["policy"] == found[0]["policy"]]
        rows.append(
            [
                policy,
                _spread([row["seconds"] for row in ours]),
                _times([row["seconds"] for row in first], [row["seconds"] for row in ours]),
                _spread([row["virtual"] for row in ours]),
                _times([row["virtual"] for row in first], [row["virtual"] for row in ours]),
                f"{median(row['rounds'] for row in ours):.0f}",
                _spread([row["accuracy"] for row in ours], 3),
            ]
        )
    head = [
        "policy",
        "processes, s",
        "x faster",
        "virtual clock, s",
        "x faster",
        "rounds",
        "accuracy reached",
    ]
    return measure.markdown_table(head, rows)


def _spread(values: Sequence[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "not reached"
    return f"{median(known):.{digits}f} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def _times(first: Sequence[float | None], ours: Sequence[float | None]) -> str:
    """Median over seeds of the ratios."""
    if None in first or None in ours:
        return ""
    return f"{median(a / b for a, b in zip(first, ours, strict=True)):.1f}"  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sr", dir="/tmp") as name:
        found = compared(Path(name), options)
    print(table(found))
    if options.json:
        measure.write_json(options.json, {"machine": measure.machine(), "rows": found})


if __name__ == "__main__":
    main()
