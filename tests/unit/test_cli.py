"""The commands: what they print, what they leave behind, and their exit codes."""

import json
import os
import socket
import sys
import types
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from orchestrator.cli import jobs, run_dirs
from orchestrator.cli.main import app
from orchestrator.core.errors import BadInput
from tests.support import scripted
from tracking.cursor import Cursor, save

DOCUMENT = {
    "name": "heart-disease",
    "task": {"name": "tabular", "dataset": "heart", "target": "num", "features": ["age", "chol"]},
    "silos": ["cleveland", "va"],
    "rounds": {"total": 3},
}


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    import orchestrator.transport

    module = scripted.transport()
    monkeypatch.setitem(os.environ, "SCRIPT", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "orchestrator.transport.ray", module)
    monkeypatch.setattr(orchestrator.transport, "ray", module, raising=False)
    return module


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job with two silos beside it; the command is given in this folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    (tmp_path / "silos").mkdir()
    for name in DOCUMENT["silos"]:
        silo = {"name": name, "datasets": {"heart": {"path": "heart.parquet"}}}
        (tmp_path / "silos" / f"{name}.yaml").write_text(yaml.safe_dump(silo))
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def one_line(result: Result, code: int) -> str:
    """The command failed as it should: that code, one line on standard error, nothing on standard output."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("siloray: ")
    return result.stderr


# validate


def test_validate_says_what_the_job_asks_for(job: Path) -> None:
    result = call("validate", job)
    assert result.exit_code == 0
    assert result.stdout.startswith("heart-disease: 2 silos, 3 sync rounds, fedavg; valid, digest ")
    assert result.stderr == ""


def test_validate_says_what_noise_costs(job: Path) -> None:
    steps = [{"name": "clip", "max_norm": 1}, {"name": "gaussian", "target_epsilon": 2}]
    job.write_text(yaml.safe_dump({**DOCUMENT, "privacy": steps, "combine": {"weights": "uniform"}}))
    last = call("validate", job).stdout.splitlines()[-1]
    assert last.startswith("privacy spent by a silo in all 3 versions: as a silo epsilon 2 (RDP 2.17")
    assert last.endswith("at delta 1e-05, with noise multiplier 3.453")
    steps[1] |= {"target_epsilon": 1e-9, "delta": 1e-12}
    job.write_text(yaml.safe_dump({**DOCUMENT, "privacy": steps, "combine": {"weights": "uniform"}}))
    assert "no noise multiplier up to 1e+06 keeps epsilon within 1e-09" in one_line(call("validate", job), 2)


def test_validate_warns_of_what_is_probably_not_meant(job: Path) -> None:
    adaptive = {**DOCUMENT, "strategy": {"name": "fednova"}, "local": {"optimizer": {"name": "adam"}}}
    job.write_text(yaml.safe_dump(adaptive))
    result = call("validate", job)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: FedNova averages the gradients that adam met")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a mapping"),
        ("just words", "expected a mapping"),
        ("a: [1", "line 1"),
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("a: &x 1\nb: *x", "aliases"),
        ("? [1, 2]\n: 3", "a key must be a plain word"),
        ("\tname: x", "line 1"),
        ("name: !!python/object:os.system x", "line 1"),
        ("{" * 5000, "job.yaml: "),
        ("\x00", "job.yaml: "),
    ],
)
def test_what_is_no_yaml_costs_one_line(job: Path, text: str, words: str) -> None:
    job.write_text(text)
    assert words in one_line(call("validate", job), 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nmae": "x"}, "nmae: unknown key; did you mean 'name'?"),
        ({"name": "no spaces"}, "name: "),
        ({"name": None}, "name: "),
        ({"silos": []}, "silos: "),
        ({"silos": ["a", "a"]}, "stands twice"),
        ({"silos": ["global"]}, "'global' is no silo name"),
        ({"silos": "cleveland"}, "silos: "),
        ({"required_silos": ["berlin"]}, "berlin"),
        ({"rounds": {"total": 0}}, "total: "),
        ({"rounds": {"total": 3, "mode": "quorum"}}, "deadline_s"),
        ({"rounds": {"total": 3, "mode": "sinc"}}, "mode: "),
        ({"rounds": {"total": 3, "buffer": 5}}, "buffer_size"),
        ({"rounds": {"totl": 3}}, "unknown key; did you mean 'total'?"),
        ({"strategy": {"name": "fedfoo"}}, "fedfoo"),
        ({"strategy": {"name": "fedprox", "mu": -1}}, "mu: "),
        ({"local": {"epochs": 1, "steps": 1}}, "not both"),
        ({"local": {"batch_size": float("nan")}}, "batch_size: "),
        ({"task": {"name": "tabula"}}, "task"),
        ({"task": {"name": "tabular", "dataset": "heart"}}, "target"),
        ({"combine": {"name": "mean", "weights": {"cleveland": 1.0}}}, "one number for each silo"),
        ({"privacy": [{"name": "clip"}]}, "privacy"),
        ({"codec": "raw"}, "codec"),
        ({"seed": -1}, "seed: "),
        ({"stop": {"patience": 0}}, "patience: "),
    ],
)
def test_a_bad_value_costs_one_line_with_its_place(job: Path, change: dict, words: str) -> None:
    job.write_text(yaml.safe_dump({**DOCUMENT, **change}))
    assert words in one_line(call("validate", job), 2)


def test_a_job_that_is_not_there_a_folder_or_not_text_costs_one_line(job: Path) -> None:
    assert "no such file" in one_line(call("validate", job.parent / "jbo.yaml"), 2)
    one_line(call("validate", job.parent), 2)
    job.write_bytes(b"\xff\xfe\x00")
    one_line(call("validate", job), 2)
    job.write_text("# " + "x" * (1 << 20))
    assert "larger than" in one_line(call("validate", job), 2)


def test_schema_is_json_schema_and_names_the_sections() -> None:
    schema = json.loads(call("schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"task", "silos", "rounds", "strategy"} <= schema["properties"].keys()


# run


def test_run_shows_rounds_ends_with_a_table_and_leaves_a_summary(
    job: Path, transport: types.ModuleType
) -> None:
    result = call("run", job)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "round 3/3: 2 updates in 0.50 s; version 2: loss 0.2  accuracy 0.8" in lines
    row = next(line for line in lines if line.lstrip().startswith("va ") and "→" in line)
    assert row.split()[:3] == ["va", "85", "45"]
    assert "0.6 → 0.28  better" in row
    assert "0.4 → 0.72  better" in row
    assert "done: all rounds (3 of 3 rounds, 20 s)" in lines
    assert "best     version 2, accuracy 0.8" in lines
    assert "curves   siloray ui" in lines
    assert f"summary  {Path('runs/heart-1/summary.json')}" in lines
    assert json.loads((job.parent / "runs/heart-1/summary.json").read_text())["status"] == "done"


def test_what_mlflow_lacks_is_said_at_the_end_and_shown_later(job: Path, transport: types.ModuleType) -> None:
    """Its server died: the pages would show less than there is."""
    run_dir = job.parent / "runs" / "heart-1"
    run_dir.mkdir(parents=True)
    dead = Cursor(
        "http://mlflow:5000",
        problem="MlflowException: API request\nto http://mlflow:5000 failed" + " again" * 99,
    )
    save(run_dir, dead)
    lines = [call("run", job).stdout.splitlines(), call("show", "heart-1").stdout.splitlines()]
    for said in lines:
        (line,) = [each for each in said if each.startswith("tracking ")]
        assert "MlflowException: API request to http://mlflow:5000 failed again" in line
        assert "again …); it follows" in line
        assert line.endswith(f"python -m tracking {Path('runs/heart-1')} --uri http://mlflow:5000")
    assert "curves   siloray ui" not in lines[0]
    save(run_dir, Cursor("http://mlflow:5000"))
    assert "tracking " not in call("show", "heart-1").stdout


def test_run_asks_for_absolute_paths_and_a_database_here(job: Path, transport: types.ModuleType) -> None:
    call("run", "job.yaml")
    (options,) = transport.asked
    assert options.job_file == job
    assert (options.silos_dir, options.runs_dir) == (job.parent / "silos", job.parent / "runs")
    assert (options.address, options.new, options.run_id) == (None, False, None)
    assert (options.tracking_uri, options.track) == (f"sqlite:///{job.parent}/mlflow.db", True)


def test_run_passes_on_what_it_is_told(
    job: Path, transport: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    call("run", job, "--address", "10.0.0.1:6379", "--runs-dir", "r", "--new", "--no-checks")
    call("run", job, "--no-track", "--tracking-uri", "http://other")
    first, second = transport.asked
    assert (first.address, first.silos_dir, first.new) == ("10.0.0.1:6379", None, True)
    assert (first.runs_dir, first.tracking_uri) == (job.parent / "r", "http://mlflow:5000")
    assert (second.tracking_uri, second.track) == (None, False)


def test_run_json_is_one_event_per_line_and_words_go_elsewhere(
    job: Path, transport: types.ModuleType
) -> None:
    result = call("run", job, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[0]["type"] == "run_opened"
    assert events[0]["resumed_from"] == 1, "what came before the last opening is history"
    assert events[-1]["type"] == "run_closed"
    assert "done: all rounds" in result.stderr


def test_run_detached_leaves_and_says_how_to_come_back(job: Path, transport: types.ModuleType) -> None:
    result = call("run", job, "--detach", "--address", "auto", "--no-checks")
    assert result.exit_code == 0
    assert "siloray watch heart-1" in result.stdout
    assert "--address" in one_line(call("run", job, "--detach"), 2)


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [("cannot", 4, "va did not join within 120 s"), ("failed", 4, "va did not come back")],
)
def test_a_run_that_cannot_go_on_ends_with_4_and_says_why(
    job: Path,
    transport: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.setenv("SCRIPT", script)
    result = call("run", job)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_silos_are_looked_for_before_ray_is_started(job: Path, transport: types.ModuleType) -> None:
    (job.parent / "silos" / "va.yaml").unlink()
    assert "no silo.yaml here for the job's silo 'va'" in one_line(call("run", job), 2)
    (job.parent / "silos" / "va.yaml").write_text("name: va\ndatasets: {liver: {path: x}}")
    assert "'heart' is not among its datasets (liver)" in one_line(call("run", job), 2)
    (job.parent / "silos" / "va.yaml").write_text("name: cleveland\ndatasets: {heart: {path: x}}")
    assert "already in" in one_line(call("run", job), 2)
    assert transport.asked == []


def test_without_silos_here_and_without_a_cluster_there_is_nothing_to_run_on(
    tmp_path: Path, transport: types.ModuleType
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    assert "--silos-dir" in one_line(call("run", path), 2)


# resume, watch, stop


def test_resume_asks_the_same_again_from_any_folder(
    job: Path, transport: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("run", job, "--tracking-uri", "http://mlflow", "--runs-dir", tmp_path / "runs")
    run_dir = tmp_path / "runs" / "heart-1"
    (run_dir / "journal.jsonl").unlink()
    scripted.write_journal(run_dir, scripted.whole_run()[:8])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = call("resume", "last", "--runs-dir", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    first, second = transport.asked
    assert (second.run_id, second.job_file, second.silos_dir) == ("heart-1", first.job_file, first.silos_dir)
    assert second.tracking_uri == "http://mlflow"


def test_resume_takes_the_job_on_record_when_its_file_has_gone(
    job: Path, transport: types.ModuleType
) -> None:
    call("run", job)
    run_dir = job.parent / "runs" / "heart-1"
    (run_dir / "journal.jsonl").unlink()
    (run_dir / "job.json").write_text(json.dumps(jobs.read(job).model_dump(mode="json")))
    job.unlink()
    assert call("resume", "last").exit_code == 0
    assert len(transport.asked) == 2
    (run_dir / "journal.jsonl").unlink()
    (run_dir / "job.json").write_text((run_dir / "job.json").read_text().replace('"seed": 0', '"seed": 1'))
    assert "is no longer the job" in one_line(call("resume", "last"), 2)


def test_a_cluster_has_its_own_folder_of_runs_and_database(job: Path, transport: types.ModuleType) -> None:
    call("run", job, "--address", "auto", "--no-checks")
    (options,) = transport.asked
    assert (options.runs_dir, options.tracking_uri, options.track) == (None, None, True)


def test_resume_refuses_another_job_a_done_run_and_one_it_knows_nothing_of(
    job: Path, transport: types.ModuleType
) -> None:
    call("run", job)
    assert "is done" in one_line(call("resume", "heart"), 2)
    run_dir = job.parent / "runs" / "heart-1"
    (run_dir / "journal.jsonl").unlink()
    job.write_text(yaml.safe_dump({**DOCUMENT, "seed": 7}))
    assert "is no longer the job of heart-1" in one_line(call("resume", "heart"), 2)
    scripted.write_journal(job.parent / "runs" / "other", scripted.whole_run()[:3])
    assert "not on record" in one_line(call("resume", "other"), 2)
    (job.parent / "runs" / "other" / "command.json").write_text("{}")
    assert "not what siloray wrote" in one_line(call("resume", "other"), 2)


def test_stop_waits_until_the_run_has_stopped(
    job: Path, transport: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.write_journal(job.parent / "runs" / "heart-1", scripted.whole_run()[:5])
    assert "siloray resume heart-1" in one_line(call("stop", "last"), 2)
    monkeypatch.setenv("SCRIPT", "endless")
    result = call("stop", "last")
    assert result.exit_code == 0
    assert "heart-1 stops after its round" in result.stdout
    assert "heart-1: stopped" in result.stdout
    assert "stops now" in call("stop", "heart", "--now").stdout


def test_watch_of_a_run_without_a_driver_costs_one_line(job: Path, transport: types.ModuleType) -> None:
    scripted.write_journal(job.parent / "runs" / "heart-1", scripted.whole_run()[:5])
    assert "no driver" in one_line(call("watch", "last"), 2)


# list, show, silos


def test_list_and_show_need_the_run_directory_alone(job: Path) -> None:
    scripted.write_journal(job.parent / "runs" / "heart-1", scripted.whole_run())
    scripted.write_journal(job.parent / "runs" / "heart-2", scripted.whole_run()[:5])
    listed = call("list").stdout
    assert [line.split()[:4] for line in listed.splitlines()[3:5]] == [
        ["heart-1", "heart-disease", "done", "3/3"],
        ["heart-2", "heart-disease", "unfinished", "1/3"],
    ]
    rows = json.loads(call("list", "--json").stdout)
    assert [(row["run_id"], row["status"], row["version"]) for row in rows] == [
        ("heart-1", "done", 3),
        ("heart-2", "unfinished", 1),
    ]


def test_list_of_nothing_is_no_error(job: Path) -> None:
    assert call("list").stdout == "runs: no runs here\n"
    assert json.loads(call("list", "--json").stdout) == []


def test_list_goes_on_past_a_damaged_run_and_show_says_what_is_wrong(job: Path) -> None:
    run_dir = scripted.write_journal(job.parent / "runs" / "bad", scripted.whole_run())
    journal = run_dir / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"nonfinite", b"nonfinitf"))
    scripted.write_journal(job.parent / "runs" / "good", scripted.whole_run())
    assert {row["run_id"]: row["status"] for row in json.loads(call("list", "--json").stdout)} == {
        "bad": "damaged",
        "good": "done",
    }
    assert "is damaged" in one_line(call("show", "bad"), 4)


def test_show_tells_silos_versions_refusals_and_the_best(job: Path) -> None:
    scripted.write_journal(job.parent / "runs" / "heart-1", scripted.whole_run())
    text = call("show", "last").stdout
    for part in (
        "heart-1: heart-disease, done: all rounds",
        "3 of 3 rounds in 20 s",
        "resumed 1 times",
        "best: version 2, accuracy 0.8",
        "refused: va at version 1: nonfinite: NaN in params",
        "lost: va at version 1: process ended",
        "0.4 → 0.72  better",
    ):
        assert part in text
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()][-4:] == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert json.loads(call("show", "last", "--json").stdout)["versions"][2]["version"] == 3


def test_silos_tells_who_is_online_and_the_sizes_that_are_let_out(transport: types.ModuleType) -> None:
    text = call("silos").stdout
    assert "heart: 199 train, 104 test" in text
    assert "heart: size kept private" in text
    assert json.loads(call("silos", "--json").stdout)[1] == {
        "name": "va",
        "state": "away",
        "node": "",
        "device": "",
        "datasets": {"heart": {}},
    }


# which run


def test_a_run_is_named_by_id_the_start_of_it_or_last(tmp_path: Path) -> None:
    for index, name in enumerate(("heart-a1", "heart-a2", "heart", "ai4i")):
        folder = scripted.write_journal(tmp_path / name, [])
        (folder / "journal.jsonl").touch()
        os.utime(folder / "journal.jsonl", (1000 + index, 1000 + index))
    (tmp_path / "notes").mkdir()

    def found(text: str) -> Path:
        return run_dirs.locate(text, None, run_dirs.Folder(str(tmp_path))).run_dir

    assert run_dirs.ids(tmp_path) == ["heart-a1", "heart-a2", "heart", "ai4i"]
    assert found("last").name == "ai4i"
    assert found("heart").name == "heart", "a whole id wins over the start of another"
    assert found("ai").name == "ai4i"
    assert found(f"{tmp_path}/ai4i/") == tmp_path / "ai4i", "as a shell completes it"
    for text, words in (
        ("heart-", "the start of 2 runs: heart-a1, heart-a2"),
        ("heart-b1", "did you mean 'heart-a1'?"),
        ("zzz", "'siloray list' names them"),
        ("", "no run ''"),
        ("../runs", "no run '../runs'"),
        (f"{tmp_path}/notes", "no run 'notes'"),
        (str(tmp_path), "no run '/"),
    ):
        with pytest.raises(BadInput) as caught:
            found(text)
        assert words in str(caught.value)


def test_a_run_whose_driver_is_alive_is_running(tmp_path: Path) -> None:
    from orchestrator.store import Store

    store = Store(tmp_path / "heart-1")
    store.acquire("test")
    assert run_dirs.has_driver(tmp_path / "heart-1")
    assert json.loads(call("list", "--runs-dir", tmp_path, "--json").stdout)[0]["status"] == "running"
    lease = tmp_path / "heart-1" / "lease.json"
    lease.write_text(lease.read_text().replace(f'"pid":{os.getpid()}', '"pid":1'))
    assert not run_dirs.has_driver(tmp_path / "heart-1"), "the lock is not that of the lease"
    store.release()
    assert not run_dirs.has_driver(tmp_path / "heart-1")
    assert not run_dirs.has_driver(tmp_path)


# ui


def test_ui_without_a_database_or_with_a_port_in_use_costs_one_line(
    job: Path, transport: types.ModuleType
) -> None:
    call("run", job)
    assert f"{job.parent}/mlflow.db: no such file" in one_line(call("ui"), 2)
    (job.parent / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: " in one_line(call("ui", "--port", port), 2)


def test_ui_of_a_server_prints_the_pages_of_the_last_run(job: Path, transport: types.ModuleType) -> None:
    call("run", job, "--tracking-uri", "http://mlflow:5000")
    result = call("ui")
    assert result.stdout.splitlines()[0] == "MLflow   http://mlflow:5000", "where the last run is tracked"
    assert "heart-1 is not in MLflow yet" in result.stdout
    assert call("ui", "--tracking-uri", "https://other").stdout.startswith("MLflow   https://other")
