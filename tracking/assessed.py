"""The end-of-run report in MLflow: figures by silo under ``report/<model>/``, what they come to in the job's run. Pure.

They stand at the version that was assessed; those of the adaptation curve at the number of local steps.
"""

from orchestrator.core.events import ContributionsFound, RunAssessed, SiloAssessed, SiloAttacked, Spread
from tracking.points import RUN, Posts, Rows, points


def found(event: SiloAssessed) -> Posts:
    """A silo's models, in its own run."""
    values = {
        f"report/{name}/{metric}": value
        for name, model in event.models.items()
        for metric, value in model.metrics.items()
    }
    rows = Rows(points=points(values, event, event.version))
    for point in event.curve:
        adapted = {f"report/adapted/{metric}": value for metric, value in point.metrics.items()}
        rows.points += points(adapted, event, point.steps)
    return {event.silo: rows}


def judged(event: RunAssessed) -> Posts:
    """The verdict, and the figures over silos."""
    values = {
        f"report/{name}/{event.metric}_{what}": value
        for name, spread in event.spreads.items()
        for what, value in _values(spread).items()
    }
    apart = {
        f"report/held_out/{name}/{event.metric}_{what}": value
        for name, spread in event.held_out.items()
        for what, value in _values(spread).items()
    }
    if event.benefit:
        values["report/share_worse"] = len(event.worse) / len(event.benefit)
        values["report/share_harmed"] = len(event.harmed) / len(event.benefit)
    rows = Rows(points=points({**values, **apart}, event, event.version))
    rows.tags = {"siloray.do_no_harm": verdict_of(event)}
    return {RUN: rows}


def attacked(event: SiloAttacked) -> Posts:
    """How far attacks got at a silo, and its vote, in its own run."""
    scores = {f"release/{name}": value for name, value in event.scores.items()}
    return {event.silo: Rows(points=points(scores, event, event.version), tags={"siloray.vote": said(event)})}


def said(event: SiloAttacked) -> str:
    """The vote and what it rests on, in words."""
    shown = ", ".join(
        f"{name} {value:.4g}" for name, value in event.scores.items() if not name.endswith("_low")
    )
    return "; ".join(
        part for part in (event.vote if event.vote != "none" else "no vote", shown, event.why) if part
    )


def worths(event: ContributionsFound) -> Posts:
    """What each silo's updates are worth, in the silos' runs."""
    if not event.worths:
        return {RUN: Rows(tags={"siloray.contribution": f"not known: {event.why_not}"})}
    told = ", ".join(f"{each.silo}: {each.value:.4g}" for each in event.worths)
    posts = {RUN: Rows(tags={"siloray.contribution": f"{event.method}, {event.metric}: {told}"})}
    return posts | {
        each.silo: Rows(points=points({"report/contribution": each.value}, event, 0)) for each in event.worths
    }


def verdict_of(event: RunAssessed) -> str:
    """In words."""
    if event.do_no_harm is None:
        return "not compared"
    held = " (alias kept)" if event.blocked else ""
    if event.harmed:
        return f"worse than alone: {', '.join(event.harmed)}{held}"
    return f"not known of {', '.join(event.unknown)}" if event.unknown else "no silo is worse than alone"


def _values(spread: Spread) -> dict[str, float]:
    values = {"mean": spread.mean, "worst": spread.worst, "std": spread.std, "p10": spread.p10}
    return values if spread.jain is None else {**values, "jain": spread.jain}
