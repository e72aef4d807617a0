"""What `siloray doctor` looks at on this machine: a finding and, if need be, a remedy each."""

import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from orchestrator.bucket import Bucket, shown
from orchestrator.cli.run_dirs import Folder
from orchestrator.cli.volumes import in_the_clear
from orchestrator.cli.words import one_line, size
from orchestrator.core.errors import BadInput

Level = Literal["pass", "warn", "fail", "note"]

GB = 1e9
TIMEOUT_S = 3.0
DASHBOARD_PORT = 8265
RAY_TESTED = "2.60"

TRUST = (
    "one Ray cluster is one trust domain: whoever may use it can run anything on each of its nodes, also "
    "at a silo; organisations that do not trust each other that far need a cluster each"
)

SPILLED = "Ray writes models and updates that do not fit in memory there, in the clear"
SPILL_REMEDY = (
    "ray start --object-spilling-directory on an encrypted volume, or more memory (--object-store-memory)"
)


@dataclass(frozen=True)
class Check:
    """One finding."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def this_machine(on_cluster: bool) -> Iterator[Check]:
    """Checks of this machine, the quick ones first. ``on_cluster``: as one from which a cluster is used."""
    yield python()
    for name in ("siloray", "ray", "torch", "mlflow", "pyarrow"):
        yield package(name)
    yield cores(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    yield memory(available_memory())
    yield shared_memory(Path("/dev/shm"))
    yield authentication(os.environ, on_cluster)
    yield dashboard(list(listeners(DASHBOARD_PORT)))
    yield gpu()
    if not on_cluster:
        yield spilling(spill_folder(os.environ))
    yield Check("note", "trust", TRUST)


def spill_folder(environ: Mapping[str, str]) -> Path:
    """As a Ray that starts here takes it from the environment."""
    return Path(environ.get("RAY_object_spilling_directory") or f"{environ.get('RAY_TMPDIR') or '/tmp'}/ray")


def spilling(folder: Path) -> Check:
    """Where a Ray that starts here puts objects that do not fit in memory."""
    if in_the_clear(folder):
        remedy = "RAY_object_spilling_directory on an encrypted volume, or enough memory"
        return Check("warn", "spilled objects", f"{folder}: {SPILLED}", remedy)
    return Check("pass", "spilled objects", f"{folder} is memory, or an encrypted volume")


def runs_here(folder: Folder, tracking_uri: str) -> Iterator[Check]:
    """Where runs are kept that this machine drives, and the MLflow that they write to."""
    yield store(folder.text) if folder.in_store else disk(Path(folder.text))
    yield tracking(tracking_uri)


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    text = ".".join(map(str, version))
    good = (3, 11) <= version[:2] < (3, 14)
    return Check("pass" if good else "fail", "Python", text, "" if good else "use Python 3.11, 3.12 or 3.13")


def package(name: str) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check("fail", name, "not installed", "install siloray with what it needs: 'uv sync'")
    if name == "ray" and not version.startswith(f"{RAY_TESTED}."):
        return Check("warn", name, version, f"tested with Ray {RAY_TESTED}; the same on all nodes")
    return Check("pass", name, version)


def cores(count: int) -> Check:
    if count < 2:
        return Check("warn", "cores", str(count), "driver and silos will share it; give this machine more")
    return Check("pass", "cores", str(count))


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that can still be used here, the limit of a container taken into account; None: not known."""
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = group / "memory.max", group / "memory.current"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return free
    return min(free, int(limit.read_text()) - int(used.read_text()))


def memory(available: int | None) -> Check:
    if available is None:
        return Check("warn", "memory", "not known on this system", "leave at least 4 GB free for a run")
    if available < 4 * GB:
        level: Level = "fail" if available < 1 * GB else "warn"
        return Check(level, "memory", f"{size(available)} free", "Ray and a few silos need about 4 GB")
    return Check("pass", "memory", f"{size(available)} free")


def shared_memory(path: Path) -> Check:
    """Ray keeps models there; a container's default of 64 MB makes it fall back to files."""
    if not path.is_dir():
        return Check("warn", "shared memory", f"no {path}", "Ray keeps models in files, which is slower")
    total = shutil.disk_usage(path).total
    if total < 2 * GB:
        return Check("warn", "shared memory", f"{path} holds {size(total)}", "in a container: --shm-size=8g")
    return Check("pass", "shared memory", f"{path} holds {size(total)}")


def store(uri: str) -> Check:
    """Whether this machine may write to the store that keeps the runs."""
    try:
        Bucket(uri).check()
    except BadInput as error:
        return Check("fail", "store", one_line(error), "its credentials and address, or another --runs-dir")
    return Check("pass", "store", f"{shown(uri)} can be written to")


def disk(folder: Path) -> Check:
    """Room for checkpoints where the runs are kept."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    found = f"{size(free)} free for {folder}"
    if not os.access(there, os.W_OK):
        return Check("fail", "disk", f"{there} cannot be written to", "choose another folder with --runs-dir")
    if free < 5 * GB:
        return Check("fail" if free < 0.5 * GB else "warn", "disk", found, "free some, or use --runs-dir")
    return Check("pass", "disk", found)


def authentication(environ: Mapping[str, str], on_cluster: bool, home: Path | None = None) -> Check:
    """Ray's token: half the commands of 2.60 turn it on by themselves, half do not."""
    mode = environ.get("RAY_AUTH_MODE", "" if on_cluster else "token")
    if mode != "token":
        found = f"RAY_AUTH_MODE is {mode}" if mode else "RAY_AUTH_MODE is not set"
        return Check("warn", "authentication", found, "on a cluster: RAY_AUTH_MODE=token on every machine")
    token = Path(environ.get("RAY_AUTH_TOKEN_PATH") or (home or Path.home()) / ".ray" / "auth_token")
    if not on_cluster or environ.get("RAY_AUTH_TOKEN") or token.is_file():
        return Check("pass", "authentication", "token")
    return Check("fail", "authentication", f"token mode, but no {token}", "ray get-auth-token --generate")


def listeners(port: int, tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> Iterator[str]:
    """Local addresses, as the kernel writes them, on which something listens at this port."""
    for table in tables:
        rows = Path(table).read_text().splitlines()[1:] if Path(table).is_file() else []
        for row in rows:
            address, _, at = row.split()[1].rpartition(":")
            if row.split()[3] == "0A" and int(at, 16) == port:
                yield address


def dashboard(addresses: list[str]) -> Check:
    """Ray's dashboard takes jobs: whoever reaches it runs code here."""
    loopback = ("0100007F", "00000000000000000000000001000000")
    if any(address not in loopback for address in addresses):
        remedy = "ray start --dashboard-host=127.0.0.1, and a tunnel: who reaches it can run code"
        return Check("warn", "dashboard", f"port {DASHBOARD_PORT} is open to the network", remedy)
    return Check("pass", "dashboard", "on loopback only" if addresses else "none is running here")


def tracking(uri: str) -> Check:
    """Whether MLflow can be written to now; a run does not need it."""
    remedy = "runs go on without it and are posted later; see --tracking-uri, MLFLOW_TRACKING_URI"
    if uri.startswith(("http://", "https://")):
        why = _unreachable(uri)
        return Check("warn", "MLflow", f"{uri}: {why}", remedy) if why else Check("pass", "MLflow", uri)
    scheme, found, path = uri.partition(":///")
    if not found or not scheme.startswith("sqlite"):
        return Check("pass", "MLflow", f"{uri} (not tried)")
    folder = Path(path).absolute().parent
    if folder.is_dir() and os.access(folder, os.W_OK):
        return Check("pass", "MLflow", uri)
    return Check("warn", "MLflow", f"{uri}: {folder} cannot be written to", remedy)


def _unreachable(uri: str) -> str:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S):
            return ""
    except (OSError, ValueError) as error:
        return one_line(getattr(error, "reason", error))


def gpu(driver: Path = Path("/proc/driver/nvidia/version")) -> Check:
    """What torch sees. The only check that imports it."""
    try:
        import torch
    except ImportError as error:
        return Check("fail", "GPU", f"torch cannot be imported: {one_line(error)}", "uv sync --reinstall")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("pass", "GPU", ", ".join(names))
    if driver.is_file():
        remedy = f"torch {torch.__version__} does not fit the NVIDIA driver here; update one of them"
        return Check("warn", "GPU", "there is one, and torch does not see it", remedy)
    return Check("pass", "GPU", "none; silos here train on the CPU")
