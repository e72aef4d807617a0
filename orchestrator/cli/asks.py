"""What a job asks of a silo, in lines for whoever approves it: all that is not as by default, and what matters most.

Every word of the job's is shown so that it cannot pass for another line, or for a part of this one.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from orchestrator.core.printable import printable

if TYPE_CHECKING:
    from orchestrator.job import Job

_PLAIN = re.compile(r"[\w.+*/-]+(:[\w.+*/-]+)*")
"""Words that need no quotes."""
_ALWAYS = {"silos", "rounds", "strategy", "local", "privacy", "codec", "combine"}
"""Sections that are shown even as by default."""
_NONE = {"privacy": "none: updates leave as they are"}
_CHOICES = ("name", "mode")
"""What says which of several things a section is."""


def asks(job: "Job") -> Iterator[str]:
    """The lines."""
    yield _line("job", f"{job.name}, digest {job.digest}")
    model = getattr(job.task, "model", None)
    yield _line("task", _fields(_given(job.task, {"model"})))
    yield _line("model", _fields(_given(model)) if model is not None else "of the task")
    for name, field in type(job).model_fields.items():
        section = getattr(job, name)
        if name not in ("name", "task") and (name in _ALWAYS or section != field.default):
            yield _line(name, _section(name, section))
    yield _line("average", f"of at least {job.policy.min_silos} silos")


def _line(name: str, text: str) -> str:
    return f"{name:<11} {text}"


def _section(name: str, section: Any) -> str:
    if isinstance(section, BaseModel):
        return _fields(_given(section)) or "as by default"
    if isinstance(section, tuple):
        return ", ".join(_shown(each) for each in section) or _NONE.get(name, "none")
    return _shown(section)


def _given(section: BaseModel, without: set[str] | None = None) -> dict[str, Any]:
    chosen = {name: getattr(section, name) for name in _CHOICES if hasattr(section, name)}
    return chosen | section.model_dump(mode="json", exclude_defaults=True, exclude=without)


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{_shown(name)}: {_shown(value)}" for name, value in fields.items())


def _shown(value: Any) -> str:
    match value:
        case BaseModel():
            return f"{{{_fields(_given(value))}}}"
        case Mapping():
            return f"{{{_fields(value)}}}"
        case list() | tuple():
            return f"[{', '.join(map(_shown, value))}]"
        case str() if _PLAIN.fullmatch(value):
            return value
    return printable(json.dumps(value, ensure_ascii=False))
