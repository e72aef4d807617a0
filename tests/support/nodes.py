"""More Ray nodes on this machine, one per silo: what a cluster with a node for each organisation is like."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

STORE_BYTES = 80 << 20


class Nodes(AbstractContextManager["Nodes"]):
    """Nodes that join the Ray of this process, each labelled as one silo and told of its own ``silo.yaml``.

    One after the other, five seconds each: side by side they get into each other's way.
    """

    def __init__(self, documents: Mapping[str, Path], num_gpus: int = 0) -> None:
        """``num_gpus``: that each is counted to have, whatever the machine has."""
        self._documents, self._num_gpus = documents, num_gpus
        self._nodes: list[Any] = []

    def __enter__(self) -> "Nodes":
        for silo, document in self._documents.items():
            self._nodes.append(_node(silo, document, self._num_gpus))
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.kill_all_processes(check_alive=False, allow_graceful=True)


def _node(silo: str, document: Path, num_gpus: int) -> Any:
    from ray._private import node, parameter, worker

    head = worker._global_node
    params = parameter.RayParams(
        gcs_address=head.gcs_address,
        node_ip_address=head.node_ip_address,
        temp_dir=os.environ["RAY_TMPDIR"],
        num_cpus=1,
        num_gpus=num_gpus,
        object_store_memory=STORE_BYTES,
        labels={"siloray.silo": silo},
        env_vars={"SILORAY_SILO": str(document)},
        include_log_monitor=False,
        min_worker_port=0,
        max_worker_port=0,
    )
    return node.Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
