"""``siloray simulate`` on the heart-disease silos, in this process."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app

HEART = Path(__file__).parents[2] / "examples" / "heart_disease"


def simulate(*arguments: str, code: int = 0) -> str:
    ended = CliRunner().invoke(app, ["simulate", str(HEART / "job.yaml"), *arguments])
    assert ended.exit_code == code, ended.output
    return ended.stdout if code == 0 else ended.stderr


@pytest.mark.slow
def test_policies_are_compared_and_nothing_is_written_at_the_silos(tmp_path: Path) -> None:
    before = sorted(HEART.rglob("*"))
    policy = "rounds.mode=async,rounds.buffer=3,rounds.min_updates=3,rounds.staleness_exponent=0"
    asked = ["--speeds", ".01,.02,.04,.08", "--for", "60", "--target", "90%", "--what-if", policy, "--json"]
    record = json.loads(simulate(*asked, "--out", str(tmp_path / "a")))
    given, other = record["policies"]
    assert (given["policy"], other["policy"]) == ("as given", policy)
    assert given["idle"]["cleveland"] == pytest.approx(7 / 8) and other["mean_idle"] < given["mean_idle"]
    assert other["rounds"] > given["rounds"] and max(map(int, other["staleness"])) > 0
    assert other["time_to_target"] < given["time_to_target"] <= 64
    made = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.png")}
    assert made == {"metric.png", "staleness.png", "as-given/timeline.png", "what-if-1/timeline.png"}
    again = json.loads(simulate(*asked, "--no-plots", "--out", str(tmp_path / "b")))
    assert again == record, "the same command: the same bits"
    assert sorted(HEART.rglob("*")) == before

    table = simulate(
        "--timings", "as-given", "--runs-dir", str(tmp_path / "a"), "--out", str(tmp_path / "c"), "--no-plots"
    )
    assert "as given" in table and "idle share" in table
    shown = CliRunner().invoke(app, ["show", "as-given", "--runs-dir", str(tmp_path / "a")]).stdout
    assert "on a simulated clock" in shown


def test_a_run_is_made_again_exactly(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text((HEART / "job.yaml").read_text().replace("total: 15", "total: 3"))
    silos = ["--silos-dir", str(HEART / "silos")]
    first = CliRunner().invoke(
        app, ["simulate", str(job), *silos, "--speeds", "dm", "--no-plots", "--out", str(tmp_path / "a")]
    )
    assert first.exit_code == 0, first.output
    exactly = ["--timings", "as-given", "--runs-dir", str(tmp_path / "a"), "--exactly"]
    again = CliRunner().invoke(app, ["simulate", str(job), *silos, *exactly, "--out", str(tmp_path / "b")])
    assert again.exit_code == 0 and "3 versions made again, the same bits" in again.stdout, again.output
    assert "was another job than this one" in simulate(*exactly, code=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give either --speeds or --timings"),
        (["--speeds", "1,2"], "--speeds 1,2: 2 speeds for the 4 silos of the job"),
        (["--speeds", "even", "--per", "day"], "--per day: expected 'step' or 'epoch'"),
        (
            ["--speeds", "even", "--what-if", "rounds.mood=async"],
            "rounds.mood: unknown key; did you mean 'mode'?",
        ),
        (["--speeds", "even", "--exactly"], "--exactly makes the run of --timings again"),
        (["--speeds", "even", "--target", "most"], "--target most: expected a number"),
        (
            ["--speeds", "even", "--silos-dir", str(Path(__file__).parent)],
            "no silo.yaml here for the job's silo",
        ),
        (["--timings", "last", "--runs-dir", str(Path(__file__).parent)], "no runs here"),
        (["--speeds", "even", "--out", str(HEART)], "is not empty; --out names a new folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(arguments: list[str], says: str) -> None:
    line = simulate(*arguments, code=2)
    assert says in line and line.count("\n") == 1
