"""The work of ``siloray simulate``: one run for each policy, one table, plots beside the runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli import run_dirs, simulate, words
from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.disk import put
from orchestrator.job import Job
from orchestrator.simulation.figures import Row, number, row_of, target_of
from orchestrator.simulation.run import Makers, Simulated, ToldTimings
from orchestrator.simulation.what_if import changed, lasting

if TYPE_CHECKING:
    from silos.simulated_site import SimulatedSite

AS_GIVEN = "as given"
RECORD = "simulation.json"
FEW = 10
"""Above so many silos the table does not name them one by one."""


@dataclass(frozen=True)
class Asked:
    """What the command line said."""

    speeds: str | None
    per: str
    timings: str | None
    exactly: bool
    policies: tuple[str, ...]
    target: str | None
    seed: int
    lasting: float | None
    silos_dir: Path
    runs_dir: Path
    out: Path | None
    plots: bool
    as_json: bool


@dataclass(frozen=True)
class Case:
    """A policy and its run."""

    policy: str
    run_dir: Path
    run: Simulated


def compare(job: Job, asked: Asked) -> None:
    """Raises `BadInput` before anything runs, `CannotGoOn` for a run that failed."""
    if asked.target is not None:
        number(asked.target.removesuffix("%"), "--target")
    timings = _timings(job, asked)
    others = [(text, changed(job, text)) for text in asked.policies]
    documents = _documents(job, asked)
    out = _new_folder(asked.out, job.name)
    cases = _cases(job, others, timings, documents, out, asked)
    target = target_of(asked.target, job.stop.target, cases[0].run, job.stop.metric)
    rows = [row_of(case.policy, case.run, job.stop.metric, target) for case in cases]
    record = _record(job, timings, target, rows)
    put(out / RECORD, json.dumps(record, indent=1) + "\n")
    if asked.plots:
        _draw(out, job.stop.metric, target, cases)
    typer.echo(json.dumps(record)) if asked.as_json else _print(job, target, rows, out)


def again(job: Job, asked: Asked) -> None:
    """Make the recorded run once more. Raises `BadInput`, and `CannotGoOn` where its bits are others."""
    from orchestrator.simulation.recorded import rounds_of
    from orchestrator.simulation.run import first_difference, follow
    from orchestrator.summary import read_summary

    if asked.timings is None or asked.speeds is not None or asked.policies:
        raise BadInput("--exactly makes the run of --timings again; it takes no --speeds and no --what-if")
    run_dir = run_dirs.locate(asked.timings, None, run_dirs.Folder(str(asked.runs_dir))).run_dir
    rounds = rounds_of(run_dir)
    if not rounds:
        raise BadInput(f"--timings {run_dir.name}: no round of it is on record")
    if job.digest != read_summary(run_dir)["job_digest"]:
        raise BadInput(f"{run_dir.name} was another job than this one: --exactly needs the very same")
    documents = _documents(job, asked)
    made_dir = _new_folder(asked.out, job.name) / "again"
    made_dir.mkdir()
    made = follow(job, _makers(_sites(documents, made_dir)), run_dir.name, rounds, made_dir)
    version = first_difference(rounds, made.rounds)
    if version is not None:
        raise CannotGoOn(f"version {version} of {run_dir.name} came out otherwise; see {made_dir}")
    typer.echo(f"{run_dir.name}: {len(rounds)} versions made again, the same bits ({made.digest[:12]})")


def _timings(job: Job, asked: Asked) -> ToldTimings:
    if (asked.speeds is None) == (asked.timings is None):
        raise BadInput("give either --speeds or --timings: how long does the silos' work take?")
    if asked.per not in ("step", "epoch"):
        raise BadInput(f"--per {asked.per}: expected 'step' or 'epoch'")
    if asked.speeds is not None:
        from orchestrator.simulation.speeds import speeds_of

        return speeds_of(asked.speeds, job.silos, asked.seed, "epoch" if asked.per == "epoch" else "step")
    from orchestrator.simulation.recorded import recorded, rounds_of

    run_dir = run_dirs.locate(asked.timings or "", None, run_dirs.Folder(str(asked.runs_dir))).run_dir
    return recorded(rounds_of(run_dir), job.silos, run_dir.name, seed=asked.seed)


def _documents(job: Job, asked: Asked) -> Mapping[str, Path]:
    from silos.directory import check_silos

    if not asked.silos_dir.is_dir():
        raise BadInput(f"{asked.silos_dir}: no such folder; say with --silos-dir where the silos are")
    return check_silos(asked.silos_dir, job.silos, job.datasets)


def _new_folder(out: Path | None, name: str) -> Path:
    if out is not None:
        if out.exists() and any(out.iterdir()):
            raise BadInput(f"{out} is not empty; --out names a new folder")
        out.mkdir(parents=True, exist_ok=True)
        return out
    for index in range(1, 1_000_000):
        folder = simulate.SIMULATIONS / f"{name}-{index}"
        if not folder.exists():
            folder.mkdir(parents=True)
            return folder
    raise BadInput(f"{simulate.SIMULATIONS}: too many simulations of {name}; remove some")


def _cases(
    job: Job,
    others: Sequence[tuple[str, Job]],
    timings: ToldTimings,
    documents: Mapping[str, Path],
    out: Path,
    asked: Asked,
) -> list[Case]:
    """The job as given sets how long the others run, if nothing else does."""
    first = job if asked.lasting is None else lasting(job, asked.lasting, names_total=False)
    cases = [_case(AS_GIVEN, first, timings, documents, out / "as-given")]
    until = asked.lasting or cases[0].run.ended
    for index, (text, other) in enumerate(others, 1):
        bounded = lasting(other, until, "rounds.total" in text) if until > 0 else other
        cases.append(_case(text, bounded, timings, documents, out / f"what-if-{index}"))
    return cases


def _case(policy: str, job: Job, timings: ToldTimings, documents: Mapping[str, Path], run_dir: Path) -> Case:
    from orchestrator.core.metrics import pooled, values
    from orchestrator.simulation.run import simulate as simulated
    from silos.simulated_site import judged

    typer.echo(f"{policy} ...", err=True)
    sites = _sites(documents, run_dir)
    run_dir.mkdir()
    put(run_dir / "job.json", json.dumps(job.model_dump(mode="json"), indent=1))
    run = simulated(
        job,
        _makers(sites),
        timings,
        run_dir,
        judge=lambda version, model: values(pooled(judged(sites, run_dir.name, version, model))),
    )
    if run.outcome.status == "failed":
        error = BadInput if run.outcome.exit_code == 2 else CannotGoOn
        raise error(f"{policy}: {run.outcome.reason}")
    put(run_dir / "work.json", json.dumps([_work(each) for each in run.works]) + "\n")
    return Case(policy, run_dir, run)


def _sites(documents: Mapping[str, Path], run_dir: Path) -> "dict[str, SimulatedSite]":
    from silos.simulated_site import SimulatedSite

    return {name: SimulatedSite(path, run_dir / "silos" / name) for name, path in documents.items()}


def _makers(sites: "Mapping[str, SimulatedSite]") -> Makers:
    from orchestrator.simulation.loop import now
    from silos.silo import Silo

    return {name: partial(Silo, site, now) for name, site in sites.items()}


def _work(work: Any) -> dict[str, Any]:
    return {
        "silo": work.silo,
        "version": work.version,
        "began": work.began,
        "ended": work.ended if work.end else None,
        "end": work.end or "open",
        "num_steps": work.num_steps,
        "train_s": work.spent.train,
    }


def _record(job: Job, timings: ToldTimings, target: float | None, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "job": job.name,
        "metric": job.stop.metric,
        "target": target,
        "seed": timings.seed,
        "timings": timings.told(),
        "policies": [row.told() for row in rows],
    }


def _draw(out: Path, metric: str, target: float | None, cases: Sequence[Case]) -> None:
    from tracking import simulated

    curves = {
        case.policy: [(p.time, p.metrics[metric]) for p in case.run.points if metric in p.metrics]
        for case in cases
    }
    _save(out / "metric.png", simulated.metric_over_time(curves, metric, target))
    lates = {
        case.policy: [each.staleness for closed in case.run.rounds for each in closed.contributors]
        for case in cases
    }
    _save(out / "staleness.png", simulated.staleness(lates))
    for case in cases:
        bars = [
            simulated.Bar(w.silo, w.began, w.due if w.end is None else w.ended, w.end == "arrived")
            for w in case.run.works
        ]
        closes = [point.time for point in case.run.points[1:]]
        _save(
            case.run_dir / "timeline.png",
            simulated.timeline(case.policy, case.run.job.silos, bars, closes, case.run.ended),
        )


def _save(path: Path, figure: Any) -> None:
    figure.savefig(path)


def _print(job: Job, target: float | None, rows: Sequence[Row], out: Path) -> None:
    from orchestrator.cli.tables import print_table

    goal = f"{job.stop.metric} {words.figure(target)}" if target is not None else "target"
    head = ["policy", f"time to {goal}", "faster", "rounds", "updates", "best", "last"]
    head += ["idle", "wasted", "stale", "up", "down", "seconds"]
    print_table(head, [_cells(row, rows[0]) for row in rows])
    names = list(job.silos)
    if len(names) <= FEW:
        idle = [[row.policy, *(f"{row.idle[name]:.0%}" for name in names)] for row in rows]
        print_table(["idle share", *names], idle)
    typer.echo(f"records and plots: {out}")


def _cells(row: Row, first: Row) -> list[str]:
    return [
        row.policy,
        "not reached" if row.time_to_target is None else f"{row.time_to_target:.6g}",
        _ratio(first.time_to_target, row.time_to_target),
        str(row.rounds),
        str(row.updates),
        "" if row.best is None else words.figure(row.best),
        "" if row.last is None else words.figure(row.last),
        f"{row.mean_idle:.0%}",
        f"{row.wasted:.0%}",
        f"{row.mean_staleness:.2f}",
        words.size(row.bytes_up),
        words.size(row.bytes_down),
        f"{row.seconds:.6g}",
    ]


def _ratio(first: float | None, own: float | None) -> str:
    return f"{first / own:.2f}x" if first and own else ""
