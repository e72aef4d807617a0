"""Other policies for a job: ``rounds.mode=quorum,rounds.deadline_s=30``, checked as the job itself is."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from orchestrator.core import document
from orchestrator.core.errors import BadInput
from orchestrator.job import Job

ENDLESS = 1_000_000
"""Rounds of a job that ends by its time."""


def changed(job: Job, text: str) -> Job:
    """The job with these keys set. Raises `BadInput`, with the place."""
    source = f"--what-if {text}"
    sections = job.model_dump(mode="json", exclude_unset=True)
    for assignment in _split(text):
        path, equals, value = assignment.partition("=")
        if not equals or not path.strip():
            raise BadInput(f"{source}: expected KEY=VALUE,... as in rounds.mode=async,rounds.buffer=4")
        _set(sections, path.strip().split("."), _value(value, source), source)
    return document.validate(sections, Job, source)


def lasting(job: Job, seconds: float, names_total: bool) -> Job:
    """The job for so many virtual seconds, whatever the number of its rounds, unless that was asked for or the
    learning rate follows it."""
    sections = job.model_dump(mode="json", exclude_unset=True)
    sections.setdefault("stop", {})["wall_time_s"] = seconds
    if not names_total and job.local.schedule.name == "constant":
        sections["rounds"]["total"] = ENDLESS
    return Job.model_validate(sections)


def _split(text: str) -> Iterator[str]:
    """At commas that stand in no brackets."""
    depth, begin = 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            yield text[begin:index]
            begin = index + 1
    yield text[begin:]


def _value(text: str, source: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"{source}: {text!r} is no value") from None
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _set(sections: dict[str, Any], path: list[str], value: Any, source: str) -> None:
    *folders, key = path
    for name in folders:
        inner = sections.setdefault(name, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{source}: {name} is no section of the job")
        sections = inner
    sections[key] = value
