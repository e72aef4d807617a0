"""A real job beside the same work in plain PyTorch processes.

    python -m benchmarks.real_job [--root shared/data/fashion_mnist] [--repeats 3] [--json FILE]

Four silos with 5,000 Fashion-MNIST images and 1,000 test images each, the small CNN, five rounds of one epoch,
evaluation of each received model. Reported: seconds of the rounds, and of the whole command from start to end, on
a Ray that the command starts itself and on one that runs already; each beside ``benchmarks.plain_torch``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import measure
from benchmarks.plain_torch import load_share

PLAIN, LEAN = "plain PyTorch processes", "the same, SGD by hand"
SILOS, IMAGES, TEST_IMAGES, ROUNDS = 4, 5000, 1000, 5


@dataclass(frozen=True)
class Measured:
    """Seconds of the rounds, and of the whole command."""

    rounds_s: float
    total_s: float
    load: float


def write_job(folder: Path, root: Path) -> Path:
    """The job and its silos, with images as PNG in Parquet."""
    names = [f"silo-{i}" for i in range(SILOS)]
    for i, name in enumerate(names):
        home = folder / "silos" / name
        home.mkdir(parents=True)
        tables = [_table(root, "train", i, IMAGES, "train"), _table(root, "t10k", i, TEST_IMAGES, "test")]
        pq.write_table(pa.concat_tables(tables), home / "data.parquet")
        dataset = {"path": "data.parquet", "splits": {"column": "split"}}
        (home / "silo.yaml").write_text(json.dumps({"name": name, "datasets": {"fashion": dataset}}))
    job = folder / "job.yaml"
    job.write_text(json.dumps(document(names)))
    return job


def document(names: list[str]) -> dict[str, Any]:
    task = {"name": "image_classification", "dataset": "fashion", "num_classes": 10, "channels": 1}
    return {
        "name": "real-job",
        "task": {**task, "model": {"name": "cnn"}},
        "silos": names,
        "rounds": {"total": ROUNDS},
        "local": {"epochs": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}},
        "stop": {"metric": "accuracy"},
    }


def _table(root: Path, split: str, silo: int, count: int, name: str) -> pa.Table:
    images, labels = load_share(root, split, silo * count, (silo + 1) * count)
    pixels = (images * 255).round().byte().numpy()[:, 0]
    encoded = [_png(each) for each in pixels]
    return pa.table({"image": encoded, "label": labels.numpy(), "split": [name] * count})


def _png(pixels: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def siloray(job: Path, folder: Path, *more: str) -> Measured:
    """One run of the real command."""
    runs = folder / "runs"
    command = [sys.executable, "-m", "orchestrator", "run", str(job), "--new", "--runs-dir", str(runs), *more]
    done = measure.run_command(command)
    newest = max(runs.iterdir(), key=lambda run: run.stat().st_mtime)
    summary = json.loads((newest / "summary.json").read_text())
    assert summary["status"] == "done", summary["reason"]
    rounds_s = sum(version["seconds"]["round"] for version in summary["versions"])
    return Measured(rounds_s, done.seconds, measure.load_average())


def plain(root: Path, sgd: str) -> Measured:
    """The same work in plain processes, with ``torch.optim.SGD`` or with the same three lines by hand (leaner than
    people write it: the first optimizer of ``torch.optim`` imports torch._dynamo)."""
    sizes = ["--silos", SILOS, "--images", IMAGES, "--test-images", TEST_IMAGES, "--rounds", ROUNDS]
    options = [str(each) for each in ("--root", root, *sizes, "--start", "spawn", "--sgd", sgd)]
    done = measure.run_command([sys.executable, "-m", "benchmarks.plain_torch", *options])
    printed = json.loads(done.stdout.strip().splitlines()[-1])
    return Measured(printed["seconds_rounds"], done.seconds, measure.load_average())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("/work/shared/data/fashion_mnist"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rj", dir="/tmp") as name:
        rows = compared(Path(name), options.root, options.repeats)
    print(measure.markdown_table(list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        measure.write_json(options.json, {"machine": measure.machine(), "rows": rows})


def compared(folder: Path, root: Path, repeats: int) -> list[dict[str, str]]:
    """Interleaved, so that noise meets all of them."""
    job = write_job(folder, root)
    tracked = ("--tracking-uri", f"sqlite:///{folder}/mlflow.db")
    found: dict[str, list[Measured]] = {}
    for _ in range(repeats):
        found.setdefault(PLAIN, []).append(plain(root, "torch"))
        found.setdefault(LEAN, []).append(plain(root, "hand"))
        found.setdefault("siloray run --no-track", []).append(siloray(job, folder, "--no-track"))
        found.setdefault("siloray run, MLflow", []).append(siloray(job, folder, *tracked))
    with running_ray(folder) as address:
        for _ in range(repeats):
            run = siloray(
                job, folder, "--address", address, "--silos-dir", str(folder / "silos"), "--no-track"
            )
            found.setdefault("siloray run, Ray already running", []).append(run)
    return [_row(title, each, found) for title, each in found.items()]


def _row(title: str, each: list[Measured], found: dict[str, list[Measured]]) -> dict[str, str]:
    rounds, total = [m.rounds_s for m in each], [m.total_s for m in each]
    row = {"what": title, "rounds, s": _spread(rounds), "whole command, s": _spread(total)}
    for name, base in (("plain", found[PLAIN]), ("lean", found[LEAN])):
        row[f"rounds, x {name}"] = f"{median(rounds) / median(m.rounds_s for m in base):.2f}"
        row[f"whole, x {name}"] = f"{median(total) / median(m.total_s for m in base):.2f}"
    return {**row, "load": f"{max(m.load for m in each):.1f}"}


def _spread(seconds: list[float]) -> str:
    """Median (lowest-highest)."""
    return f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


class running_ray:
    """A Ray that is there before the command starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "r"

    def __enter__(self) -> str:
        code = (
            "import ray, sys, time; r = ray.init(address='local', include_dashboard=False, num_cpus=2, "
            f"_temp_dir={str(self._folder)!r}, logging_level='error'); "
            "print(r.address_info['gcs_address'], flush=True); sys.stdin.read()"
        )
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


if __name__ == "__main__":
    main()
