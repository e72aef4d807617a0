"""Jobs that a person at the silo has approved, each by its digest and the digests of its code."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from pydantic import BaseModel

from orchestrator.core import document
from orchestrator.core.errors import BadInput, BadJob
from orchestrator.job import Job
from orchestrator.task import modules
from silos.audit import write_private

FILE = "approvals.json"


class Approval(BaseModel, frozen=True, extra="forbid"):
    """One approved job."""

    name: str
    who: str
    when: str
    code: dict[str, str]
    """SHA-256 of the source of each code module."""
    data: dict[str, str] = {}
    """Digest of the manifest of each data set (`silos.manifest`)."""


class _File(BaseModel, frozen=True, extra="forbid"):
    approved: dict[str, Approval] = {}


class Approvals:
    """The file in the silo's state folder; a broken one approves nothing."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def all(self) -> Mapping[str, Approval]:
        """Approvals by the job's digest."""
        if not self.path.exists():
            return {}
        try:
            text = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise BadInput(f"{self.path}: cannot be read; approve the jobs again and remove it") from None
        return document.validate(text, _File, str(self.path)).approved

    def add(
        self, job: Job, who: str, when: str, code: dict[str, str], data: dict[str, str] | None = None
    ) -> None:
        """Approve this job with code of these digests (`code_digests`) and data of these, which somebody has seen."""
        approval = Approval(name=job.name, who=who, when=when, code=code, data=data or {})
        self._save({**self.all(), job.digest: approval})

    def remove(self, job: Job) -> bool:
        """Withdraw an approval; False when there was none."""
        left = dict(self.all())
        if left.pop(job.digest, None) is None:
            return False
        self._save(left)
        return True

    def refusal(self, job: Job, silo: str) -> str | None:
        """Why the job may not run yet; None when it is approved with the code that is here."""
        found = self.all().get(job.digest)
        command = "run 'siloray approve job.yaml' at the silo"
        if found is None:
            return f"{silo} has not approved the job '{job.name}' ({job.digest[:12]}); {command}"
        for module, digest in code_digests(job).items():
            if found.code.get(module) != digest:
                return f"the code of '{module}' at {silo} changed since the job was approved; {command} again"
        return None

    def _save(self, approved: Mapping[str, Approval]) -> None:
        write_private(self.path, _File(approved=dict(approved)).model_dump_json(indent=1) + "\n")


def find_code_of(silo_yaml: Path) -> None:
    """Modules of the organisation's own are those that are installed, and those beside its ``silo.yaml``."""
    folder = str(silo_yaml.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)


def code_digests(job: Job) -> dict[str, str]:
    """SHA-256 of the source of each code module of the job, found without running any of it."""
    return {module: _digest(module) for module in sorted(modules(job.task))}


def _digest(module: str) -> str:
    digest = hashlib.sha256()
    root, files = _sources(module)
    for path in files:
        source = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def _sources(module: str) -> tuple[Path, list[Path]]:
    """A folder and files in it: the module, or all of the package around it, whose modules use one another."""
    for spec in _specs(module):
        if spec.origin and spec.submodule_search_locations:
            root = Path(spec.origin).parent
            return root, sorted(root.rglob("*.py"))
    if spec.origin is None or not Path(spec.origin).is_file():
        raise BadJob(f"{module}: no source of this module at this silo")
    return Path(spec.origin).parent, [Path(spec.origin)]


def _specs(module: str) -> Iterator[ModuleSpec]:
    """Specs of the packages around the module and of itself. Asking `importlib` would run the packages."""
    where: list[str] | None = sys.path
    for part in module.split("."):
        spec = PathFinder.find_spec(
            part, where
        )  # by its whole name, a namespace package would look for its parent
        if spec is None:
            raise BadJob(f"{module}: there is no such module at this silo")
        where = list(spec.submodule_search_locations or ())
        yield spec
