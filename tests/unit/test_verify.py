"""What a run directory proves: each way of tampering with one is found, and told with its place."""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from orchestrator.core import events
from orchestrator.core.errors import BadInput
from orchestrator.core.receipts import Receipt
from orchestrator.receipts import signed
from orchestrator.store import COUNTERSIGNS, Store
from orchestrator.verdict import Outside, Report
from orchestrator.verifying import verify
from tests.support import quadratic
from tests.support.federation import federate, run_quadratic
from tests.support.rewritten import DRIVER, Line, lines, rewritten, write


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three rounds, with a key of the driver's."""
    folder = tmp_path_factory.mktemp("run")
    ended = run_quadratic(
        quadratic.job_of(["s0", "s1", "s2"], total=3), quadratic.problems(3), folder, signer=DRIVER
    )
    assert ended.outcome.status == "done"
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    import shutil

    shutil.copytree(made / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "run"


def report(run: Path, **outside: Any) -> Report:
    return verify(Store(run), Outside(**outside))


def first(raw: list[bytes], kind: str) -> int:
    return next(place for place, line in enumerate(raw) if json.loads(line)["event"]["type"] == kind)


def rounds(raw: list[bytes]) -> list[int]:
    return [place for place, line in enumerate(raw) if json.loads(line)["event"]["type"] == "round_closed"]


def test_a_run_as_it_was_made(made: Path) -> None:
    found = report(made / "runs" / "run", driver_key=base64.b64encode(DRIVER.public).decode())
    assert found.fine, found.verdict
    assert found.contributors == {"s0": 3, "s1": 3, "s2": 3} and found.versions == 3
    assert set(found.countersigned.values()) == {found.num_lines}, "each has signed all of it when it left"
    by_name = {check.what: check.found for check in found.checks}
    assert "9 updates, 3 silos' keys" in by_name["receipts"]
    assert "4 versions signed for, 4 of them held against checkpoints" in by_name["models"]


def test_an_edit_of_one_line(run: Path) -> None:
    raw = lines(run)
    place = rounds(raw)[0]
    raw[place] = raw[place].replace(b'"num_steps":5', b'"num_steps":6')
    write(run, raw)
    found = report(run)
    assert found.verdict == f"NOT VERIFIED: journal: line {place + 1} is damaged: its checksum is another"


def test_an_edit_with_its_checksum_made_right(run: Path) -> None:
    raw = lines(run)
    place = rounds(raw)[0]
    body = raw[place][len(b'{"crc":"00000000",') :].replace(b'"num_steps":5', b'"num_steps":6')
    raw[place] = b'{"crc":"%08x",%s' % (zlib.crc32(body), body)
    write(run, raw)
    found = report(run)
    assert f"line {place + 2} does not follow the line before it: one of them was changed" in found.verdict
    assert any(f"line {place + 1} is not signed" in each for each in found.checks[1].wrong)


def test_a_line_that_is_gone(run: Path) -> None:
    raw = lines(run)
    place = first(raw, "silo_joined")
    write(run, raw[:place] + raw[place + 1 :])
    assert f"line {place + 1} was written as line {place + 2}" in report(run).verdict


def test_lines_that_changed_places(run: Path) -> None:
    raw = lines(run)
    place = first(raw, "silo_joined")
    raw[place], raw[place + 1] = raw[place + 1], raw[place]
    write(run, raw)
    assert f"line {place + 1} was written as line {place + 2}" in report(run).verdict


def test_a_journal_that_was_cut(run: Path) -> None:
    """The silos have signed more lines than there are; so they have where their last signatures are gone, too, but
    for what came after the last of their receipts."""
    raw = lines(run)
    write(run, raw[:-1])
    assert f"signed a history of {len(raw)} lines, and here are {len(raw) - 1}" in report(run).verdict
    (run / COUNTERSIGNS).unlink()
    write(run, raw[: rounds(raw)[1]])
    assert "checkpoint" in report(run).verdict, "which were made after lines that are not here"


def test_a_journal_cut_with_all_that_knows_of_it_but_a_silos_own_record(run: Path, tmp_path: Path) -> None:
    raw = lines(run)
    (run / COUNTERSIGNS).unlink()
    last = rounds(raw)[1]
    for version in (2, 3):
        import shutil

        shutil.rmtree(run / "checkpoints" / f"v{version:06d}")
    write(run, raw[:last])
    assert report(run).fine, "nothing here knows of more"
    head = hashlib.sha256(raw[last]).hexdigest()
    audit = tmp_path / "audit.jsonl"
    told = {"event": "update", "run": "run", "journal_head": head, "journal_lines": last + 1}
    audit.write_text(json.dumps(told) + "\n")
    found = report(run, audits=[audit])
    assert f"line 1: the silo was told of {last + 1} other lines than these" in found.verdict


def test_a_silo_that_never_heard_of_the_run(run: Path, tmp_path: Path) -> None:
    """Somebody made it up, silo and all: the keys in it are none of that silo's."""
    audit = tmp_path / "audit.jsonl"
    audit.write_text('{"event": "joined", "run": "another"}\n')
    assert report(run, audits=[audit]).verdict.endswith(f"record {audit}: the silo knows nothing of this run")
    audit.write_text('{"event": "joined", "run": "run"}\n')
    assert report(run, audits=[audit]).fine, "it joined, and nobody asked it for anything"


@pytest.mark.parametrize("sign", [False, True])
def test_a_chain_that_was_made_anew_from_one_line_on(run: Path, sign: bool) -> None:
    """Even by the driver itself: the silos have signed the other one."""

    def change(place: int, line: Line) -> Line:
        if line["event"]["type"] == "round_closed" and line["event"]["version"] == 1:
            line["event"]["contributors"][0]["num_steps"] = 99
        return line

    write(run, rewritten(lines(run), change, sign))
    found = report(run)
    assert not found.fine and not found.checks[0].wrong, "the chain itself is right"
    history = next(check for check in found.checks if check.what == "countersigned history")
    assert any("signed another history" in each for each in history.wrong)
    assert bool(found.checks[1].wrong) != sign


def test_a_round_taken_out_and_the_chain_made_anew(run: Path) -> None:
    def change(place: int, line: Line) -> Line | None:
        event = line["event"]
        return None if event["type"] == "round_closed" and event["version"] == 2 else line

    write(run, rewritten(lines(run), change, sign=True))
    assert not report(run).fine


def forged(run: Path, change: Callable[[Receipt], Receipt], other: int = 0) -> Report:
    """The first receipt of the last round is another one."""

    def put(place: int, line: Line) -> Line:
        if line["event"]["type"] == "round_closed" and line["event"]["version"] == 3:
            each = line["event"]["contributors"]
            receipt = change(Receipt(**each[other]["receipt"]))
            each[0]["receipt"] = json.loads(json.dumps({n: getattr(receipt, n) for n in Receipt.__slots__}))
        return line

    write(run, rewritten(lines(run), put, sign=True))
    return report(run)


def test_a_receipt_that_the_silo_did_not_sign(run: Path) -> None:
    found = forged(run, lambda receipt: signed(replace(receipt, update="0" * 64), DRIVER.sign))
    assert (
        "s0: a receipt that it has not signed"
        in next(c for c in found.checks if c.what == "receipts").wrong[0]
    )


def test_another_silos_receipt(run: Path) -> None:
    found = forged(run, lambda receipt: receipt, other=1)
    assert (
        "s0: a receipt that it has not signed"
        in next(c for c in found.checks if c.what == "receipts").wrong[0]
    )


def test_a_receipt_of_an_earlier_round(run: Path) -> None:
    raw = lines(run)
    old = json.loads(raw[rounds(raw)[0]])["event"]["contributors"][0]["receipt"]
    found = forged(run, lambda receipt: Receipt(**old))
    wrong = " ".join(next(c for c in found.checks if c.what == "receipts").wrong)
    assert "stands here for a second time" in wrong and "another version" in wrong


def test_a_receipt_of_another_run(run: Path, tmp_path: Path, made: Path) -> None:
    """The same silos, with the same keys."""
    job = quadratic.job_of(["s0", "s1", "s2"], total=3)
    other = federate(
        job,
        quadratic.silo_makers(quadratic.sites(quadratic.problems(3), made / "silos")),
        tmp_path / "other",
        run_id="another",
    )
    theirs = other.of(events.RoundClosed)[-1].contributors[0].receipt
    found = forged(run, lambda receipt: theirs)
    assert "another silo, run, job" in " ".join(next(c for c in found.checks if c.what == "receipts").wrong)


def test_a_receipt_for_another_purpose(run: Path) -> None:
    """Of an evaluation: the silo signed for the same model, and gave nothing."""
    (told,) = (e for _, e in Store(run).events() if e["type"] == "version_evaluated")
    theirs = next(each for each in told["receipts"] if each["silo"] == "s0")
    found = forged(run, lambda receipt: Receipt(**theirs))
    assert "or purpose" in " ".join(next(c for c in found.checks if c.what == "receipts").wrong)


def test_a_number_of_rows_that_the_silo_did_not_sign(run: Path) -> None:
    """Shares of the model follow from it."""

    def change(place: int, line: Line) -> Line:
        if line["event"]["type"] == "round_closed" and line["event"]["version"] == 3:
            line["event"]["contributors"][1]["num_examples"] += 1
        return line

    write(run, rewritten(lines(run), change, sign=True))
    wrong = next(c for c in report(run).checks if c.what == "receipts").wrong
    assert "s1, version 2: its receipt is about another version or number of rows" in wrong[0]


def test_a_checkpoint_with_another_model(run: Path, tmp_path: Path) -> None:
    """Whole and sealed, but of other numbers than the silos had: taken from a run of another seed."""
    import shutil

    problems = {name: replace(each, lr=0.01) for name, each in quadratic.problems(3).items()}
    run_quadratic(quadratic.job_of(["s0", "s1", "s2"], total=3), problems, tmp_path / "other")
    shutil.rmtree(run / "checkpoints" / "v000002")
    shutil.copytree(
        tmp_path / "other" / "runs" / "run" / "checkpoints" / "v000002", run / "checkpoints" / "v000002"
    )
    assert "s0 had another model of version 2 than its checkpoint" in str(report(run).checks)


def test_keys_that_count(run: Path) -> None:
    stranger = base64.b64encode(bytes(32)).decode()
    assert "with another key than" in report(run, driver_key=stranger).verdict
    assert "another key than the roster has" in report(run, silos={"s0": stranger}).verdict


@pytest.mark.parametrize("whose", ["s0", "driver"])
def test_keys_that_the_roster_has_revoked(run: Path, tmp_path: Path, whose: str) -> None:
    """A member that stands in the roster with such a key, and one that was taken out of it."""
    keys = {
        line["silo"]: line["key"]
        for line in (json.loads(each)["event"] for each in lines(run))
        if line["type"] == "silo_joined"
    }
    keys["driver"] = base64.b64encode(DRIVER.public).decode()
    entries = {name: {"identity": name, "signing_key": key} for name, key in keys.items()}
    stays = {"driver": entries.pop("driver"), "silos": dict(entries)}
    gone = {**stays, "silos": {name: each for name, each in entries.items() if name != whose}}
    roster = tmp_path / "roster.yaml"

    def verified(document: dict[str, Any]) -> Result:
        roster.write_text(json.dumps(document))
        return CliRunner().invoke(
            app, ["verify", "run", "--runs-dir", str(run.parent), "--roster", str(roster)]
        )

    assert verified(stays).exit_code == 0, verified(stays).output
    for document in (stays, gone):
        ended = verified({**document, "revoked": [keys[whose]]})
        assert ended.exit_code == 2
        told = " ".join(ended.output.split())
        assert "the roster has revoked" in told and "NOT VERIFIED" in told


def test_a_run_of_before(run: Path) -> None:
    """Its lines are no chain: that is said, and nothing else breaks."""

    def old(place: int, line: Line) -> Line:
        return line

    plain = []
    for line in rewritten(lines(run), old):
        body = json.loads(line)
        del body["crc"], body["prev"]
        text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()[1:]
        plain.append(b'{"crc":"%08x",%s' % (zlib.crc32(text), text))
    write(run, plain)
    assert "older Siloray" in report(run).verdict
    assert next(event["type"] for _, event in Store(run).events()) == "run_opened"


def test_a_journal_that_was_changed_is_not_gone_on_with(run: Path) -> None:
    from orchestrator.store import JournalDamaged

    write(run, rewritten(lines(run), lambda place, line: {**line, "synced": line["synced"]}))
    store = Store(run)
    store.acquire("test")
    with pytest.raises(JournalDamaged, match="is another one than when v000003 was made"):
        store.recover()
    store.release()


@pytest.mark.parametrize("text", ["[1]", "5", "{", "\udcff"])
def test_what_is_no_record_of_a_silo_costs_one_line(run: Path, tmp_path: Path, text: str) -> None:
    audit = tmp_path / "audit.jsonl"
    audit.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=f"--audit {audit}: not a silo's record"):
        report(run, audits=[audit])
    with pytest.raises(BadInput, match="No such file"):
        report(run, audits=[tmp_path / "none"])


def test_a_record_that_was_spoilt_is_wrong_and_not_an_accident(run: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    audit.write_text('{"torn by\n\n{"run": "run", "journal_head": "x", "journal_lines": "many"}\n')
    assert "line 3: the silo was told of many other lines" in report(run, audits=[audit]).verdict


def test_what_else_lies_among_the_checkpoints_is_none(run: Path) -> None:
    (run / "checkpoints" / "view").mkdir()
    assert report(run).fine


def test_a_key_that_is_none_is_said_as_such(run: Path) -> None:
    ended = CliRunner().invoke(
        app, ["verify", "run", "--runs-dir", str(run.parent), "--driver-key", "nonsense"]
    )
    assert ended.exit_code == 2
    assert ended.output == "siloray: --driver-key: expected an Ed25519 public key: base64 of 32 bytes\n"


@pytest.mark.parametrize(
    ("event", "said"),
    [({}, "no event that this Siloray knows"), ({"job": {"name": 5}}, "the job there is none")],
)
def test_lines_that_only_look_like_a_journals(run: Path, event: dict[str, Any], said: str) -> None:
    """With checksums, links and a signature that are right."""

    def change(place: int, line: Line) -> Line:
        if place == 0:
            line["event"] = {**line["event"], **event} if event else {}
        return line

    write(run, rewritten(lines(run), change, sign=True))
    assert any(said in wrong for check in report(run).checks for wrong in check.wrong)
