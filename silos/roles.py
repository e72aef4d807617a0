"""Which tensor of a model is trained together, which stays at the silo, and which is frozen: names decide."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from orchestrator.core.errors import BadJob

EVERYTHING = "*"
_ADAPTERS = ("*.lora_A.*", "*.lora_B.*")


class Entry(NamedTuple):
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """``param`` or ``buffer`` (float buffers only: integer buffers are counters and stay at the silo)."""
    shared: bool
    frozen: bool = False
    """Neither trained nor sent; every silo has the same."""
    since: int = 0
    """Version from which a shared tensor is trained; before, it is frozen, but travels."""


@dataclass(frozen=True, slots=True)
class Globs:
    """What a job says about names. ``private`` wins over the others, and so does a glob of ``shared`` that is more
    than ``*`` over ``frozen``: ``frozen: ['*'], shared: ['head.*']`` freezes everything but the head. Adapters are not
    frozen, unless the module itself says so."""

    shared: Sequence[str] = (EVERYTHING,)
    private: Sequence[str] = ()
    frozen: Sequence[str] = ()
    unfreeze: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """By the version from which what they match is no longer frozen."""

    def entry(self, name: str, tensor: Tensor, kind: str, fixed: bool) -> Entry:
        """``fixed``: the module itself does not want it trained."""
        shape = tuple(tensor.shape)
        if fixed:
            return Entry(name, shape, kind, shared=False, frozen=True)
        if matches(name, self.private):
            return Entry(name, shape, kind, shared=False)
        chosen = [glob for glob in self.shared if glob != EVERYTHING] + [*_ADAPTERS]
        if matches(name, self.frozen) and not matches(name, chosen):
            since = min((v for v, globs in self.unfreeze.items() if matches(name, globs)), default=None)
            frozen = since is None
            return Entry(name, shape, kind, shared=not frozen, frozen=frozen, since=since or 0)
        return Entry(name, shape, kind, shared=matches(name, [*self.shared, *_ADAPTERS]))


def entries_of(module: nn.Module, globs: Globs) -> list[Entry]:
    """All float tensors of the module: parameters first; of these the shared ones first, those that are trained last
    before the others; frozen ones at the end. Raises `BadJob` for globs that cannot be meant."""
    named = [(n, p, "param", not p.requires_grad) for n, p in module.named_parameters()]
    named += [(n, b, "buffer", False) for n, b in module.named_buffers()]
    entries = [globs.entry(n, t, kind, fixed) for n, t, kind, fixed in named if t.is_floating_point()]
    _check(entries, globs)
    return sorted(entries, key=lambda e: (e.frozen, e.kind == "buffer", not e.shared, -e.since))


def _check(entries: Sequence[Entry], globs: Globs) -> None:
    names = [entry.name for entry in entries]
    sections = {"shared": globs.shared, "private": globs.private, "frozen": globs.frozen}
    for section, given in sections.items():
        for glob in given:
            if not fnmatch.filter(names, glob):
                raise BadJob(f"'{glob}' ({section}) matches no parameter; there are: {', '.join(names[:8])}")
    for version, given in globs.unfreeze.items():
        for glob in given:
            if not any(entry.since == version and matches(entry.name, (glob,)) for entry in entries):
                raise BadJob(f"unfreeze.{version}: '{glob}' matches nothing that is still frozen by then")
    if not any(entry.shared and entry.kind == "param" for entry in entries):
        raise BadJob("'shared', 'private' and 'frozen' leave no parameter to train together")
    if not any(not entry.frozen and entry.kind == "param" and entry.since == 0 for entry in entries):
        raise BadJob("unfreeze: no parameter is trained from the first version on")


def matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
