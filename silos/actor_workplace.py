"""Where an agent's silo works: in an actor on the organisation's own Ray cluster, with its GPUs.

Ray's own messages stay inside that cluster, which is the organisation's. What the driver says reaches it through the
agent, checked.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError

from orchestrator.core.messages import Fetch, Join, Ping, Refused, Reply, Request, Stop
from orchestrator.transport.ray_channel import alive_nodes, as_actor
from orchestrator.transport.ray_connection import connect
from silos.actor import IO_THREADS, SILO_LABEL, SiloActor
from silos.config import load_silo


class OnRay:
    """Starts the silo's actor: on the node that is labelled for the silo, if there is one. It has no name and ends
    with the agent: none of an earlier agent, with an older document or older code, can go on in its place."""

    def __init__(self, name: str, silo_yaml: Path, address: str) -> None:
        """``silo_yaml``: its path on the actor's node. Raises `BadInput` where no Ray answers."""
        connect(address, 0)
        self.name = name
        remote = as_actor(SiloActor, concurrency_groups={"io": IO_THREADS})
        self._actor = remote.options(
            num_cpus=0,
            num_gpus=load_silo(silo_yaml).num_gpus,
            max_restarts=-1,
            max_task_retries=0,
            **_placement(name),
        ).remote(name, str(silo_yaml), [str(silo_yaml.parent)], True)

    def handle(self, request: Request) -> Reply:
        """A process that ended meanwhile has forgotten the run: the driver asks it to join again, until the new one is
        there to answer."""
        try:
            return ray.get(self._sent(request))
        except RayActorError as error:
            code: Literal["busy", "job"] = "busy" if isinstance(request, Join) else "job"
            reason = f"its process has ended ({type(error).__name__})"
            return Refused(silo=self.name, code=code, reason=reason)

    def restart(self) -> None:
        ray.kill(self._actor, no_restart=False)

    def _sent(self, request: Request) -> Any:
        if isinstance(request, Fetch | Ping | Stop):
            return self._actor.answer.remote(request)
        if hasattr(request, "model"):
            model = ray.put(request.model)
            return self._actor.handle.remote(replace(request, model=None), model)  # type: ignore[call-arg]
        return self._actor.handle.remote(request)


def _placement(name: str) -> dict[str, Any]:
    labelled = any(node["Labels"].get(SILO_LABEL) == name for node in alive_nodes())
    return {"label_selector": {SILO_LABEL: name}} if labelled else {}
