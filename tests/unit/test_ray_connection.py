"""An ``--address`` that is not a cluster's own port costs one line, soon. In a process of its own: other tests of this
one may be connected to Ray already."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest

CODE = """
import json, sys
from orchestrator.transport import ray
from orchestrator.transport import ray_connection
ray_connection.GCS_S = 1.0
told = []
for address in sys.argv[1:]:
    try:
        ray.connect(address, 0)
    except ray_connection.BadInput as error:
        told.append(str(error))
print(json.dumps(told))
"""


@pytest.fixture
def dashboard() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def guarded() -> Iterator[int]:
    """A cluster's own port, which takes another token."""

    def refuse(_: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")

    server = grpc.server(ThreadPoolExecutor(1))
    methods = {"GetClusterId": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


def test_what_is_no_clusters_own_port_costs_one_line_that_names_the_right_one(
    dashboard: int, guarded: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, _loopback6() as six:
        ports = dashboard, silent.getsockname()[1]
        addresses = [*(f"127.0.0.1:{port}" for port in ports), f"[::1]:{six.getsockname()[1]}"]
        *wrong, token, closed = _told([*addresses, f"127.0.0.1:{guarded}", "127.0.0.1:9"])
    for address, line in zip(addresses, wrong, strict=True):
        assert address in line and "6379" in line and "'siloray submit'" in line
    assert "token" in token and "6379" not in token
    assert "nothing listens" in closed


def _loopback6() -> socket.socket:
    return socket.create_server(("::1", 0), family=socket.AF_INET6)


def _told(addresses: list[str]) -> list[str]:
    environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 32}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *addresses], capture_output=True, text=True, timeout=60, env=environ
    )
    assert done.stderr == "", "Ray has nothing to add"
    told: list[str] = json.loads(done.stdout)
    assert len(told) == len(addresses) and not any("\n" in line for line in told)
    return told
