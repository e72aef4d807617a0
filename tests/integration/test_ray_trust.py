"""What one Ray cluster does not protect from: its nodes trust one another, and the token only keeps strangers out.

Each test does, with nothing but Ray's own means, what a silo could do to the driver or to another silo of the same
cluster, and asserts that it *succeeds*. So these are no defects that somebody mends here: they are why a cluster is for
one organisation only, and why organisations that do not trust one another connect over Flight, where no pickle and no
code travels (docs/deployment.md, "What one Ray cluster does not protect from"). A test that fails means that Ray has
changed, and that the page needs another look.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import Nodes

pytestmark = pytest.mark.slow


class Payload:
    """An object that, where it is read, runs a function of its sender's choice: here it only says where it ran."""

    def __init__(self, note: Path) -> None:
        self._note = note

    def __reduce__(self) -> tuple[Any, ...]:
        return _leave_note, (str(self._note),)


class Poisoned(Exception):
    """An exception whose arguments are such an object."""


def _leave_note(note: str) -> str:
    Path(note).write_text(str(os.getpid()), encoding="utf-8")
    return "a model update, it says"


class Silo:
    """A silo's process: it holds something that it gives to nobody."""

    def __init__(self) -> None:
        self._private = "a patient's row"

    def update(self, note: Path) -> Any:
        return Payload(note)

    def fail(self, note: Path) -> Any:
        raise Poisoned(Payload(note))

    def place(self) -> tuple[str, int]:
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def visit(self, silo: str) -> tuple[str, str]:
        """Run a task on another silo's node: that node's id, and the silo document that its processes find."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        (node,) = (
            each for each in ray.nodes() if each["Alive"] and each["Labels"].get("siloray.silo") == silo
        )
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_look_around).options(num_cpus=0, scheduling_strategy=there)
        return ray.get(task.remote())

    def read(self, silo: str) -> str:
        """A private attribute of another silo's actor, found by its name in another namespace."""
        import ray

        named = ray.util.list_named_actors(all_namespaces=True)
        (found,) = (each for each in named if each["name"] == f"trust-{silo}")
        other = ray.get_actor(found["name"], namespace=found["namespace"])
        return ray.get(other.__ray_call__.remote(lambda self: self._private))


def _look_around() -> tuple[str, str]:
    import ray

    return ray.get_runtime_context().get_node_id(), Path(os.environ["SILORAY_SILO"]).read_text(
        encoding="utf-8"
    )


@pytest.fixture(scope="module")
def silos(ray_here: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Silos ``a`` and ``b``, each on a node of its own, in namespaces of their own, with token authentication."""
    import ray

    assert os.environ["RAY_AUTH_MODE"] == "token"
    folder = tmp_path_factory.mktemp("trust")
    documents = {name: folder / name / "silo.yaml" for name in "ab"}
    for name, document in documents.items():
        document.parent.mkdir()
        document.write_text(f"name: {name}  # for nobody else's eyes\n", encoding="utf-8")
    with Nodes(documents):
        actors = {
            name: ray.remote(Silo)
            .options(
                name=f"trust-{name}",
                namespace=f"org-{name}",
                num_cpus=0,
                label_selector={"siloray.silo": name},
            )
            .remote()
            for name in documents
        }
        yield actors
        for actor in actors.values():
            ray.kill(actor)


def test_what_a_silo_returns_runs_code_in_the_driver(silos: dict[str, Any], tmp_path: Path) -> None:
    """Reading an answer is enough: it is a pickle."""
    import ray

    note = tmp_path / "ran"
    told = ray.get(silos["a"].update.remote(note))
    assert told == "a model update, it says"
    assert note.read_text(encoding="utf-8") == str(os.getpid()), "in the driver's own process"


def test_what_a_silo_raises_runs_code_in_the_driver(silos: dict[str, Any], tmp_path: Path) -> None:
    """So to look at returned values before use, or to wrap them, helps nothing."""
    import ray

    note = tmp_path / "ran"
    with pytest.raises(Poisoned):
        ray.get(silos["a"].fail.remote(note))
    assert note.read_text(encoding="utf-8") == str(os.getpid())


def test_a_silo_runs_its_code_on_another_silos_machine(silos: dict[str, Any]) -> None:
    """As the account that Ray runs as there: all that this account may read is read."""
    import ray

    theirs, _ = ray.get(silos["b"].place.remote())
    mine, _ = ray.get(silos["a"].place.remote())
    node, document = ray.get(silos["a"].visit.remote("b"))
    assert node == theirs != mine
    assert document == "name: b  # for nobody else's eyes\n"


def test_a_silo_reads_another_silos_memory(silos: dict[str, Any]) -> None:
    """A namespace hides a name from no one."""
    import ray

    assert ray.get(silos["a"].read.remote("b")) == "a patient's row"
