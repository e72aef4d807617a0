"""The end-of-run report on the console: what the federation does for each silo."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cli import words
from orchestrator.cli.tables import print_table
from orchestrator.voting import told

NAMES = {"global": "federated", "fine_tuned": "fine-tuned", "alone": "alone", "personal": "personal"}
"""Models in the order of the columns."""


def print_report(summary: Mapping[str, Any]) -> list[str]:
    """The table, where anything was assessed; the lines to stand below it."""
    report = summary.get("report")
    if not report or not report["silos"]:
        return [*release_lines(summary), *drift_lines(summary)]
    metric, version = report["metric"], report["version"]
    models = [
        name
        for name in NAMES
        if any(
            metric in each["models"].get(name, {"metrics": {}})["metrics"]
            for each in report["silos"].values()
        )
    ]
    if not models:  # silos that keep their figures in
        return [*_held_out(report), *_worth(report), *release_lines(summary), *drift_lines(summary)]
    head = [f"{metric} of version {version}", *(NAMES[name] for name in models), "federated - alone", ""]
    rows = [_row(silo, each, models, report) for silo, each in report["silos"].items()]
    for what in ("mean", "worst", "std", "p10", "jain"):
        rows.append([what, *(_spread(report["spreads"].get(name), what) for name in models), "", ""])
    print_table(head, rows, title="each silo's own test rows, with 95 % intervals")
    return [
        *verdict_lines(report),
        *_held_out(report),
        *_worth(report),
        *release_lines(summary),
        *drift_lines(summary),
    ]


def _row(silo: str, each: Mapping[str, Any], models: Sequence[str], report: Mapping[str, Any]) -> list[str]:
    metric, name = report["metric"], f"{silo} (held out)" if each["held_out"] else silo
    figures = [_figure(each["models"].get(model), metric) for model in models]
    return [name, *figures, _gain(each, metric), _remark(silo, each, report)]


def _figure(model: Mapping[str, Any] | None, metric: str) -> str:
    if model is None or metric not in model["metrics"]:
        return ""
    bounds = model["intervals"].get(metric)
    within = f"  ({words.figure(bounds[0])} to {words.figure(bounds[1])})" if bounds else ""
    return f"{words.figure(model['metrics'][metric])}{within}"


def _gain(each: Mapping[str, Any], metric: str) -> str:
    ours, alone = (each["models"].get(name, {}).get("metrics", {}) for name in ("global", "alone"))
    if metric not in ours or metric not in alone:
        return ""
    bounds = each["models"]["global"]["gains"].get(metric)
    within = f"  ({bounds[0]:+.3g} to {bounds[1]:+.3g})" if bounds else ""
    return f"{ours[metric] - alone[metric]:+.3g}{within}"


def _remark(silo: str, each: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    if silo in report["harmed"]:
        return "harmed"
    if each["num_steps"] and each["num_steps"] < each["run_steps"]:
        return f"alone: {each['num_steps']} of {each['run_steps']} steps"
    return ""


def _spread(spread: Mapping[str, Any] | None, what: str) -> str:
    if spread is None or spread[what] is None:
        return ""
    silo = f"  {spread['worst_silo']}" if what == "worst" else ""
    return f"{words.figure(spread[what])}{silo}"


def verdict_lines(report: Mapping[str, Any]) -> list[str]:
    """One line, or none where nothing was compared."""
    if report["do_no_harm"] is None:
        return []
    share = f"{len(report['worse'])} of {len(report['benefit'])}"
    held = "; the alias stays where it is (report.do_no_harm: block)" if report["blocked"] else ""
    if report["harmed"]:
        return [f"harm     worse than alone: {words.some(report['harmed'])}{held}"]
    if report["unknown"]:
        return [f"harm     not known of {words.some(report['unknown'])}"]
    return [f"harm     no silo is worse than alone beyond the noise of its test rows ({share} below it)"]


def _held_out(report: Mapping[str, Any]) -> list[str]:
    """The mean over silos held out, after more and more local steps."""
    found = report["held_out"]
    steps = sorted(int(name.split()[1]) for name in found if name.startswith("after "))
    curve = [f"{words.figure(found[f'after {number} steps']['mean'])} after {number}" for number in steps]
    return [f"held out mean {report['metric']} {', '.join(curve)} local steps"] if curve else []


def _worth(report: Mapping[str, Any]) -> list[str]:
    found = report["contributions"]
    if found is None:
        return []
    if not found["worths"]:
        return [f"worth    not known: {words.one_line(found['why_not'])}"]
    ranked = sorted(found["worths"], key=lambda each: -each["value"])
    values = [f"{each['silo']} {each['value']:+.3g}{_error(each)}" for each in ranked]
    return [f"worth    {found['metric']}, {found['method']}: {', '.join(values)}"]


def _error(each: Mapping[str, Any]) -> str:
    return f" (±{each['error']:.2g})" if each["error"] else ""


def release_lines(summary: Mapping[str, Any]) -> list[str]:
    """The silos' vote, where there was one, and what each says of its attacks."""
    release = summary.get("release")
    if not release:
        return []
    votes = [f"release  {silo}: {_vote(each)}" for silo, each in release["silos"].items()]
    missing = [f"release  {silo}: no vote: {words.one_line(why)}" for silo, why in release["missing"].items()]
    silent = [line for line in missing if line.split(":")[0] not in {each.split(":")[0] for each in votes}]
    return [f"release  version {release['version']} {told(release)}", *votes, *silent]


def _vote(each: Mapping[str, Any]) -> str:
    scores = [
        f"{name} {words.figure(value)}" for name, value in each["scores"].items() if not name.endswith("_low")
    ]
    return ", ".join([each["vote"] if each["vote"] != "none" else "no vote", *scores])


def drift_lines(summary: Mapping[str, Any]) -> list[str]:
    """A line per alarm."""
    return [
        f"drift    {each['silo']} in version {each['version']}: {', '.join(each['signals'])}"
        for each in summary.get("drift", ())
    ]
