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

BY_NAME = {
    "orchestrator/privacy/accountant.py": "an optional library of ours",
    "silos/adapters.py": "an optional library of ours",
    "silos/tasks/own.py": "a module that this silo's own `allow_code` names",
}
"""Modules that import another one by its name, and whose name that is."""

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


def plain_silos(**sections: Any) -> tuple[str, int]:
    """Status and rounds of a run behind the driver's whole door, journal and all; silos of the tests'."""
    from tests.integration.test_flight_attacks import Live, job
    from tests.support.scratch import scratch

    with scratch() as folder:
        live = Live(folder, job(**sections))
        live.start()
        try:
            ended = live.finish()
        finally:
            live.close()
        return ended.outcome.status, len(ended.summary["versions"])


def masked() -> tuple[str, int]:
    """The same with what goes from silo to silo through the driver: keys, boxes with shares of secrets."""
    return plain_silos(combine={"name": "secure_sum", "mode": "active"}, rounds={"min_updates": 3})


def encrypted() -> tuple[str, int]:
    """And ciphertexts, which TenSEAL reads."""
    return plain_silos(combine={"name": "encrypted_sum"}, rounds={"min_updates": 3})


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


FEDERATIONS = (plain_silos, masked, encrypted, hospitals)


def child() -> dict[str, Any]:
    """Whole federations over Flight: each once as a start-up, then watched from dialling to its end."""
    import pickle

    watch, told = Watch(), {}
    for federation in FEDERATIONS:
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
    assert all(told[each.__name__] == ["done", 4] for each in FEDERATIONS)
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


def test_no_module_can_unpickle_or_run_what_arrives() -> None:
    found = {
        str(path.relative_to(REPOSITORY)): {
            each.partition(": ")[2] for each in flaws(path.read_text("utf-8"))
        }
        for folder in ("orchestrator", "silos", "tracking")
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    assert len(found) > 200
    assert {path: each for path, each in found.items() if each} == {
        path: {"importlib.import_module"} for path in BY_NAME
    }


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
