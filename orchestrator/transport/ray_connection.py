"""Joining a Ray cluster, or starting Ray on this machine, and leaving it."""

import os
import socket
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.transport.ray_channel import NAMESPACE

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


def _join(address: str, quiet: dict[str, Any]) -> None:
    why = "" if listens(address) else "nothing listens"
    try:
        if not why:
            ray.init(address=address, **quiet)
            return
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        why = first_line(error)
    raise BadInput(f"--address {address}: no Ray cluster answers there ({why})")


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
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or not port.isdigit():
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except OSError:
        return False


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
