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
from silos.told import public, whole

IO_THREADS = 4

PACKAGES = "/runtime_resources/working_dir_files/"
"""Where Ray unpacks the folders of submitted jobs."""

SILO_LABEL = "siloray.silo"
"""The label by which a site's administrator says whose node it is."""


def _preload() -> None:
    """Seconds of imports, while the driver's own process still starts."""
    import silos.tasks.build
    import silos.trainer  # noqa: F401


class SiloActor:
    """One silo's process on its own node."""

    preload = staticmethod(_preload)
    """Runs in a thread of its own. Silos that do not train with torch, as benchmarks have them, need it not."""

    def __init__(
        self, name: str, silo_yaml: str | None, code: Sequence[str] = (), foreign_driver: bool = False
    ) -> None:
        if silo_yaml is None:
            _leave_package()
        sys.path.extend(folder for folder in code if folder not in sys.path)
        self._preloading = threading.Thread(target=self.preload, daemon=True)
        self._preloading.start()
        self.name = name
        self._document = silo_yaml, foreign_driver
        self._silo: Silo | None = None
        self._wrong = ""
        self._opening = threading.Lock()
        self._opened()

    def __repr__(self) -> str:
        return f"silo {self.name}"

    def _opened(self) -> Silo | None:
        """The silo; tried again where its document was unreadable before."""
        with self._opening:
            if self._silo is None:
                try:
                    _check_node(self.name)
                    self._silo = Silo(site_here(self.name, *self._document))
                except BadInput as error:
                    self._wrong = self._said(error)
            return self._silo

    def _said(self, error: BadInput) -> str:
        _, foreign_driver = self._document
        return public(error) if foreign_driver else whole(error)

    def handle(self, request: Request, model: Any = None) -> Reply:
        """Join, train, evaluate. ``model`` is the broadcast, read from the object store without a copy."""
        self._preloading.join()  # one thread imports at a time: two may find each other's modules half made
        return self._handled(replace(request, model=model) if model is not None else request)  # type: ignore[call-arg]

    @ray.method(concurrency_group="io")
    def answer(self, request: Request) -> Reply:
        """Fetch, ping, stop."""
        return self._handled(request)

    def _handled(self, request: Request) -> Reply:
        silo = self._opened()
        return (
            Refused(silo=self.name, code="data", reason=self._wrong) if silo is None else silo.handle(request)
        )

    @ray.method(concurrency_group="io")
    def describe(self) -> dict[str, Any]:
        """Data sets and their sizes, as far as the policy lets them out."""
        silo = self._opened()
        try:
            if silo is not None:
                return dict(silo.site.describe())
            wrong = self._wrong
        except BadInput as error:
            wrong = self._said(error)
        return {"node": platform.node(), "device": wrong, "datasets": {}}

    @ray.method(concurrency_group="io")
    def place(self) -> tuple[str, int]:
        """Node id and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


def _check_node(name: str) -> None:
    """Whoever placed this process here may be mistaken; the node's own label is not."""
    owner = ray.get_runtime_context().get_node_labels().get(SILO_LABEL, name)
    if owner != name:
        raise BadInput(f"this node belongs to the silo '{owner}' by its label, not to '{name}'")


def _leave_package() -> None:
    """A submitted job has the folder that came with it on the path of all its processes, and this one outlives the
    job. Tasks and models of the user's own are those that are installed at the silo."""
    package = os.getcwd()
    if PACKAGES in package and not __file__.startswith(package):
        sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or ".") != package]
        os.chdir("/")
