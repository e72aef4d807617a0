"""What one node of a cluster says of itself to `siloray doctor`. `facts` runs there; nothing of the data leaves."""

import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.cli.volumes import in_the_clear
from orchestrator.cli.words import one_line
from orchestrator.core.errors import BadInput
from orchestrator.job import Job

SPILLS_TO = "--fallback_directory="

PACKAGES = ("ray", "siloray", "torch")


@dataclass(frozen=True)
class Facts:
    """Plain values, so that nodes with another Siloray can be understood too."""

    host: str
    versions: dict[str, str]
    """Python, and the installed packages; nothing heavy is imported for it."""
    disk_free: int
    """Bytes for Ray's own files, and for objects that do not fit in memory: of these two folders, the scarcer."""
    shared_memory: int
    """Bytes that ``/dev/shm`` holds; 0 without one."""
    token: bool
    tls: bool
    silo: str = ""
    """The name in the node's silo document, where the node is labelled as a silo."""
    wrong: str = ""
    """Why that document cannot be used."""
    data: dict[str, str] = field(default_factory=dict)
    """What is wrong with each data set, or its rows if the policy shares them. Empty in a quick look."""
    unwritable: str = ""
    """The silo's own folder, where it cannot be written to."""
    refuses: str = ""
    """Why the policy would not take the job. Empty in a quick look."""
    device: str = ""
    """Where the silo's document has it train."""
    spills_to: str = ""
    """Where Ray writes objects that do not fit in memory, if it lies there in the clear."""
    gpus: int | None = None
    """As torch sees them; None in a quick look, which does not import it."""


def facts(label: str | None, deep: bool, job: str | None) -> Facts:
    """``label``: the silo whose node this is. ``deep``: open the data, ask the policy, and ask torch. ``job``: as JSON,
    where the silo is one of it."""
    silo, wrong, site = _site(label)
    asked = Job.model_validate_json(job) if deep and job is not None else None
    shm = Path("/dev/shm")
    return Facts(
        host=platform.node(),
        versions=_versions(),
        disk_free=min(shutil.disk_usage(folder).free for folder in (_session(), _spilled())),
        shared_memory=shutil.disk_usage(shm).total if shm.is_dir() else 0,
        token=_has_token(),
        tls=os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"),
        silo=silo,
        wrong=wrong,
        data=_data(site) if deep and site is not None else {},
        unwritable=_unwritable(site.own_folder) if site is not None else "",
        refuses=_refusal(site, asked) if site is not None and asked is not None else "",
        device=site.config.local.device if site is not None else "",
        spills_to=_spilled() if in_the_clear(Path(_spilled())) else "",
        gpus=_gpus() if deep else None,
    )


def clock() -> float:
    """Seconds since 1970, as this node has it."""
    return time.time()


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _session() -> str:
    import ray

    worker: Any = ray._private.worker
    return str(worker.global_worker.node.get_session_dir_path())


def _spilled() -> str:
    """Where the raylet, whose child this process is, puts objects that do not fit in memory."""
    command = Path(f"/proc/{os.getppid()}/cmdline")
    options = command.read_bytes().decode(errors="replace").split("\0") if command.is_file() else []
    named = [each.removeprefix(SPILLS_TO) for each in options if each.startswith(SPILLS_TO)]
    return named[0] if named and Path(named[0]).is_dir() else _session()


def _has_token() -> bool:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def _site(label: str | None) -> tuple[str, str, Any]:
    """Name, what is wrong, and the site, of the silo whose node this is."""
    if label is None:
        return "", "", None
    from silos.configured_site import site_here

    try:
        site = site_here(label, None)
    except BadInput as error:
        return "", one_line(error), None
    return site.name, "", site


def _data(site: Any) -> dict[str, str]:
    return {name: _rows(site, name) for name in site.config.datasets}


def _rows(site: Any, name: str) -> str:
    from silos.data import open_data

    try:
        data = open_data(site.config.datasets[name], site.path.absolute().parent)
        counts = {split: len(data.rows(split)) for split in ("train", "test")}
    except Exception as error:  # whatever reading files may raise
        return f"! {one_line(error)[:200]}"
    shared = site.config.policy.share_counts
    return ", ".join(f"{count:,} {split}" for split, count in counts.items()) if shared else "readable"


def _gpus() -> int:
    try:
        import torch
    except ImportError:
        return -1
    return int(torch.cuda.device_count())


def _unwritable(folder: Path) -> str:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return "" if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else str(there)


def _refusal(site: Any, job: Job) -> str:
    try:
        return one_line(site.review(job) or "")
    except BadInput as error:
        return one_line(error)
