"""The silo's documents as they are now, behind the silo's one door: they bind a run in hand."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.messages import Evaluate, Initial, Join, Joined, Leave, Refused, Request, Train, Update
from orchestrator.job import Job
from silos.approvals import Approvals, code_digests
from silos.configured_site import ConfiguredSite
from silos.silo import Silo

RUN: dict[str, Any] = {"run_id": "run", "epoch": 1}
JOB = Job.model_validate(
    {
        "name": "hearts",
        "task": {
            "name": "tabular",
            "dataset": "heart",
            "target": "y",
            "features": ["x"],
            "standardise": False,
        },
        "silos": ["a"],
        "rounds": {"total": 5},
        "local": {"steps": 1},
    }
)


def write(folder: Path, name: str = "a", data: str = "rows.csv", **policy: Any) -> Path:
    (folder / "rows.csv").write_text("x,y\n" + "1,0\n2,1\n3,0\n4,1\n" * 5)
    document = {
        "name": name,
        "datasets": {"heart": {"path": data}},
        "policy": policy,
        "local": {"device": "cpu"},
    }
    path = folder / "silo.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def approved(site: ConfiguredSite) -> Approvals:
    site.approve(JOB, "somebody", "today", code_digests(JOB), {"heart": site.manifest("heart")})
    return Approvals(site.own_folder)


def asked(silo: Silo) -> dict[str, Request]:
    """All that may be asked in a run, by what it is."""
    run = silo._run
    model = dict(run.trainer.initial()) if run is not None else {}
    known: dict[str, Any] = {**RUN, "version": 0, "model": model, "counted": -1}
    return {
        "join": Join(**RUN, job=JOB.model_dump_json(), job_digest=JOB.digest),
        "initial": Initial(**RUN),
        "train": Train(**known, attempt=1, model_digest="m", inline=100),
        "evaluate": Evaluate(**known),
    }


def joined(path: Path) -> Silo:
    silo = Silo(ConfiguredSite(path))
    assert isinstance(silo.handle(asked(silo)["join"]), Joined)
    return silo


def refused(silo: Silo) -> set[tuple[str, str]]:
    """Codes and reasons; nothing is answered otherwise."""
    replies = [silo.handle(request) for request in asked(silo).values()]
    assert all(isinstance(reply, Refused) and "\n" not in reply.reason for reply in replies), replies
    return {(reply.code, reply.reason) for reply in replies}


def test_a_stricter_policy_binds_a_run_in_hand(tmp_path: Path) -> None:
    silo = joined(write(tmp_path))
    write(tmp_path, allow_jobs=["other-*"])
    assert refused(silo) == {("policy", "a does not allow the job 'hearts' (allow_jobs: other-*)")}
    write(tmp_path)
    assert isinstance(silo.handle(asked(silo)["train"]), Update), "and a more generous one frees it"


def test_opening_hours_and_norms_are_those_of_the_document_now(tmp_path: Path) -> None:
    silo = joined(write(tmp_path))
    write(tmp_path, max_update_norm=1e-9)
    reply = silo.handle(asked(silo)["train"])
    assert isinstance(reply, Refused) and "max_update_norm" in reply.reason
    write(tmp_path, max_hours=1e-9)
    ((code, reason),) = refused(silo)
    assert code == "policy" and "max_hours" in reason


def test_metrics_are_those_that_may_leave_now(tmp_path: Path) -> None:
    silo = joined(write(tmp_path))
    write(tmp_path, metrics_out=[])
    reply = silo.handle(asked(silo)["train"])
    assert isinstance(reply, Update) and reply.metrics == reply.train_metrics == {}


@pytest.mark.parametrize("mode", ["none", "summed"])
def test_a_rule_on_metrics_binds_a_run_in_hand(tmp_path: Path, mode: str) -> None:
    silo = joined(write(tmp_path))
    write(tmp_path, metrics=mode)
    reply = silo.handle(asked(silo)["train"])
    if mode == "summed":
        assert isinstance(reply, Refused) and "(policy.metrics: summed)" in reply.reason
    else:
        assert isinstance(reply, Update) and reply.metrics == reply.train_metrics == {}


def test_noised_metrics_are_charged_to_the_ledger(tmp_path: Path) -> None:
    """Of real rows: 20, of which a handful is for the test."""
    silo = joined(write(tmp_path, metrics="noised", metrics_noise_multiplier=0.2))
    reply = silo.handle(asked(silo)["train"])
    assert (
        isinstance(reply, Update)
        and reply.metrics.keys() <= {"accuracy", "auc"}
        and reply.train_metrics == {}
    )
    (line,) = (tmp_path / ".siloray" / "a" / "ledger" / "spent.jsonl").read_text().splitlines()
    assert '"part":"test"' in line and '"sigma":0.2' in line and reply.privacy["epsilon"] > 20


def test_an_approval_that_is_revoked_binds_a_run_in_hand(tmp_path: Path) -> None:
    path = write(tmp_path, approval="required")
    approvals = approved(ConfiguredSite(path))
    silo = joined(path)
    assert isinstance(silo.handle(asked(silo)["train"]), Update)
    approvals.remove(JOB)
    ((code, reason),) = refused(silo)
    assert code == "policy" and "has not approved the job 'hearts'" in reason


@pytest.mark.parametrize("text", ["", "name: [", "name: a\nname: b", "name: a\ndatasets: {}", None])
def test_a_document_that_cannot_be_read_refuses_until_it_is_mended(tmp_path: Path, text: str | None) -> None:
    path = write(tmp_path)
    silo = joined(path)
    path.unlink() if text is None else path.write_text(text)
    for _ in range(2):
        ((code, reason),) = refused(silo)
        assert code == "data" and "silo.yaml" in reason
    write(tmp_path)
    assert isinstance(silo.handle(asked(silo)["train"]), Update)


def test_a_document_of_another_silo_is_none(tmp_path: Path) -> None:
    silo = joined(write(tmp_path))
    write(tmp_path, name="b")
    ((code, reason),) = refused(silo)
    assert code == "data" and "names the silo 'b', and this process is 'a'" in reason


def test_a_document_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    silo = joined(path)
    read = silo.site.config  # type: ignore[attr-defined]
    assert isinstance(silo.handle(asked(silo)["train"]), Update) and silo.site.config is read  # type: ignore[attr-defined]
    os.utime(path, ns=(1, 1))
    silo.handle(asked(silo)["join"])
    assert silo.site.config is not read  # type: ignore[attr-defined]


def test_another_run_gets_the_data_that_the_document_names_now(tmp_path: Path) -> None:
    silo = joined(write(tmp_path))
    silo.handle(Leave(**RUN, finished=True))
    (tmp_path / "more.csv").write_text("x,y\n" + "1,0\n2,1\n" * 50)
    write(tmp_path, data="more.csv")
    reply = silo.handle(asked(silo)["join"])
    assert isinstance(reply, Joined) and sum(reply.num_examples.values()) == 100


@pytest.mark.parametrize("run_id", ["approvals.json", "audit.jsonl", "jobs", "runs", "agent.lock"])
def test_a_run_does_not_touch_what_else_the_silo_keeps(tmp_path: Path, run_id: str) -> None:
    path = write(tmp_path, approval="required", max_rounds=5)
    site = ConfiguredSite(path)
    approved(site)
    silo = Silo(site)
    request = Join(run_id=run_id, epoch=1, job=JOB.model_dump_json(), job_digest=JOB.digest)
    assert isinstance(silo.handle(request), Joined)
    kept = {each.name for each in site.own_folder.iterdir()}
    assert kept == {
        "approvals.json",
        "audit.jsonl",
        "identity.key",
        "jobs",
        "runs",
        "manifest.key",
        "manifests",
    }
    assert not isinstance(silo.handle(Leave(run_id=run_id, epoch=1, finished=True)), Refused)
    assert kept == {each.name for each in site.own_folder.iterdir()} and not list(
        (site.own_folder / "runs").iterdir()
    )
    assert isinstance(silo.handle(request), Joined)


@pytest.mark.parametrize("other", ["rows.csv", "r*.csv", "../{}/rows.csv", "."])
def test_rows_with_a_budget_have_one_account(tmp_path: Path, other: str) -> None:
    """Under another name they would have none, or one more."""
    path = write(tmp_path)
    document = yaml.safe_load(path.read_text())
    document["datasets"]["again"] = {"path": other.format(tmp_path.name), "splits": {"seed": 1}}
    for name, code in (("heart", "data"), ("again", "data"), (None, None)):
        for each in document["datasets"].values():
            each.pop("budget", None)
        if name is not None:
            document["datasets"][name]["budget"] = {"epsilon": 1, "delta": 1e-5}
        path.write_text(yaml.safe_dump(document))
        silo = Silo(ConfiguredSite(path))
        reply = silo.handle(asked(silo)["join"])
        if code is None:
            assert isinstance(reply, Joined)
        else:
            assert isinstance(reply, Refused) and reply.code == code
            assert (
                "'heart' and 'again' read the same files, and a privacy budget is of one entry"
                in reply.reason
            )
    (tmp_path / "more.csv").write_text("x,y\n1,0\n")
    document["datasets"]["again"]["path"] = "more.csv"
    document["datasets"]["again"]["budget"] = {"epsilon": 1, "delta": 1e-5}
    path.write_text(yaml.safe_dump(document))
    assert isinstance(Silo(ConfiguredSite(path)).handle(asked(silo)["join"]), Joined)
