"""What `siloray doctor --address` looks at: a running Ray cluster and its nodes. `run` takes a quick look before it
starts anything."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.checks import Check, Level
from orchestrator.cli.failures import BAD_INPUT, say
from orchestrator.cli.node_checks import ROLE, SILO, all_nodes, called, labels_of
from orchestrator.cli.words import one_line, size, some
from orchestrator.core.errors import BadInput, CannotGoOn

if TYPE_CHECKING:
    from orchestrator.cli.probe import Node, Report
    from orchestrator.job import Job


DEEP_S, QUICK_S = 60.0, 10.0
"""How long the nodes may take to answer."""

ABSENT = "silos"


def cluster(
    address: str, job: "Job | None" = None, runs_dir: str | None = None, tracking_uri: str | None = None
) -> Iterator[Check]:
    """Joins the cluster for a moment. ``job``: its silos are expected, and asked; None: whichever there are.
    ``runs_dir``, ``tracking_uri``: as the driver's node knows them; None: its own."""
    from orchestrator.transport import ray as transport

    try:
        transport.connect(address, 0)
    except BadInput as error:
        remedy = "is it up, is the port open, and are token, TLS, Ray and Python the same everywhere?"
        yield Check("fail", "cluster", one_line(error), remedy)
        return
    try:
        yield dashboard(transport.dashboard_url())
        known = _known()
        yield from nodes(known, job.silos if job is not None else ())
        yield from all_nodes(_asked(known, job, deep=True))
        yield from _home(runs_dir, tracking_uri)
    finally:
        transport.shutdown()


def refuse(job: "Job | None") -> None:
    """Look at the cluster that this process is connected to, and end the command if something must be mended on the
    driver's node or at a silo of ``job``. What is not there, or does not answer, may come: the run waits for it."""
    silos = job.silos if job is not None else ()
    near = concerned(_known(), silos, _here())
    reports = _asked(near, job, deep=False)
    found = [*nodes(near, silos, absent="warn"), *all_nodes(reports, late="warn")]
    waits = [each.found for each in found if each.what == ABSENT and each.level == "warn"]
    for why in waits + [f"{called(each.node)}: {each.why}" for each in reports if each.late]:
        typer.echo(f"{why}; the run waits", err=True)
    failed = [each for each in found if each.level == "fail"]
    for each in failed:
        say(f"{each.what}: {each.found}; {each.remedy} (--no-checks starts all the same)")
    if failed:
        raise typer.Exit(BAD_INPUT)


def concerned(known: Sequence["Node"], silos: Sequence[str], here: str) -> list["Node"]:
    """The nodes of the job's silos and that of the driver, which is this one (by its id) where none is labelled."""
    labelled = [node for node in known if labels_of(node).get(ROLE) == "driver"]
    drivers = labelled or [node for node in known if node["NodeID"] == here]
    return drivers + [node for node in known if labels_of(node).get(SILO) in silos and node not in drivers]


def _here() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _known() -> Sequence["Node"]:
    import ray

    found: Sequence[Node] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def _asked(known: Sequence["Node"], job: "Job | None", deep: bool) -> list["Report"]:
    from orchestrator.cli.probe import probe

    alive = [node for node in known if node["Alive"]]
    return probe(alive, job, deep, DEEP_S if deep else QUICK_S)


def _home(runs_dir: str | None, tracking_uri: str | None) -> Iterator[Check]:
    from orchestrator.cli.home_checks import RUNS, home
    from orchestrator.transport import ray as transport

    try:
        yield from transport.on_driver_node(home, runs_dir, tracking_uri)
    except CannotGoOn as error:
        yield Check("fail", RUNS, one_line(error), "install the same Siloray there; see the node's logs")


def dashboard(url: str) -> Check:
    host = url.rpartition(":")[0]
    if host in {"", "127.0.0.1", "localhost", "[::1]"}:
        return Check("pass", "cluster dashboard", f"at {url}" if url else "none")
    remedy = "ray start --dashboard-host=127.0.0.1, and a tunnel: who reaches it can run code"
    return Check("warn", "cluster dashboard", f"open to the network at {url}", remedy)


def nodes(known: Sequence["Node"], silos: Sequence[str] = (), absent: Level = "fail") -> Iterator[Check]:
    """A line per node, and what is wrong among their labels. ``absent``: how bad it is when a silo has no node."""
    alive = [node for node in known if node.get("Alive")]
    for node in sorted([*alive, *_away(known)], key=called):
        yield _node(node)
    yield from _drivers([node for node in alive if labels_of(node).get(ROLE) == "driver"])
    yield from _silos([node for node in alive if SILO in labels_of(node)], silos, absent)


def _away(known: Sequence["Node"]) -> list["Node"]:
    """Ray keeps each time that a node was lost on its list: only those that are not there again, once each."""
    here = {_who(node) for node in known if node.get("Alive")}
    lost = {_who(node): node for node in known if not node.get("Alive")}
    return [node for who, node in lost.items() if who not in here]


def _who(node: "Node") -> str:
    """A silo by its name, wherever its machine is now; else the machine."""
    return labels_of(node).get(SILO) or called(node)


def _drivers(found: Sequence["Node"]) -> Iterator[Check]:
    if not found:
        remedy = f"ray start --labels={ROLE}=driver on the machine that keeps the runs"
        yield Check("warn", "labels", "no node is labelled for the driver", remedy)
    if len(found) > 1:
        remedy = "label one: a run's directory is on the node where its driver was first started"
        yield Check("fail", "labels", f"{len(found)} nodes are labelled for the driver", remedy)


def _silos(found: Sequence["Node"], expected: Sequence[str], absent: Level) -> Iterator[Check]:
    names = sorted(labels_of(node)[SILO] for node in found)
    if not names:
        remedy = f"ray start --labels={SILO}=<name>,{ROLE}=silo at each organisation"
        yield Check("warn", "labels", "no node is labelled for a silo", remedy)
    for name in sorted({each for each in names if names.count(each) > 1}):
        yield Check("fail", "labels", f"two nodes are labelled as silo '{name}'", "one name each")
    missing = sorted(set(expected) - set(names))
    if missing:
        remedy = f"ray start --address=<head> --labels={SILO}=<name>,{ROLE}=silo at each of them"
        yield Check(absent, ABSENT, f"no node of {some(missing)} in the cluster", remedy)
    elif expected:
        yield Check("pass", ABSENT, f"a node for each of the job's {len(expected)}")
    yield from _sharing(found)


def _sharing(found: Sequence["Node"]) -> Iterator[Check]:
    hosts: dict[str, set[str]] = {}
    for node in found:
        hosts.setdefault(str(node.get("NodeManagerAddress")), set()).add(labels_of(node)[SILO])
    for host, names in hosts.items():
        if len(names) > 1:
            remedy = "a machine for each organisation, unless this is a trial"
            yield Check("warn", "machines", f"{some(sorted(names))} share the machine {host}", remedy)


def _node(node: "Node") -> Check:
    resources = node.get("Resources") or {}
    if not node.get("Alive"):
        return Check("warn", called(node), "away", "'ray start --address' there brings it back")
    facts = f"{resources.get('CPU', 0):g} cores, {resources.get('GPU', 0):g} GPUs"
    store = size(resources.get("object_store_memory", 0))
    labels = labels_of(node)
    role = labels.get(SILO) or labels.get(ROLE) or "no siloray label"
    return Check("pass", called(node), f"{role}, {facts}, {store} for objects")
