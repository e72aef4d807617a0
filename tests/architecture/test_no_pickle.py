"""Nothing that arrives over the line between organisations is unpickled or run: watched, and banned.

``python -m tests.architecture.test_no_pickle`` is the child that is watched.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core import events

REPOSITORY = Path(__file__).parents[2]

BANNED_EVENTS = (
    "pickle.find_class",
    "marshal.loads",
    "marshal.load",
    "exec",
    "compile",
    "code.__new__",
    "os.system",
)
"""Audit events: a class looked up by a pickle, code made from bytes or text, or run."""

PATH = (
    "orchestrator/transport/wire.py",
    "orchestrator/transport/wire_messages.py",
    "orchestrator/transport/mailbox.py",
    "orchestrator/transport/flight.py",
    "orchestrator/transport/flight_client.py",
    "orchestrator/transport/flight_server.py",
    "orchestrator/transport/served.py",
    "orchestrator/transport/todo.py",
    "orchestrator/transport/certs.py",
    "orchestrator/transport/roster.py",
    "orchestrator/transport/authority.py",
    "orchestrator/transport/request.py",
    "orchestrator/transport/key_files.py",
    "orchestrator/core/document.py",
    "orchestrator/core/messages.py",
    "silos/agent.py",
    "silos/workplace.py",
    "silos/silo.py",
    "silos/run.py",
    "silos/outbox.py",
    "silos/signs.py",
    "silos/policy.py",
    "silos/guard.py",
    "silos/ledger.py",
    "silos/approvals.py",
    "silos/audit.py",
    "silos/state.py",
)
"""Modules that what arrives passes through before it is a checked message, and those that load what decides."""

BANNED_MODULES = {
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "code",
    "runpy",
    "ctypes",
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "import_module"}


# Watched


def _ours(frame: Any) -> str:
    """The innermost modules that led here, for the message."""
    names = []
    while frame is not None and len(names) < 6:
        names.append(f"{frame.f_globals.get('__name__')}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(names)


def _importing(frame: Any) -> bool:
    """A module that is imported for the first time comes from the disk, as code."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False


class Watch:
    """Counts what Python reports of itself, from now on and for good: an audit hook cannot be taken away."""

    def __init__(self) -> None:
        self.open = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, _: Any) -> None:
        if self.open and event in BANNED_EVENTS and not _importing(sys._getframe(1)):
            self.seen.append(f"{event}: {_ours(sys._getframe(1))}")

    def __enter__(self) -> "Watch":
        self.open = True
        return self

    def __exit__(self, *_: Any) -> None:
        self.open = False


def plain_silos() -> tuple[str, int]:
    """Status and rounds of a run behind the driver's whole door, journal and all; silos of the tests'."""
    from tests.integration.test_flight_attacks import Live, job
    from tests.support.scratch import scratch

    with scratch() as folder:
        live = Live(folder, job())
        live.start()
        try:
            ended = live.finish()
        finally:
            live.close()
        return ended.outcome.status, len(ended.summary["versions"])


def hospitals() -> tuple[str, int]:
    """The same of the heart example's own job and silos: their documents, policies, tables and PyTorch."""
    import yaml

    from orchestrator.job import Job
    from tests.contract.conftest import over_flight
    from tests.contract.test_contract import run
    from tests.integration.conftest import HEART, write_silos
    from tests.support.scratch import scratch

    document = yaml.safe_load((HEART / "job.yaml").read_text(encoding="utf-8"))
    job = Job.model_validate({**document, "rounds": {**document["rounds"], "total": 4}})
    with scratch() as folder:
        silos = write_silos(folder / "silos")
        seen = run(over_flight, job, {name: silos / f"{name}.yaml" for name in job.silos}, folder)
        return seen.outcome.status, seen.of(events.RoundClosed)[-1].version


def child() -> dict[str, Any]:
    """Whole federations over Flight: each once as a start-up, then watched from dialling to its end."""
    import pickle

    watch, told = Watch(), {}
    for federation in (plain_silos, hospitals):
        federation()
        with watch:
            status, rounds = federation()
        told[federation.__name__] = [status, rounds]
    told["seen"] = list(watch.seen)
    with watch:
        pickle.loads(pickle.dumps(Path("x")))
        exec("pass")
    return {**told, "awake": [each.partition(":")[0] for each in watch.seen[len(told["seen"]) :]]}


def test_a_federation_over_flight_unpickles_nothing_and_runs_nothing_that_arrived() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.architecture.test_no_pickle"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["plain_silos"] == told["hospitals"] == ["done", 4]
    assert told["seen"] == []
    assert {"pickle.find_class", "exec"} <= set(told["awake"]), "the watch sleeps"


# Banned


def flaws(text: str) -> list[str]:
    """What a module must not import or call, with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                used = [each.name for each in names]
            case ast.ImportFrom(module=str(module)):
                used = [module]
            case ast.Call(func=func):
                name = ast.unparse(func)
                used = [name] if _banned(name, node) else []
                found += [f"{node.lineno}: {each}" for each in used]
                continue
            case _:
                continue
        found += [f"{node.lineno}: {each}" for each in used if each.split(".")[0] in BANNED_MODULES]
    return found


def _banned(name: str, call: ast.Call) -> bool:
    given = {each.arg: ast.unparse(each.value) for each in call.keywords}
    if name in BANNED_CALLS or name.rpartition(".")[2] in {"import_module", "load_module"}:
        return True
    if name.startswith("yaml.") and "load" in name and not name.startswith("yaml.safe_load"):
        loader = given.get("Loader") or "".join(ast.unparse(each) for each in call.args[1:2])
        return loader.rpartition(".")[2] not in SAFE_LOADERS
    if name == "torch.load":
        return given.get("weights_only") != "True"
    return given.get("allow_pickle", "False") != "False"


SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "_Loader"}
"""``_Loader`` is a `yaml.SafeLoader` of ours (`orchestrator.core.document`)."""


@pytest.mark.parametrize("path", PATH)
def test_no_module_on_the_path_can_unpickle_or_run_what_arrives(path: str) -> None:
    assert flaws((REPOSITORY / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as json",
        "from pickle import loads",
        "def f():\n    import cloudpickle",
        "import dill",
        "import marshal",
        "import shelve",
        "from joblib import load",
        "eval(x)",
        "exec(x)",
        "__import__(x)",
        "importlib.import_module(x)",
        "yaml.load(x, yaml.Loader)",
        "yaml.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=y)",
    ],
)
def test_the_ban_finds_what_it_bans(text: str) -> None:
    assert len(flaws(text)) == 1


def test_the_ban_leaves_what_is_harmless() -> None:
    assert (
        flaws("yaml.load(x, Loader=yaml.SafeLoader); torch.load(x, weights_only=True); json.loads(x)") == []
    )


if __name__ == "__main__":
    print(json.dumps(child()))
