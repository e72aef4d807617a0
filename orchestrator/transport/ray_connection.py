"""Joining a Ray cluster, or starting Ray on this machine, and leaving it."""

import os
import socket
from contextlib import suppress
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import AuthenticationError, RayError

from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.transport.ray_channel import NAMESPACE
from silos.configured_site import DOCUMENT

GCS_S = 10.0
"""The cluster says so soon that it is one; over a line around the world it takes a second."""

TOKEN = "it wants its own token: RAY_AUTH_MODE=token, and the cluster's token in ~/.ray/auth_token"
OTHER_PORT = (
    "the cluster's own port is 6379 as a rule; 8265, of its dashboard, is for 'siloray submit'; and RAY_USE_TLS must "
    "be the same here and there"
)

abandoned = False
"""Ray has gone away under this process, which had better end without its clean-up."""


def connect(address: str | None, num_silos: int) -> None:
    """Join the cluster at ``address``, or start Ray here: without a dashboard, and with few idle workers."""
    if ray.is_initialized():
        return
    _hush()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": NAMESPACE}
    if address is None:
        _start_here(num_silos, quiet)
    else:
        _join(address, quiet)
        _refuse_documents()


def _join(address: str, quiet: dict[str, Any]) -> None:
    try:
        why = _why_not(address)
        if not why:
            ray.init(address=address, **quiet)
            return
    except AuthenticationError:
        why = TOKEN
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        why = first_line(error)
    raise BadInput(f"--address {address}: no Ray cluster can be joined there ({why})")


def _refuse_documents() -> None:
    """A job's environment goes to all its processes, also at the silos."""
    said: Any = ray.get_runtime_context().runtime_env
    if DOCUMENT in (said.get("env_vars") or {}):
        raise BadInput(f"{DOCUMENT} is for each silo's node to say: take it out of the job's runtime_env")


def _why_not(given: str) -> str:
    """What is wrong with the address; nothing where a cluster answers. Ray itself would ask another port for ever,
    and tell of it in lines of its own. Raises what its own look for ``auto`` raises."""
    address = canonicalize_bootstrap_address(given) if given == "auto" else given
    if address is None or _port(address) is None:
        return ""
    if not listens(address):
        return "nothing listens"
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    messages: Any = gcs_service_pb2
    stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub
    try:
        with create_gcs_channel(address) as channel:
            stub(channel).GetClusterId(messages.GetClusterIdRequest(), timeout=GCS_S)
        return ""
    except grpc.RpcError as error:
        return TOKEN if error.code() is grpc.StatusCode.UNAUTHENTICATED else OTHER_PORT


def _start_here(num_silos: int, quiet: dict[str, Any]) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=max(1, min(num_silos + 1, os.cpu_count() or 1)),
            include_dashboard=False,
            _temp_dir=os.environ.get("RAY_TMPDIR"),
            **quiet,
        )
    except Exception as error:
        if "timed out" not in str(error):
            raise
        raise CannotGoOn(
            f"Ray did not start on this machine in time; is it busy? Give the command again ({first_line(error)})"
        ) from None


def _hush() -> None:
    """Ray tells of its workers' deaths on standard output, amid our own lines; the run tells of them itself."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def shutdown() -> None:
    """Leave Ray; one that this process started ends. One that is gone would be waited for, half a minute long."""
    global abandoned
    if not ray.is_initialized():  # to ask for its address would start one
        return
    with suppress(Exception):
        abandoned = not listens(cluster_address())
    with suppress(Exception):
        if not abandoned:
            ray.shutdown()


def cluster_address() -> str:
    """Of the cluster that this process is connected to."""
    return str(ray.get_runtime_context().gcs_address)


def dashboard_url() -> str:
    """Of the cluster that this process is connected to; empty without one."""
    from ray._private import worker

    ask: Any = worker.get_dashboard_url
    return str(ask() or "")


def listens(address: str) -> bool:
    """Whether anything answers: Ray itself would try for half a minute."""
    port = _port(address)
    if port is None:
        return True
    try:
        with socket.create_connection(port, timeout=2):
            return True
    except OSError:
        return False


def _port(address: str) -> tuple[str, int] | None:
    """Host and port, an IPv6 address without its brackets; None for what Ray itself looks up (``auto``, a URL)."""
    host, _, port = address.rpartition(":")
    if "//" in address or not port.isdigit():
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
