"""Asks each node of the cluster for its facts, all nodes at once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.cli.node_checks import SILO, labels_of
from orchestrator.cli.node_facts import Facts, clock, facts
from orchestrator.cli.words import one_line
from orchestrator.job import Job

Node = Mapping[str, Any]
"""One entry of ``ray.nodes()``."""


@dataclass(frozen=True)
class Report:
    """What came from one node."""

    node: Node
    facts: Facts | None
    why: str = ""
    """Why there are no facts."""
    late: bool = False
    """They may come yet: the node did not answer in time, or was lost meanwhile."""
    clock_s: float | None = None
    """How far its clock is ahead of ours; None if it was not measured."""
    about_s: float = 0.0
    """The measurement is that exact."""


def probe(nodes: Sequence[Node], job: Job | None, deep: bool, wait_s: float) -> list[Report]:
    """Nodes that say nothing within ``wait_s`` have no facts. Silos of ``job`` are asked whether they take it."""
    asked = {
        _on(node, facts).remote(labels_of(node).get(SILO), deep, _for(node, job)): node for node in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=wait_s) if asked else ([], [])
    reports = [_answered(asked[each], each) for each in ready]
    for each in late:
        ray.cancel(each)
    return reports + [Report(asked[each], None, f"no answer within {wait_s:g} s", late=True) for each in late]


def _for(node: Node, job: Job | None) -> str | None:
    return job.model_dump_json() if job is not None and labels_of(node).get(SILO) in job.silos else None


def _on(node: Node, function: Any) -> Any:
    remote: Any = ray.remote
    return remote(num_cpus=0, max_retries=0)(function).options(
        label_selector={"ray.io/node-id": node["NodeID"]}
    )


def _answered(node: Node, reference: Any) -> Report:
    try:
        found: Facts = ray.get(reference)
        offset, about = _clock(node)
    except RayTaskError as error:
        return Report(node, None, one_line(error.cause)[:200])
    except RayError as error:
        return Report(node, None, one_line(error)[:200], late=True)
    return Report(node, found, clock_s=offset, about_s=about)


def _clock(node: Node) -> tuple[float, float]:
    """By one round trip to a process that is there already."""
    began = time.time()
    there: float = ray.get(_on(node, clock).remote(), timeout=10)
    ended = time.time()
    return there - (began + ended) / 2, (ended - began) / 2
