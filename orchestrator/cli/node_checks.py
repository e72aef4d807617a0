"""What the nodes of a cluster say of themselves, judged: each finding with its remedy."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.cli.checks import GB, SPILL_REMEDY, SPILLED, Check, Level
from orchestrator.cli.words import size, some

if TYPE_CHECKING:
    from orchestrator.cli.node_facts import Facts
    from orchestrator.cli.probe import Node, Report

ROLE, SILO = "siloray.role", "siloray.silo"

CLOCK_S = 2.0
"""Clocks that differ more make logs hard to read, and certificates and tokens valid here and not there."""

SAME = {"Python": 2, "ray": 3, "siloray": 3}
"""So many parts of these versions must be the same everywhere: values travel as pickles."""


def all_nodes(reports: Sequence["Report"], late: Level = "fail") -> Iterator[Check]:
    """Node by node, then what concerns several. ``late``: how bad it is that a node has not answered yet."""
    for report in sorted(reports, key=lambda each: called(each.node)):
        yield from _one(report, late)
    known = {called(each.node): each.facts for each in reports if each.facts is not None}
    yield from versions({name: facts.versions for name, facts in known.items()})
    yield from security([each for each in reports if each.facts is not None])
    yield from spills({name: facts.spills_to for name, facts in known.items() if facts.spills_to})


def called(node: "Node") -> str:
    """``node 10.0.0.2 (va)``."""
    role = labels_of(node).get(SILO) or labels_of(node).get(ROLE)
    return f"node {node.get('NodeManagerAddress')}" + (f" ({role})" if role else "")


def labels_of(node: "Node") -> Mapping[str, str]:
    return node.get("Labels") or {}


def _one(report: "Report", late: Level) -> Iterator[Check]:
    what, facts = called(report.node), report.facts
    if facts is None and report.late:
        yield Check(late, what, report.why, "is the line to it well? See the node's logs")
        return
    if facts is None:
        remedy = "install the same Siloray there; see the node's logs"
        yield Check("fail", what, f"cannot be asked: {report.why}", remedy)
        return
    problems = [
        *_room(what, facts),
        *_clock(what, report),
        *_silo(what, facts),
        *_gpu(what, report.node, facts),
    ]
    yield from problems
    if not problems:
        room = f"{size(facts.disk_free)} of disk free, /dev/shm holds {size(facts.shared_memory)}"
        yield Check("pass", what, f"{room}, {_offset(report)}{_data(facts)}")


def _room(what: str, facts: "Facts") -> Iterator[Check]:
    if facts.disk_free < 5 * GB:
        found = f"{size(facts.disk_free)} of disk free for Ray's files"
        yield Check(
            "fail" if facts.disk_free < 0.5 * GB else "warn",
            what,
            found,
            "free some, or ray start --temp-dir",
        )
    if facts.shared_memory < 2 * GB:
        yield Check(
            "warn", what, f"/dev/shm holds {size(facts.shared_memory)}", "in a container: --shm-size=8g"
        )


def _clock(what: str, report: "Report") -> Iterator[Check]:
    if report.clock_s is not None and abs(report.clock_s) - report.about_s > CLOCK_S:
        yield Check("warn", what, _offset(report), "let it be set by NTP, here and there")


def _offset(report: "Report") -> str:
    if report.clock_s is None:
        return "clock not measured"
    return f"clock {report.clock_s:+.2f} s (± {report.about_s:.2f} s)"


def _silo(what: str, facts: "Facts") -> Iterator[Check]:
    if facts.wrong:
        remedy = "SILORAY_SILO in that node's environment, or /etc/siloray/silo.yaml, is its silo document"
        yield Check("fail", what, facts.wrong, remedy)
    if facts.refuses:
        yield Check("fail", what, facts.refuses, "its silo.yaml, or the job, has to change")
    if facts.unwritable:
        remedy = "the silo keeps its record beside silo.yaml: let the account that Ray has there write"
        yield Check("fail", what, f"{facts.unwritable} cannot be written to", remedy)
    for name, found in facts.data.items():
        if found.startswith("! "):
            yield Check(
                "fail", what, f"data set '{name}': {found[2:]}", "mend its entry in silo.yaml, or the files"
            )


def _gpu(what: str, node: "Node", facts: "Facts") -> Iterator[Check]:
    counted = int((node.get("Resources") or {}).get("GPU", 0))
    if facts.gpus is None:
        return
    if facts.gpus < 0:
        yield Check("fail", what, "torch cannot be imported", "uv sync --reinstall there")
    elif facts.gpus != counted:
        level: Level = "fail" if facts.gpus < counted else "warn"
        found = f"Ray counts {counted} GPUs, torch sees {facts.gpus}"
        yield Check(level, what, found, "a torch that fits the driver, or ray start --num-gpus")
    if facts.gpus == 0 and facts.device.startswith("cuda"):
        found = f"silo.yaml has it train on '{facts.device}', and torch sees no GPU"
        yield Check("fail", what, found, "local.device: auto, or a torch that fits the driver")


def _data(facts: "Facts") -> str:
    return "".join(f"; {name}: {found}" for name, found in facts.data.items())


def versions(found: Mapping[str, Mapping[str, str]]) -> Iterator[Check]:
    """Of the packages, by node."""
    packages = sorted({package for each in found.values() for package in each})
    for package in packages:
        installed = {node: each.get(package, "none") for node, each in found.items()}
        yield _version(package, installed)


def _version(package: str, installed: Mapping[str, str]) -> Check:
    parts = SAME.get(package, 3)
    if len({tuple(version.split(".")[:parts]) for version in installed.values()}) == 1:
        return Check("pass", f"{package} on all nodes", ", ".join(sorted(set(installed.values()))))
    told = ", ".join(f"{version} on {node}" for node, version in sorted(installed.items()))
    level: Level = "fail" if package in SAME else "warn"
    return Check(level, f"{package} on all nodes", told, "install the same everywhere")


def security(reports: Sequence["Report"]) -> Iterator[Check]:
    """Whether strangers are kept out, and whether the network can listen. Of nodes that have answered."""
    asked = [(str(each.node.get("NodeManagerAddress")), each.facts) for each in reports if each.facts]
    network = len({address for address, _ in asked}) > 1
    if asked:
        yield _authentication(sorted({address for address, facts in asked if not facts.token}), network)
        yield _encryption(all(facts.tls for _, facts in asked), network)


def spills(places: Mapping[str, str]) -> Iterator[Check]:
    """By node, the folder in which models and updates may come to lie in the clear."""
    if places:
        found = f"{', '.join(sorted(set(places.values())))} on {some(sorted(places))}: {SPILLED}"
        yield Check("warn", "spilled objects", found, SPILL_REMEDY)


def _authentication(without: Sequence[str], network: bool) -> Check:
    if not without:
        return Check("pass", "cluster authentication", "token")
    found = f"off on {some(without)}" + (": who reaches it can run code on every node" if network else "")
    remedy = "RAY_AUTH_MODE=token on every machine, then ray start"
    return Check("fail" if network else "warn", "cluster authentication", found, remedy)


def _encryption(tls: bool, network: bool) -> Check:
    if network and not tls:
        found = "off: who can listen to the network can read models and updates"
        remedy = "RAY_USE_TLS=1 and certificates on every machine, or a network of their own"
        return Check("warn", "cluster TLS", found, remedy)
    return Check("pass", "cluster TLS", "on" if tls else "off, on one machine")
