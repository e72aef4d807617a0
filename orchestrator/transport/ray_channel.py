"""Silos as Ray actors, each pinned to its organisation's node.

The model goes into the object store once for the driver's node and once for each other node: silos that cannot
reach one another would stall a shared broadcast (notes: Ray 2.60). Flat NumPy arrays travel, which readers map
without a copy.
"""

import asyncio
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError, TaskCancelledError

from orchestrator.core.errors import BadInput, SiloLost
from orchestrator.core.messages import (
    AT_ONCE,
    Carrying,
    Joined,
    Refused,
    Reply,
    Request,
    SiloId,
)
from orchestrator.core.vector import Parts
from silos.actor import IO_THREADS, SILO_LABEL, SiloActor

NAMESPACE = "siloray"
ROLE_LABEL = "siloray.role"

_LOST = (RayActorError, ObjectLostError, GetTimeoutError, TaskCancelledError)


def as_actor(plain: type, **options: Any) -> Any:
    """A plain class as a Ray actor class."""
    remote: Any = ray.remote
    return remote(**options)(plain)


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of the nodes that it can reach."""
    nodes: Any = ray.nodes
    return [node for node in nodes() if node["Alive"]]


class Published:
    """One model version in the object store: a copy per node, made when that node first needs it."""

    def __init__(self, parts: Parts, home: str) -> None:
        self._copies = {home: ray.put(dict(parts))}
        self._home = home

    def on(self, node: str) -> Any:
        """The reference for silos of this node."""
        if node not in self._copies:
            self._copies[node] = ray.put(ray.get(self._copies[self._home]))
        return self._copies[node]


class RayChannel:
    """Starts the job's silo actors, each once its node is there, or finds those that run already, and calls them."""

    def __init__(
        self,
        run_id: str,
        silos: tuple[SiloId, ...],
        documents: dict[SiloId, str] | None,
        code: Sequence[str] = (),
        actor: type = SiloActor,
    ) -> None:
        """``documents``: the silo.yaml of each silo, all on this machine, for processes that belong to this run.
        None: each silo's process is on its own node, with its own document, and serves one run after the other.
        ``code``: folders in which silos on this machine look for the user's own modules.
        """
        self._silos, self._documents = frozenset(silos), documents
        self._suffix = f"-{run_id}" if documents is not None else ""
        self._remote = as_actor(actor, concurrency_groups={"io": IO_THREADS})
        self._code = list(code)
        self._home = ray.get_runtime_context().get_node_id()
        self._node: dict[SiloId, str] = {}
        self._actors: dict[SiloId, Any] = {}
        for silo in silos:
            with suppress(SiloLost):
                self._actor(silo)

    def online(self) -> Set[SiloId]:
        """All of them may be asked; a call tells who does not answer."""
        return self._silos

    async def publish(self, parts: Parts) -> Published:
        return Published(parts, self._home)

    async def call(self, silo: SiloId, request: Request) -> Reply:
        actor: Any = self._actors.get(silo) or await asyncio.to_thread(self._actor, silo)
        try:
            reply: Reply = await self._sent(actor, silo, request)
            if isinstance(reply, Joined):
                self._node[silo] = (await actor.place.remote())[0]
        except _LOST as error:
            raise SiloLost(silo, _why(error)) from None
        except RayTaskError as error:
            return Refused(silo=silo, code="failed", reason=str(error).strip().splitlines()[-1])
        return reply

    def _sent(self, actor: Any, silo: SiloId, request: Request) -> Any:
        if isinstance(request, AT_ONCE):
            return actor.answer.remote(request)
        if isinstance(request, Carrying):
            model = request.model.on(self._node.get(silo, self._home))
            return actor.handle.remote(replace(request, model=None), model)
        return actor.handle.remote(request)

    def moved(self, silo: SiloId) -> int:
        return 0

    async def restart(self, silo: SiloId) -> None:
        """SIGKILL by the node's raylet, which works on a stopped process too; Ray starts it anew."""
        if silo in self._actors:
            ray.kill(self._actors[silo], no_restart=False)

    def describe(self, wait_s: float) -> dict[SiloId, dict[str, Any]]:
        """What each silo says of itself; without those that do not answer in time."""
        asked = {actor.describe.remote(): silo for silo, actor in self._actors.items()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=wait_s) if asked else ([], [])
        found: dict[SiloId, dict[str, Any]] = {}
        for reference in ready:
            with suppress(*_LOST, RayTaskError):
                found[asked[reference]] = ray.get(reference)
        return found

    def close(self) -> None:
        """End the processes that belong to this run."""
        for actor in self._actors.values() if self._suffix else ():
            ray.kill(actor)

    def _actor(self, silo: SiloId) -> Any:
        """The silo's process. Raises `SiloLost` while there is no node for it."""
        if silo not in self._actors:
            document = self._documents[silo] if self._documents is not None else None
            self._actors[silo] = self._remote.options(
                name=f"silo-{silo}{self._suffix}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=0,
                **(_on_its_node(silo) if document is None else _here(document)),
            ).remote(silo, document, self._code)
        return self._actors[silo]


def _here(document: str) -> dict[str, Any]:
    """Several silos on one machine: no pinning, each its own process."""
    from silos.config import load_silo

    if not document:
        return {}
    return {"num_gpus": load_silo(Path(document)).num_gpus}


def _on_its_node(silo: SiloId) -> dict[str, Any]:
    """Pinned by the label that the site's administrator gave the node; its GPU is counted if it has one, which an
    actor asks for once and for all."""
    nodes = [node for node in alive_nodes() if node["Labels"].get(SILO_LABEL) == silo]
    if not nodes:
        raise SiloLost(silo, "no node yet")
    gpus = 1 if any(node["Resources"].get("GPU", 0) >= 1 for node in nodes) else 0
    return {"label_selector": {SILO_LABEL: silo}, "num_gpus": gpus}


def labelled_silos() -> set[str]:
    """Silos whose node is in the cluster."""
    labels = (node["Labels"].get(SILO_LABEL) for node in alive_nodes())
    return {label for label in labels if label}


def check_nodes(silos: tuple[SiloId, ...]) -> None:
    """A label that no node has would pend without a word; say whom the cluster lacks."""
    absent = sorted(set(silos) - labelled_silos())
    if len(absent) == len(silos):
        raise BadInput(
            f"no node of the cluster has a label '{SILO_LABEL}' for {', '.join(absent)}; start nodes with "
            f"--labels {SILO_LABEL}=NAME, or run silos on this machine with --silos-dir"
        )


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no details'}"
