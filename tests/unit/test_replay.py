"""A past round from the updates that were kept: the same bits, or the reason why not."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from orchestrator import folding
from orchestrator.at_rest import STORE_KEY, Key, make_key
from orchestrator.bucket import CACHE, Bucket, child
from orchestrator.cli.main import app
from orchestrator.core.errors import BadInput, BadJob
from orchestrator.kept_updates import kept
from orchestrator.pulled import runs_copy
from orchestrator.replaying import Replayed, replay
from orchestrator.store import Store
from orchestrator.verifying import verify
from orchestrator.weighing import cohort_of
from tests.support import quadratic
from tests.support.federation import Ended, run_quadratic

KEEP = {"newest": 10, "updates": 2}


def job_of(total: int = 4, **sections: Any) -> Any:
    return quadratic.job_of([f"s{i}" for i in range(4)], total=total, **{"keep": KEEP, **sections})


def ran(folder: Path, **sections: Any) -> Ended:
    ended = run_quadratic(job_of(**sections), quadratic.problems(steps=(1, 5, 10, 3)), folder)
    assert ended.outcome.status == "done", ended.outcome
    return ended


def replayed(folder: Path, version: int, key: Key | None = None) -> Replayed:
    return asyncio.run(replay(Store(folder / "runs" / "run", key=key), version))


STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedadam": {"strategy": {"name": "fedavg", "server": {"name": "adam", "lr": 0.1}}},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "fednova": {"strategy": {"name": "fednova"}},
    "clipped": {"privacy": [{"name": "clip", "max_norm": 0.5}]},
    "buffered": {"rounds": {"mode": "async", "buffer": 2, "max_staleness": 3}},
    "contributions": {"report": {"contribution": "leave_one_out"}, "stop": {"metric": "loss"}},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_gives_the_same_bits(tmp_path: Path, name: str) -> None:
    ended = ran(tmp_path, **STRATEGIES[name])
    for version in (3, 4):
        found = replayed(tmp_path, version)
        assert not found.wrong, found.verdict
        assert found.compared[0] == "its checkpoint"
    assert found.compared[-1] == "the run's last line"
    assert found.parameters == ended.digest
    with pytest.raises(BadInput, match="updates of this version are not kept"):
        replayed(tmp_path, 2)


def test_of_a_run_in_a_store_the_updates_are_on_the_drivers_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/store"
    here = runs_copy(uri)
    ran(here.parent / "made")
    shutil.copytree(here.parent / "made" / "runs" / "run", here / "run")
    bucket = Bucket(child(uri, "run"))
    bucket.put("journal/000001-000000000000.jsonl", (here / "run" / "journal.jsonl").read_bytes())
    bucket.put("lease.json", (here / "run" / "lease.json").read_bytes())
    ended = CliRunner().invoke(app, ["verify", "run", "--runs-dir", uri, "--replay", "4"])
    command = f"siloray verify run --runs-dir {here} --replay 4"
    assert ended.exit_code == 2 and ended.output.count("\n") == 1
    assert f"run there '{command}'" in ended.output
    ended = CliRunner().invoke(app, command.split()[1:])
    assert ended.exit_code == 0 and "REPLAYED: version 4" in ended.output


def test_without_the_checkpoint_it_is_compared_with_what_the_silos_signed(tmp_path: Path) -> None:
    ran(tmp_path, keep={"newest": 10, "updates": 4})
    import shutil

    shutil.rmtree(tmp_path / "runs" / "run" / "checkpoints" / "v000002")
    assert replayed(tmp_path, 2).compared == ["the receipts of the silos that had it"]


def changed(path: Path, key: Key | None = None) -> None:
    arrays = safetensors.numpy.load(path.read_bytes())
    values = arrays["values"].copy()
    values[0] = np.nextafter(values[0], np.float32(np.inf))
    path.write_bytes(safetensors.numpy.save({"values": values}))


def test_a_changed_update_is_found(tmp_path: Path) -> None:
    ran(tmp_path)
    changed(tmp_path / "runs" / "run" / "updates" / "v000003" / f"0001-{0:012d}.block")
    assert "the kept update of s1 is not what it signed" in replayed(tmp_path, 3).verdict
    assert not replayed(tmp_path, 4).wrong


def test_other_headers_are_found(tmp_path: Path) -> None:
    ran(tmp_path)
    path = tmp_path / "runs" / "run" / "updates" / "v000003" / "round.json"
    text = path.read_text()
    path.write_text(text.replace('"silo": "s1"', '"silo": "s2"'))
    assert "other silos or versions" in replayed(tmp_path, 3).verdict
    for name in ("weight", "num_examples", "num_steps"):
        about = json.loads(text)
        about["updates"][1][name] += 1
        path.write_text(json.dumps(about))
        assert "s1 has signed for other numbers" in replayed(tmp_path, 3).verdict


def test_numbers_that_a_strategy_weighs_by_are_signed_for(tmp_path: Path) -> None:
    ran(tmp_path, **STRATEGIES["fednova"])
    path = tmp_path / "runs" / "run" / "updates" / "v000003" / "round.json"
    about = json.loads(path.read_text())
    about["updates"][1]["scalars"]["path"] *= 2
    path.write_text(json.dumps(about))
    assert "s1 has signed for other numbers" in replayed(tmp_path, 3).verdict


@pytest.mark.parametrize("lie", ["weights", "factors"])
def test_a_driver_that_weighs_as_it_likes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """While the run goes on: silos sign for each model, journal and checkpoints agree with one another."""
    told = {"weights": (0.97, 0.01, 0.01, 0.01), "factors": (0.5,) * 4}[lie]
    monkeypatch.setattr(folding, "cohort_of", lambda *known: replace(cohort_of(*known), **{lie: told}))
    ran(tmp_path)
    monkeypatch.undo()
    store = Store(tmp_path / "runs" / "run")
    assert verify(store).fine, "nothing else shows it"
    assert "other weights than the journal's" in replayed(tmp_path, 3).verdict


def test_a_checkpoint_of_other_numbers_is_found(tmp_path: Path) -> None:
    """The one that the round began from: it gives another model."""
    import shutil

    ran(tmp_path)
    problems = quadratic.problems(steps=(1, 5, 10, 3), lr=0.01)
    run_quadratic(job_of(), problems, tmp_path / "other")
    theirs = tmp_path / "other" / "runs" / "run" / "checkpoints" / "v000002"
    shutil.rmtree(tmp_path / "runs" / "run" / "checkpoints" / "v000002")
    shutil.copytree(theirs, tmp_path / "runs" / "run" / "checkpoints" / "v000002")
    assert "other numbers" in " ".join(replayed(tmp_path, 3).wrong)


def test_what_cannot_be_computed_anew(tmp_path: Path) -> None:
    ran(tmp_path, keep={"newest": 2})
    with pytest.raises(BadInput, match="not kept; a job keeps those"):
        replayed(tmp_path, 4)
    with pytest.raises(BadInput, match="checkpoint of version 1 is not kept"):
        replayed(tmp_path, 2)
    with pytest.raises(BadInput, match="no round of this run has made version 9"):
        replayed(tmp_path, 9)
    sealed = {"combine": {"name": "fixed_point_sum"}}
    with pytest.raises((BadJob, ValueError), match="sees the sum alone"):
        job_of(**sealed)
    ran(tmp_path / "sealed", **sealed, keep={"newest": 5})
    with pytest.raises(BadInput, match="nobody but the silos ever had its terms"):
        replayed(tmp_path / "sealed", 2)


def test_kept_updates_are_encrypted_where_checkpoints_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "store.key")
    monkeypatch.setenv(STORE_KEY, str(tmp_path / "store.key"))
    ran(tmp_path)
    blocks = list((tmp_path / "runs" / "run" / "updates").rglob("*.*"))
    assert len(blocks) == 10 and all(path.read_bytes().startswith(b"SRYSEAL1") for path in blocks)
    assert not replayed(tmp_path, 4, key).wrong
    with pytest.raises(BadInput, match="encrypted"):
        replayed(tmp_path, 4)
    with pytest.raises(BadInput, match="encrypted with another key"):
        kept(tmp_path / "runs" / "run", 4, Key(b"o" * 32))


def test_a_full_disk_ends_the_keeping_and_not_the_round(tmp_path: Path) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "updates").write_text("no folder can be made here")
    assert ran(tmp_path).digest == ran(tmp_path / "other").digest


def test_the_command(tmp_path: Path) -> None:
    ran(tmp_path)
    asked = ["verify", "run", "--runs-dir", str(tmp_path / "runs"), "--replay", "3"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "VERIFIED: 4 rounds" in done.output and "REPLAYED: version 3" in done.output
    changed(tmp_path / "runs" / "run" / "updates" / "v000003" / f"0001-{0:012d}.block")
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 2 and '"NOT REPLAYED: version 3' in done.output
