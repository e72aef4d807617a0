"""``siloray ledger`` at a silo: what its data have lost, and whether the record of it is whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.core.messages import LedgerHead
from orchestrator.privacy.accountant import Query, epsilon, epsilon_rdp
from silos.configured_site import ConfiguredSite
from silos.odometer import RESERVED, Account, Spent
from silos.spending import Charge, Spend
from tests.support.heads import signed

TRAINING, LOOK = Spend(Query(1.0, 4.0, 1)), Spend(Query(1.0, 40.0, 1), part="test")
BUDGET = {"epsilon": 3, "delta": 1e-5}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("x,y\n1,0\n2,1\n")
    write(budget=BUDGET)
    return tmp_path


def write(**heart: Any) -> None:
    datasets = {"heart": {"path": "rows.csv", **heart}, "lungs": {"path": "rows.csv", "columns": {"x": "y"}}}
    Path("silo.yaml").write_text(yaml.safe_dump({"name": "a", "datasets": datasets}))


def ledger(line: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["ledger", *line.split(), "--silo", "silo.yaml"])
    return ended.exit_code, ended.output


def account() -> Account:
    return next(each for each in ConfiguredSite(Path("silo.yaml")).accounts() if each.dataset == "heart")


def spent(*spends: Spend, job: str = "a" * 64, seen: LedgerHead | None = None) -> Spent:
    """As a silo does it: entered, and then in the audit file."""
    site = ConfiguredSite(Path("silo.yaml"))
    found = site.odometer.reserve(account(), spends or (TRAINING,), job, "run", 0, seen)
    site.guard.audit.write(RESERVED, run="run", length=found.head.length, head=found.head.hash)
    return found


def test_what_each_job_took_and_what_is_left() -> None:
    spent(TRAINING, LOOK)
    spent(TRAINING, job="b" * 64)
    code, text = ledger("show")
    assert code == 0
    two, one = [TRAINING.query] * 2, [TRAINING.query]
    left = 3 - epsilon(two, 1e-5)
    lines = text.splitlines()
    assert lines[0].startswith(
        f"heart (files {account().data[:12]}): budget epsilon 3 at delta 1e-05 for each record"
    )
    assert lines[0].endswith(f"{left:.4g} left")
    pair = f"{epsilon(two, 1e-5):.4g} (RDP {epsilon_rdp(two, 1e-5):.4g})"
    assert lines[1] == f"  record: epsilon {pair}, 3 queries"
    assert lines[2].startswith(f"    job {'a' * 12}, train rows: epsilon {epsilon(one, 1e-5):.4g} (RDP ")
    assert lines[3].startswith(
        f"    job {'a' * 12}, test rows: epsilon {epsilon([LOOK.query], 1e-5):.4g} (RDP "
    )
    assert lines[4].startswith(f"    job {'b' * 12}, train rows: ") and len(lines) == 5
    (found,) = json.loads(ledger("show --json")[1])
    assert found["left"] == pytest.approx(left) and [job["steps"] for job in found["totals"][0]["jobs"]] == [
        1,
        1,
        1,
    ]


def test_changed_files_keep_their_account_and_new_rows_have_one_of_their_own() -> None:
    spent()
    Path("rows.csv").write_text("x,y\n1,0\n2,1\n3,1\n")
    assert "2.074 left" in ledger("show")[1]
    write(budget={**BUDGET, "new_rows": [account().data[:12]]})
    code, text = ledger("show")
    assert code == 0 and text.splitlines()[0].endswith("3 left")


def test_data_that_cannot_be_read_are_shown_as_they_were_charged() -> None:
    data = account().data
    spent()
    Path("rows.csv").unlink()
    code, text = ledger("show")
    assert code == 0 and data[:12] in text and "2.074 left" in text


def test_nothing_to_show() -> None:
    write()
    assert ledger("show") == (0, "nothing is entered, and no data set has a budget\n")
    write(budget=BUDGET)
    assert "3 left" in ledger("show")[1]
    code, text = ledger("verify")
    assert code == 0 and "whole, 0 lines" in text


def test_a_whole_ledger_and_who_knows_of_it(folder: Path) -> None:
    head = spent().head
    code, text = ledger("verify")
    assert code == 0 and f"whole, 1 lines, head {head.hash[:12]}" in text
    assert "known to the audit file up to line 1; signed by drivers up to line 0" in text
    assert "nobody outside the silo" in text
    spent(seen=signed(head, "a"))
    code, text = ledger("verify")
    assert code == 0 and "up to line 2; signed by drivers up to line 1" in text and "nobody" not in text


@pytest.mark.parametrize("command", ["show", "verify"])
def test_damage_is_told_with_its_line(folder: Path, command: str) -> None:
    spent(), spent()
    path = folder / ".siloray" / "a" / "ledger" / "spent.jsonl"
    path.write_text(path.read_text().replace('"sigma":4.0', '"sigma":9.0', 1))
    code, text = ledger(command)
    assert code == 2 and "line 1 is not as it was written; put the newest copy of the file back" in text


def test_a_restored_copy_does_not_go_with_the_audit_file(folder: Path) -> None:
    spent()
    path = folder / ".siloray" / "a" / "ledger" / "spent.jsonl"
    backup = path.read_bytes()
    spent()
    path.write_bytes(backup)
    code, text = ledger("verify")
    assert code == 2 and "audit.jsonl knows line 2 " in " ".join(text.split()) and "newest copy" in text


def test_a_signature_of_another_is_none(folder: Path) -> None:
    """Of another silo's head, or made up."""
    first, odometer = spent().head, ConfiguredSite(Path("silo.yaml")).odometer
    charge = Charge(TRAINING, "a" * 64, account().data)
    with odometer.ledger.writing() as writing:
        writing.append([odometer._line(account(), charge, "run", 0, signed(first, "b"))])
    code, text = ledger("verify")
    assert code == 2 and "line 2: the driver's signature does not fit its key" in text
