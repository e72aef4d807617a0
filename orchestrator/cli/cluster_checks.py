"""What `siloray doctor --address` looks at: a running Ray cluster and its nodes."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from orchestrator.cli.checks import TIMEOUT_S, Check
from orchestrator.cli.words import one_line, size

ROLE, SILO = "siloray.role", "siloray.silo"


def cluster(address: str) -> Iterator[Check]:
    """Joins the cluster for a moment."""
    why = _unreachable(address)
    if why:
        yield Check("fail", "cluster", f"{address}: {why}", "is it up, and is the port open?")
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # as a run does
    import ray

    try:
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds, for the token, the version, the network
        remedy = "same RAY_AUTH_MODE, token, Ray and Python version on every machine?"
        yield Check("fail", "cluster", f"{address}: {one_line(error)[:200]}", remedy)
        return
    try:
        yield dashboard(context.dashboard_url or "")
        yield from nodes(ray.nodes())  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _unreachable(address: str) -> str:
    """A quick try of the port: Ray itself takes half a minute to give up."""
    place = urlsplit(address if "//" in address else f"//{address}")
    if address in {"auto", "local"} or not place.hostname:
        return ""
    try:
        socket.create_connection((place.hostname, place.port or 6379), timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return one_line(error)
    return ""


def dashboard(url: str) -> Check:
    host = url.rpartition(":")[0]
    if host in {"", "127.0.0.1", "localhost", "[::1]"}:
        return Check("pass", "cluster dashboard", f"at {url}" if url else "none")
    remedy = "ray start --dashboard-host=127.0.0.1, and a tunnel: who reaches it can run code"
    return Check("warn", "cluster dashboard", f"open to the network at {url}", remedy)


def nodes(known: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """A line per node, and what is missing among their labels."""
    alive = [node for node in known if node.get("Alive")]
    for node in sorted(known, key=lambda each: str(each.get("NodeManagerAddress"))):
        yield _node(node)
    labels = [node.get("Labels") or {} for node in alive]
    if not any(each.get(ROLE) == "driver" for each in labels):
        remedy = f"ray start --labels={ROLE}=driver on the machine that keeps the runs"
        yield Check("warn", "labels", "no node is labelled for the driver", remedy)
    silos = sorted(each[SILO] for each in labels if SILO in each)
    if not silos:
        remedy = f"ray start --labels={SILO}=<name>,{ROLE}=silo at each organisation"
        yield Check("warn", "labels", "no node is labelled for a silo", remedy)
    for name in sorted({each for each in silos if silos.count(each) > 1}):
        yield Check("fail", "labels", f"two nodes are labelled as silo '{name}'", "one name each")


def _node(node: Mapping[str, Any]) -> Check:
    labels, resources = node.get("Labels") or {}, node.get("Resources") or {}
    what = f"node {node.get('NodeManagerAddress')}"
    if not node.get("Alive"):
        return Check("warn", what, "away", "'ray start --address' there brings it back")
    role = labels.get(SILO) or labels.get(ROLE) or "no siloray label"
    facts = f"{resources.get('CPU', 0):g} cores, {resources.get('GPU', 0):g} GPUs"
    store = size(resources.get("object_store_memory", 0))
    return Check("pass", what, f"{role}, {facts}, {store} for objects")
