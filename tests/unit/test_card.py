"""The model card: what it says follows from the record, and it claims nothing that the record does not show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.card import card
from orchestrator.card_facts import Facts, facts_of
from orchestrator.cli.main import app
from orchestrator.core.events import Event, RunClosed, RunOpened, Sealed, SiloJoined
from orchestrator.job import Job
from orchestrator.privacy_statement import statement
from orchestrator.summary import summarise
from tests.integration.test_release import run, sites
from tests.support.arrivals import closed, contributor
from tests.support.torch_site import torch_job
from tracking.weights import digest_of

SECURE = {"combine": {"name": "secure_sum"}, "rounds": {"total": 2, "min_updates": 3}}


def facts(privacy: Any = None, seal: int = 0, **sections: Any) -> Facts:
    """Of a run of two rounds; ``seal``: of so many it is known that they were sealed; ``privacy``: of silo a."""
    job = torch_job("abcd", 2, **sections)
    opened = RunOpened(
        run_id="r",
        name="j",
        job=job.model_dump(mode="json"),
        job_digest="d",
        epoch=1,
        versions={},
        time=1.6e9,
    )
    joined = [
        SiloJoined(
            silo=silo,
            incarnation="1",
            fingerprint=f"print of {silo}",
            num_examples={"train": 40, "test": 20} if silo != "b" else {},
            num_parameters=10,
            num_shared=10,
            device="cpu",
            node="n",
            versions={},
        )
        for silo in "abc"
    ]
    spent = privacy or {}
    rounds = {
        version: closed(
            version,
            *(contributor(silo, weight=1 / 3, privacy=spent if silo == "a" else {}) for silo in "abc"),
            lineage=f"l{version}",
            sealed=Sealed(tag="t", digest="d") if version <= seal else None,
            time=1.6e9 + version * 86400,
        )
        for version in (1, 2)
    }
    ended = RunClosed(
        status="done", reason="", version=2, parameters_digest="p", never_contributed=["d"], time=1.6e9
    )
    events: list[Event] = [opened, *joined, *rounds.values(), ended]
    return Facts(summarise(events), Job.model_validate(opened.job), rounds, "head-hash", 7)


def test_who_is_in_it_with_shares_and_dates() -> None:
    text = card(facts(), "digest-of-two")
    assert "| a | 2 | 0.333 | 2020-09-14 | 2020-09-15 |" in text and "| d | none |" in text
    assert "| a | 40 | 20 |" in text and "| b | not told | not told |" in text
    assert "`digest-of-two`" in text and "`head-hash`" in text and "siloray verify r" in text
    assert "Never contributed: d" in text
    assert "*not stated; fill in `card`" in text
    named = card(facts(card={"intended_use": "Triage | in tests"}), None)
    assert "| intended for | Triage / in tests |" in named and "no longer in the run directory" in named


def test_plain_averages_are_said_to_protect_nobody_from_the_driver() -> None:
    text = card(facts(), None)
    assert "The driver saw every silo's update" in text and "No differential privacy" in text
    assert "epsilon" not in text


def test_a_sum_is_sealed_where_the_rounds_say_so() -> None:
    whole = card(facts(seal=2, **SECURE), None)
    assert "All 2 rounds behind this version were summed so" in whole and "at least 3 silos" in whole
    assert "does not bound what the sum, or the released model, says" in whole
    half = card(facts(seal=1, **SECURE), None)
    assert "Only 1 of the 2 rounds" in half and "All 2 rounds" not in half
    assert "saw every silo's update" not in whole


def test_sums_of_groups_are_not_said_to_be_of_all() -> None:
    groups = {"name": "secure_sum", "groups": {"size": 3, "rule": "median"}}
    job = torch_job("abcdefghi", 2, combine=groups, rounds={"total": 2, "min_updates": 9})
    said = " ".join(statement(job, [{"sealed": True}] * 2, {}))
    assert "at least 3 silos" in said and "9 silos" not in said
    assert "saw each group's sum" in said and "took the median" in said


def test_epsilons_are_those_that_the_silos_told() -> None:
    noise = {"name": "dp_sgd", "max_grad_norm": 1.0, "noise_multiplier": 1.2}
    spent = {"epsilon": 2.345, "epsilon_rdp": 2.6, "epsilon_job": 1.5, "delta": 1e-5}
    text = card(_with(noise, spent), None)
    assert "| a | 2.345 | 2.6 | 1.5 | 1e-05 |" in text and "single **record**" in text
    assert "No epsilon is known of b, c, d." in text
    assert "No differential privacy" not in text
    silent = card(_with(noise, {}), None)
    assert "**No silo has told an epsilon.**" in silent
    test_noise = card(_with({**noise, "insecure_test_noise_seed": 1}, {}), None)
    assert "protects nobody: this was a test" in test_noise


def test_what_no_epsilon_is_of_is_said() -> None:
    made = _with({"name": "dp_sgd", "max_grad_norm": 1.0, "noise_multiplier": 1.2}, {})
    silos = {
        name: {**each, "metrics": "noised" if name == "b" else "open"}
        for name, each in made.summary["silos"].items()
    }
    task = {"name": "tabular", "dataset": "d", "target": "y", "features": ["x"]}
    for standardise in (True, False):
        job = Job.model_validate(
            {**made.job.model_dump(mode="json"), "task": {**task, "standardise": standardise}}
        )
        text = card(replace(made, job=job, summary={**made.summary, "silos": silos}), None)
        assert ("means and deviations, by which each silo scaled its columns" in text) == standardise
        assert "metrics on test rows left without noise from a, c, d." in text
    assert "Outside that epsilon" not in card(facts(), None)


def _with(step: dict[str, Any], spent: dict[str, float]) -> Facts:
    made = facts(spent)
    job = torch_job("abcd", 2, privacy=[step])
    return Facts(made.summary, job, made.rounds, made.head, made.num_lines)


def test_the_card_of_a_real_run(tmp_path: Path) -> None:
    of = sites(tmp_path / "silos")
    ended = run(tmp_path, of=of)
    folder = tmp_path / "runs" / "run"
    found = facts_of(folder)
    text = card(found, digest_of(folder, found.version))
    assert "Release: **passed (3 of 3 silos voted pass, 3 are needed)**" in text
    assert ended.digest in text and digest_of(folder, found.version) in text  # type: ignore[operator]
    assert text.count("| pass |") == 3 and "canaries (mean exposure at most 3 bits)" in text
    assert "up to 20 meaningless records" in text
    for title in ("Model", "Intended use", "Data", "Privacy", "Evaluation", "Incidents", "How to check this"):
        assert f"\n## {title}\n" in text
    output = tmp_path / "card.md"
    command = ["card", "run", "--runs-dir", str(tmp_path / "runs"), "--output", str(output)]
    assert CliRunner().invoke(app, command).exit_code == 0 and output.read_text(encoding="utf-8") == text
    nowhere = [*command[:-1], str(tmp_path / "no" / "card.md")]
    assert CliRunner().invoke(app, nowhere).exit_code == 2


@pytest.mark.parametrize(
    ("combine", "whom"),
    [
        ({"name": "two_aggregator_sum", "second": "d"}, "the driver and d. Neither saw a single update"),
        ({"name": "encrypted_sum"}, "A silo that worked together with the driver"),
        ({"name": "secure_sum", "mode": "active"}, "a driver that lies opens nothing more"),
    ],
)
def test_each_sealed_sum_says_whom_it_trusts(combine: dict[str, Any], whom: str) -> None:
    assert whom in card(facts(seal=2, **{**SECURE, "combine": combine}), None)


def test_what_a_silo_says_moves_no_cursor_and_makes_no_line_of_its_own() -> None:
    said = "\x1b[2J\u202e\n## Privacy\u2028nothing left"
    refused = {"silo": "a", "version": 1, "code": "data", "reason": said}
    made = facts()
    found = replace(made, summary={**made.summary, "refused": [refused]})
    text = card(found, None)
    assert "Refused from a at version 1 (data): \\x1b[2J\\u202e ## Privacy nothing left" in text
    assert all(line.isprintable() for line in text.split("\n")) and text.count("\n## Privacy\n") == 1


def test_a_vote_against_names_the_attack_that_got_too_far() -> None:
    made = facts(release={"attacks": ["membership", "inversion"]})
    votes = {
        "a": {"vote": "fail", "verdicts": {"membership": "pass", "inversion": "fail"}},
        "b": {"vote": "fail", "verdicts": {}},
    }
    release = {
        "version": 2,
        "votes": {"a": "fail", "b": "fail"},
        "missing": {"c": "lost"},
        "needed": 3,
        "vetoed": [],
        "passed": False,
        "silos": {silo: {"scores": {"psnr": 20.0}, "why": "", **said} for silo, said in votes.items()},
    }
    text = card(replace(made, summary={**made.summary, "release": release}), None)
    assert "| a | fail (inversion) |" in text and "| b | fail |" in text


def test_whose_key_and_which_contract() -> None:
    made = facts(contract={"max_quarantined": 0.03})
    assert "which lets 0.03 of a split's rows be left out" in card(made, None)
    assert "contract" not in card(facts(), None)
    assert "| key of the driver that signed it | none |" in card(made, None)
    assert "| key of the driver that signed it | `k=` |" in card(replace(made, driver_key="k="), None)
