"""``siloray simulate``: a job on a simulated clock, and what other policies would have made of the same silos."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options

SIMULATIONS = Path("simulations")


def simulate(
    job: options.JobFile,
    speeds: Annotated[
        str | None,
        typer.Option(
            help="Seconds per local step: NAME=SECONDS,..., or in the job's order SECONDS,... (1x7,2,4,8), a profile "
            "(even, dm, geo8), or a file (.yaml) with latency, bandwidth, jitter, stalls and outages.",
        ),
    ] = None,
    per: Annotated[
        str, typer.Option(help="What --speeds counts: 'step', or 'epoch' (a pass over the silo's own rows).")
    ] = "step",
    timings: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="In place of --speeds: the timings that a past run recorded."),
    ] = None,
    exactly: Annotated[
        bool,
        typer.Option(
            "--exactly",
            help="With --timings: make that run again from its journal, update by update; exit code 4 unless every "
            "version has the same bits.",
        ),
    ] = False,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Another policy, as changes of the job: rounds.mode=async,rounds.buffer=4. Several may be given.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Value of stop.metric to reach, or a share (96%) of the best that the job as given reaches. Default: "
            "stop.target, or what the job as given ends with."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws of the durations.", min=0)] = 0,
    lasting: Annotated[
        float | None,
        typer.Option(
            "--for",
            metavar="SECONDS",
            help="Virtual seconds of each policy. Default: the job as given runs to its end, the others as long.",
            min=0,
        ),
    ] = None,
    silos_dir: options.SilosDir = None,
    runs_dir: Annotated[
        Path, typer.Option(help="Folder in which --timings looks for its run.", file_okay=False)
    ] = options.RUNS_DIR,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for records and plots; it must be new. Default: a new one in simulations/.",
            file_okay=False,
        ),
    ] = None,
    plots: Annotated[
        bool, typer.Option(help="Draw who worked when, the metric over time, and staleness.")
    ] = True,
    as_json: options.AsJson = False,
) -> None:
    """Run a job on a simulated clock, in this process, and compare policies.

    The driver, the strategies and the training are the real ones; only time is not. The same command gives the same
    bits. Nothing is written at the silos: their policies on jobs hold, ledgers and audits stay as they are.
    """
    from orchestrator.cli import comparison, jobs

    given = jobs.read(job)
    sys.path.extend(
        [str(job.absolute().parent), str(Path.cwd())]
    )  # where `siloray run` finds the user's modules, too
    asked = comparison.Asked(
        speeds=speeds,
        per=per,
        timings=timings,
        exactly=exactly,
        policies=tuple(what_if or ()),
        target=target,
        seed=seed,
        lasting=lasting,
        silos_dir=silos_dir or job.parent / "silos",
        runs_dir=runs_dir,
        out=out,
        plots=plots,
        as_json=as_json,
    )
    comparison.again(given, asked) if exactly else comparison.compare(given, asked)
