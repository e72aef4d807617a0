"""A real Ray cluster on this machine: ``ray start`` processes with ports and folders of their own, ended by pid."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from orchestrator.transport.ray_settings import SETTINGS
from tests.support.commands import REPOSITORY, session

LIMIT_S = 60.0
STORE_BYTES = 80 << 20


def free_ports(count: int) -> list[int]:
    """Different ones, free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


class RayNode:
    """``ray start --block``: one process, and all that it starts is found by its session."""

    def __init__(self, arguments: list[str], log: Path, environ: dict[str, str]) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments],
                env={**os.environ, **SETTINGS, "RAY_AUTH_MODE": "token", **environ},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                cwd=log.parent,
            )

    def until_started(self) -> None:
        """Nodes that start side by side on one machine get into each other's way."""
        until = time.monotonic() + LIMIT_S
        while "Ray runtime started" not in self._log.read_text():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(self._log.read_text()[-3000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to each of its processes, all at once as far as that can be."""
        for _ in range(3):
            for pid in session(self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


class Cluster(AbstractContextManager["Cluster"]):
    """A head, with a node for each silo. Its dashboard takes jobs."""

    def __init__(self, folder: Path, **environ: str) -> None:
        """``folder``: for logs and the runs of the driver's node. ``environ``: for all nodes."""
        self.folder = folder
        self.temp = tempfile.mkdtemp(prefix="sr", dir="/tmp")
        self.port, self.dashboard_port, self._agent_port, self._client_port = free_ports(4)
        self._environ = {
            "PYTHONPATH": str(REPOSITORY),
            "RAY_TMPDIR": self.temp,
            "SILORAY_RUNS": str(folder / "runs"),
            **environ,
        }
        self._num_started = 0
        self.head: RayNode | None = None
        self.silos: list[RayNode] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def __enter__(self) -> "Cluster":
        self.start_head()
        return self

    def __exit__(self, *_: object) -> None:
        for node in (*self.silos, *([self.head] if self.head else [])):
            node.kill()
        shutil.rmtree(self.temp, ignore_errors=True)

    def start_head(self, **environ: str) -> None:
        """Also once more: the note of where the cluster was, beside silos that still look for it, would pass for a
        head that is running."""
        for note in (Path(self.temp), Path(self.temp, "ray")):
            (note / "ray_current_cluster").unlink(missing_ok=True)
        ports = {
            "--port": self.port,
            "--dashboard-port": self.dashboard_port,
            "--dashboard-agent-listen-port": self._agent_port,
            "--ray-client-server-port": self._client_port,
        }
        arguments = ["--head", "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--num-cpus=1"]
        arguments += ["--labels=siloray.role=driver", f"--temp-dir={self.temp}"]
        self.head = self._node([*arguments, *(f"{name}={port}" for name, port in ports.items())], environ)

    def join(self, silo: str, document: Path, label: str | None = None) -> RayNode:
        """The node of a silo, which knows where its document is; ``label``: another name on the outside."""
        labels = f"--labels=siloray.silo={label or silo},siloray.role=silo"
        arguments = [f"--address={self.address}", labels, "--num-cpus=1"]
        arguments += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        node = self._node(arguments, {"SILORAY_SILO": str(document)})
        self.silos.append(node)
        return node

    def _node(self, arguments: list[str], environ: dict[str, str]) -> RayNode:
        common = ["--node-ip-address=127.0.0.1", f"--object-store-memory={STORE_BYTES}"]
        common += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        self._num_started += 1
        log = self.folder / f"ray{self._num_started}.log"
        node = RayNode([*arguments, *common], log, {**self._environ, **environ})
        node.until_started()
        return node
