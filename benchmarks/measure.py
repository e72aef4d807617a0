"""What every benchmark needs: timings, memory of a process tree, the machine, a table, JSON.

Standard library only, and Linux only (`/proc`). Times are in seconds and memory in bytes unless a
name says otherwise. Run the benchmarks from the repository's root: `python -m benchmarks.limit`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

PROC = Path("/proc")
SHAPES = ("2x0.1M", "8x0.1M", "2x11M", "8x11M", "2x86M", "8x86M")  # silos x model parameters


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing, in seconds. The median is the figure; the rest shows its spread."""

    median_s: float
    min_s: float
    max_s: float
    all_s: tuple[float, ...]


def timing(seconds: Sequence[float]) -> Timing:
    """Summarise repeated measurements (at least one), in seconds."""
    return Timing(statistics.median(seconds), min(seconds), max(seconds), tuple(seconds))


def seconds_since_process_start() -> float:
    """Age of this process in seconds, interpreter start and imports included (resolution 10 ms)."""
    started_ticks = int(_stat_fields("self")[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Proportional memory (PSS) of a process tree, in bytes.

    `private_bytes` belongs to one process alone. `shared_bytes` is mapped by several and counted once:
    each process is charged its fraction. Pages of tmpfs that no process has mapped are not seen.
    """

    private_bytes: int = 0
    shared_bytes: int = 0
    processes: int = 0
    largest_private_bytes: int = 0
    """Anonymous memory of the process that has most. (Pages of the object store whose other readers have ended
    would count as its private ones too.)"""

    @property
    def total_bytes(self) -> int:
        """PSS of the tree, in bytes."""
        return self.private_bytes + self.shared_bytes


def tree_memory(pid: int) -> Memory:
    """Memory of a process and of all its living descendants."""
    found = [m for m in map(_process_memory, process_tree(pid)) if m is not None]
    private = sum(m.private_bytes for m in found)
    largest = max((m.largest_private_bytes for m in found), default=0)
    return Memory(private, sum(m.shared_bytes for m in found), len(found), largest)


def process_tree(pid: int) -> list[int]:
    """The process and all its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat_fields(entry.name)):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [pid]
    for member in tree:  # grows while it is walked
        tree += children.get(member, [])
    return tree


def _stat_fields(pid: str) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; empty when the process is gone."""
    try:
        return (PROC / pid / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _process_memory(pid: int) -> Memory | None:
    """One process's share, from smaps_rollup; None when it is gone or not ours to read."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return None
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    private = kib.get("Private_Clean", 0) + kib.get("Private_Dirty", 0)
    return Memory(
        private * 1024, max(kib.get("Pss", 0) - private, 0) * 1024, 1, kib.get("Anonymous", 0) * 1024
    )


@dataclass
class PeakMemory:
    """Context manager: the largest memory of a process tree, sampled every `interval_s` seconds: `peak` by its
    total, `largest_private_bytes` the most that one process had at any sample.

    Sampling walks page tables and disturbs what it watches: measure time and memory in separate runs.
    """

    pid: int = field(default_factory=os.getpid)
    interval_s: float = 0.2
    peak: Memory = field(default_factory=Memory)
    largest_private_bytes: int = 0

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            now = tree_memory(self.pid)
            self.peak = max(self.peak, now, key=lambda memory: memory.total_bytes)
            self.largest_private_bytes = max(self.largest_private_bytes, now.largest_private_bytes)
            if self._stop.wait(self.interval_s):
                return


@dataclass(frozen=True)
class CommandRun:
    """A finished command: wall time from fork to exit in seconds, its standard output, its peak memory."""

    seconds: float
    stdout: str
    peak: PeakMemory | None


def run_command(argv: Sequence[str], *, watch_memory: bool = False, timeout_s: float = 600) -> CommandRun:
    """Run a command to its end; raises CalledProcessError when it fails, TimeoutExpired when it hangs."""
    begin = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            if watch_memory:
                with PeakMemory(process.pid) as watched:
                    stdout, _ = process.communicate(timeout=timeout_s)
            else:
                stdout, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(argv), stdout)
    return CommandRun(seconds, stdout, watched if watch_memory else None)


def load_average() -> float:
    """The machine's load over the last minute; above the number of cores, timings are not to be trusted."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": load_average(),
    }


def readable(seconds: float) -> str:
    """Seconds with three significant digits and a unit that fits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are written with `str`."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_json(path: Path, data: object) -> None:
    """Write plain data as indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n")


def parse_shape(text: str) -> tuple[int, int]:
    """`8x11M` is 8 silos and 11,000,000 parameters; `2x500` is 2 silos and 500."""
    match = re.fullmatch(r"([1-9]\d*)x(\d+(?:\.\d+)?)(M?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape: write silos x parameters, such as 8x11M")
    return int(match[1]), max(round(float(match[2]) * (1_000_000 if match[3] else 1)), 1)


def shapes_command(
    what: str,
    seconds_per_round: Callable[[int, int, int], list[float]],
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """The command line of a round benchmark: measure each shape, print a table, write JSON if asked.

    All shapes are measured inside one `session`, which is what need not be started once per shape.
    """
    default = [parse_shape(shape) for shape in SHAPES]
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("shapes", nargs="*", type=parse_shape, default=default, help=" ".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds per shape")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    given = parser.parse_args()
    measured = []
    with session():
        for silos, params in given.shapes:
            seconds = timing(seconds_per_round(silos, params, given.rounds))
            shape = f"{silos}x{params / 1e6:g}M"
            measured.append({"shape": shape, "load_average": load_average(), **asdict(seconds)})
    columns = ("median_s", "min_s", "max_s")
    rows = [[m["shape"], *(readable(m[c]) for c in columns), m["load_average"]] for m in measured]
    print(markdown_table(["silos x parameters", "median", "min", "max", "load"], rows))
    if given.json:
        write_json(given.json, {"what": what, "machine": machine(), "measured": measured})
