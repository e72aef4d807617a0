"""The driver's node: where drivers run, and where the run directories of a cluster lie.

Whoever gives a command may be on another machine, now or later; what it needs of the run directories it asks there.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from orchestrator.core.errors import CannotGoOn
from orchestrator.transport.ray_channel import NAMESPACE, ROLE_LABEL, alive_nodes

T = TypeVar("T")

NOT_THERE = "The remote function failed to import on the worker"
"""How Ray's error begins where a module, or what is looked for in it, is not installed on a node."""

ANSWER_S = 60.0
"""The driver's node answers so soon, or something is wrong with it."""

_PREFIX = "driver-"


def driver_name(run_id: str) -> str:
    """The driver's name among Ray's actors."""
    return f"{_PREFIX}{run_id}"


def running() -> list[str]:
    """Run ids of the cluster's drivers."""
    named: Any = ray.util.list_named_actors
    names = (each["name"] for each in named(all_namespaces=True) if each["namespace"] == NAMESPACE)
    return sorted(name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))


def placement() -> dict[str, Any]:
    """On the node that its administrator made the driver's, else on the one where the command is given; unpinned, a
    driver might land on a silo, write there, and be started anew on another one."""
    labels = [node["Labels"] for node in alive_nodes()]
    if any(each.get(ROLE_LABEL) == "driver" for each in labels):
        return {"label_selector": {ROLE_LABEL: "driver"}}
    return {"label_selector": {"ray.io/node-id": _this_node()}}


def on_driver_node(function: Callable[..., T], *arguments: Any) -> T:
    """What ``function``, of a module that is installed there, gives on the driver's node. Also where that is this
    machine: Ray's processes may have another user and environment than this one."""
    remote: Any = ray.remote
    task = remote(num_cpus=0, max_retries=0)(function).options(**placement())
    try:
        answer: T = ray.get(task.remote(*arguments), timeout=ANSWER_S)
        return answer
    except RayTaskError as error:
        raise _known(error.cause) from None
    except (GetTimeoutError, RayError) as error:
        raise CannotGoOn(f"the driver's node does not answer ({type(error).__name__})") from None


def _known(error: Exception) -> Exception:
    """What went wrong there, or what that says of the node."""
    if isinstance(error, ImportError) or str(error).startswith(NOT_THERE):
        why = str(error).strip().splitlines()[-1]
        return CannotGoOn(f"the driver's node has another Siloray than this machine, or none ({why})")
    return error


def _this_node() -> str:
    return str(ray.get_runtime_context().get_node_id())
