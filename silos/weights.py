"""Reads the weights that a job starts from, on the driver's machine: a file, torch's cache, or a past run.

Nothing is downloaded, and no pickle is run: ``torch.load`` reads tensors only. What was read lies in the run directory
from then on, so that a run that goes on does not depend on where it came from.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator import starting
from orchestrator.checkpoints import Checkpoints, Unusable
from orchestrator.core.errors import BadInput
from orchestrator.core.events import (
    EVENT,
    Event,
    ModelReady,
    Rewound,
    RoundClosed,
    RunClosed,
    RunOpened,
    Source,
)
from orchestrator.disk import OsFileSystem
from orchestrator.job import Job
from orchestrator.journal import JOURNAL, JournalDamaged, read_journal
from orchestrator.run_key import run_key
from orchestrator.starting import START, StartingWeights
from orchestrator.transfer import FileWeights, RunWeights, TorchvisionWeights
from silos.rebuilt import NoModel, module_of


def settle(job: Job, run_dir: Path, folder: Path) -> None:
    """Puts what the job starts from into the run directory, unless it is there. Raises `BadInput`."""
    if job.start_from is not None and not (run_dir / START).exists():
        starting.save(read(job, run_dir.parent, folder), run_dir)


def check(job: Job, runs: Path, run_id: str | None, folder: Path) -> None:
    """As `settle`, and nothing is written: whether the run can have what it starts from. Raises `BadInput`."""
    if job.start_from is not None and not (run_id and (runs / run_id / START).exists()):
        read(job, runs, folder)


def read(job: Job, runs: Path, folder: Path) -> StartingWeights:
    """``runs``: the folder of runs. ``folder``: that of the job document. Raises `BadInput`."""
    match job.start_from:
        case FileWeights():
            return _file(job.start_from, folder)
        case TorchvisionWeights():
            return _torchvision(job.start_from)
        case RunWeights():
            return _run(job.start_from, (folder, runs))
    raise ValueError("the job starts from its seed")


# files


def _file(spec: FileWeights, folder: Path) -> StartingWeights:
    path = folder / spec.file
    try:
        found = _sha256(path)
    except OSError as error:
        raise BadInput(f"start_from.file: {path}: {error.strerror} on the driver's machine") from None
    if found != spec.sha256:
        raise BadInput(f"start_from.sha256: {path} has {found}")
    source = Source(kind="file", name=spec.file, sha256=found, contributors=[spec.origin])
    return StartingWeights(_tensors(path), source)


def _torchvision(spec: TorchvisionWeights) -> StartingWeights:
    import torch
    from torchvision.models import get_weight

    try:
        url = str(get_weight(spec.torchvision).url)
    except (KeyError, ValueError):
        raise BadInput(f"start_from.torchvision: torchvision has no '{spec.torchvision}'") from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        raise BadInput(
            f"start_from.torchvision: {path} is not on the driver's machine, and nothing is downloaded here; fetch it "
            f"there with: mkdir -p {path.parent} && curl -o {path} {url}"
        )
    promised, found = spec.sha256 or path.stem.rpartition("-")[2], _sha256(path)
    if not found.startswith(promised):
        raise BadInput(f"start_from.torchvision: {path} has the SHA-256 {found}, not {promised}...")
    contributors = [f"torchvision: {url}"]
    source = Source(kind="torchvision", name=spec.torchvision, sha256=found, contributors=contributors)
    return StartingWeights(_tensors(path), source)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The float tensors of a file. Raises `BadInput`."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        raise BadInput(f"start_from: {path} is no file of tensors by name ({what})") from None
    named = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    floats = {
        str(name): tensor.detach().float().numpy()
        for name, tensor in named.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
    if not floats:
        raise BadInput(f"start_from: {path} holds no tensors by name")
    return floats


# runs


def _run(spec: RunWeights, folders: Sequence[Path]) -> StartingWeights:
    run_dir = _run_dir(spec, folders)
    events = _events(run_dir)
    opened = next((each for each in reversed(events) if isinstance(each, RunOpened)), None)
    ready = next((each for each in reversed(events) if isinstance(each, ModelReady)), None)
    if opened is None or ready is None:
        raise BadInput(f"start_from.run: {run_dir} has no model yet")
    version = _version(spec, events, run_dir)
    state = _state(run_dir, version)
    digest = parameters_digest(state)
    if spec.sha256 not in (None, digest):
        raise BadInput(
            f"start_from.sha256: the parameters of version {version} of {run_dir.name} have {digest}"
        )
    source = Source(
        kind="run",
        name=spec.run,
        sha256=digest,
        contributors=_contributors(events, version, opened.run_id, ready),
        run_id=opened.run_id,
        version=version,
        job_digest=opened.job_digest,
    )
    return StartingWeights(_of_run(run_dir, opened, ready, state), source)


def _run_dir(spec: RunWeights, folders: Sequence[Path]) -> Path:
    """By its path, by its id, or the newest that is done of the job with this name."""
    runs = folders[-1]
    for candidate in (*(folder / spec.run for folder in folders), runs / Path(spec.run).name):
        if (candidate / JOURNAL).is_file():
            return candidate
    name = Path(spec.run).name
    journals = sorted(runs.glob(f"*/{JOURNAL}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for journal in (each for each in journals if each.parent.name.startswith(name)):
        events = _events(journal.parent)
        named = any(isinstance(each, RunOpened) and each.name == name for each in events)
        if named and events and isinstance(events[-1], RunClosed) and events[-1].status == "done":
            return journal.parent
    raise BadInput(
        f"start_from.run: {runs} on the driver's machine has no run '{spec.run}', and no run that is done of a job of "
        "this name; 'siloray list' names those that there are"
    )


def _events(run_dir: Path) -> list[Event]:
    """What counts: without the rounds that a driver went back on."""
    try:
        events = [EVENT.validate_python(each) for each in read_journal(run_dir / JOURNAL)[0]]
    except (JournalDamaged, ValueError) as error:
        raise BadInput(
            f"start_from.run: {run_dir}: its journal cannot be read ({type(error).__name__})"
        ) from None
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Rewound):
            kept = [
                each for each in kept if not (isinstance(each, RoundClosed) and each.version > event.version)
            ]
        kept.append(event)
    return kept


def _version(spec: RunWeights, events: Sequence[Event], run_dir: Path) -> int:
    if spec.version != "best":
        return spec.version
    closed = next((each for each in reversed(events) if isinstance(each, RunClosed)), None)
    if closed is None:
        raise BadInput(f"start_from.version: {run_dir.name} has not ended, so give a number")
    return closed.version if closed.best_version is None else closed.best_version


def _state(run_dir: Path, version: int) -> Mapping[str, NDArray[np.float32]]:
    checkpoints = Checkpoints(run_dir / "checkpoints", OsFileSystem(), run_key(run_dir))
    try:
        return checkpoints.load(version, {})[0]
    except Unusable as error:
        there = ", ".join(map(str, checkpoints.versions())) or "none"
        raise BadInput(
            f"start_from.version: version {version} of {run_dir.name} cannot be used ({error}); kept are: {there}"
        ) from None


def parameters_digest(state: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 of shared parameters and buffers, as in the run's summary."""
    digest = hashlib.sha256()
    for name in ("params", "buffers"):
        if name in state:
            digest.update(np.ascontiguousarray(state[name], "<f4").data)
    return digest.hexdigest()


def _contributors(events: Sequence[Event], version: int, run_id: str, ready: ModelReady) -> list[str]:
    rounds = [each for each in events if isinstance(each, RoundClosed) and each.version <= version]
    own = sorted({each.silo for closed in rounds for each in closed.contributors})
    before = ready.started_from.source.contributors if ready.started_from else []
    return [*before, *(f"{run_id}/{silo}" for silo in own)]


def _of_run(
    run_dir: Path, opened: RunOpened, ready: ModelReady, state: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """By name, without what stayed private to the run's silos. The model itself is made anew only where its seed is
    what some frozen tensor is known by, or adapters are to be added to their layers."""
    entries = ready.model["entries"]
    start = starting.load(run_dir, run_key(run_dir)) if opened.job.get("start_from") else None
    before = start.fitting(entries) if start is not None else None
    found = starting.views(before.layout, before.values) if before is not None else {}
    frozen = {each["name"] for each in entries if each.get("frozen")}
    if opened.job.get("adapters") or not frozen <= found.keys():
        return _made_anew(run_dir, opened, ready, state, start)
    return {name: found[name] for name in frozen} | _shared(entries, state, run_dir)


def _made_anew(
    run_dir: Path,
    opened: RunOpened,
    ready: ModelReady,
    state: Mapping[str, NDArray[np.float32]],
    start: StartingWeights | None,
) -> dict[str, NDArray[np.float32]]:
    try:
        job = Job.model_validate(opened.job)
        module = module_of(job, ready.model, state, start)
    except (NoModel, BadInput) as error:
        raise BadInput(f"start_from.run: the model of {run_dir.name} cannot be made again: {error}") from None
    private = {
        each["name"] for each in ready.model["entries"] if not each["shared"] and not each.get("frozen")
    }
    from silos.adapters import merged

    return {
        name: tensor.float().numpy()
        for name, tensor in merged(module, job.adapters).state_dict().items()
        if tensor.is_floating_point() and name not in private
    }


def _shared(
    entries: Sequence[Mapping[str, Any]], state: Mapping[str, NDArray[np.float32]], run_dir: Path
) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    for kind, part in (("param", "params"), ("buffer", "buffers")):
        layout = tuple(
            (each["name"], tuple(each["shape"]))
            for each in entries
            if each["kind"] == kind and each["shared"]
        )
        try:
            found |= starting.views(layout, state.get(part, np.zeros(0, np.float32)))
        except ValueError as error:
            raise BadInput(f"start_from.run: {run_dir.name}: {error}") from None
    return found
