"""The Ray shell of a silo: it carries requests to `Silo.handle`, and knows nothing else.

A plain class, made an actor where it is used. ``handle`` works in one thread; ``answer`` has its own threads, so
that pieces are fetched and signs of life given while training runs.
"""

import os
import platform
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import Refused, Reply, Request
from silos.configured_site import site_here
from silos.silo import Silo

IO_THREADS = 4


class SiloActor:
    """One silo's process on its own node."""

    def __init__(self, name: str, silo_yaml: str | None, code: Sequence[str] = ()) -> None:
        sys.path.extend(folder for folder in code if folder not in sys.path)
        threading.Thread(target=_preload, daemon=True).start()
        self.name = name
        self._silo: Silo | None = None
        self._wrong = ""
        try:
            self._silo = Silo(site_here(name, silo_yaml))
        except BadInput as error:
            self._wrong = str(error)

    def handle(self, request: Request, model: Any = None) -> Reply:
        """Join, train, evaluate. ``model`` is the broadcast, read from the object store without a copy."""
        if self._silo is None:
            return Refused(silo=self.name, code="data", reason=self._wrong)
        return self._silo.handle(replace(request, model=model) if model is not None else request)  # type: ignore[call-arg]

    @ray.method(concurrency_group="io")
    def answer(self, request: Request) -> Reply:
        """Fetch, ping, stop."""
        if self._silo is None:
            return Refused(silo=self.name, code="data", reason=self._wrong)
        return self._silo.handle(request)

    @ray.method(concurrency_group="io")
    def describe(self) -> dict[str, Any]:
        """Data sets and their sizes, as far as the policy lets them out."""
        if self._silo is None:
            return {"node": platform.node(), "device": self._wrong, "datasets": {}}
        about: dict[str, Any] = self._silo.site.describe()
        return about

    @ray.method(concurrency_group="io")
    def place(self) -> tuple[str, int]:
        """Node id and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


def _preload() -> None:
    """Seconds of imports, while the driver's own process still starts."""
    import silos.tasks.build
    import silos.trainer  # noqa: F401
