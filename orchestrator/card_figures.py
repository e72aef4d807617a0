"""The figures of a model card: what attacks found, how good the model is and for whom, what went wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.card_facts import Facts, table_of
from orchestrator.core.metrics import larger_is_better
from orchestrator.voting import told

MOST = 20
"""Incidents of a kind that are listed."""
_WORDS = {
    "lost": "{silo} was lost at version {version}: {why}",
    "refused": "Refused from {silo} at version {version} ({code}): {reason}",
    "declined": "{silo} took no part ({code}): {reason}",
    "drift": "Updates of {silo} drifted at version {version}: {signals}",
    "turned_away": "Turned away at the door: {who}, {times} times ({code})",
}


def attacks(facts: Facts) -> list[str]:
    release, settings = facts.summary["release"], facts.job.release
    if release is None or settings is None:
        return ["None was made: the job has no `release` section, or the run did not come to its end."]
    limits = {
        "membership": f"membership inference (AUC at most {settings.max_auc:g})",
        "canary": f"canaries (mean exposure at most {settings.max_exposure:g} bits)",
        "inversion": f"gradient inversion (at most {settings.max_psnr:g} dB)",
    }
    tried = ", ".join(limits[name] for name in settings.attacks)
    text = (
        f"Each silo attacked version {release['version']} with its own rows: {tried}. It votes `fail` where "
        "the lower bound (95 %) of a figure is above its limit. Of few rows, or under a privacy budget, "
        "only the vote is told."
    )
    head = ["silo", "vote", "AUC (at least)", "found at 1 % false", "exposure (at least)", "PSNR", "remarks"]
    rows = []
    for silo, each in release["silos"].items():
        scores = each["scores"]
        cells = [_bounded(scores, "auc"), _plain(scores, "tpr_at_1_fpr"), _bounded(scores, "exposure")]
        cells += [f"{scores['psnr']:.0f} dB" if "psnr" in scores else "–"]
        rows.append([silo, _vote(each), *cells, each["why"]])
    rows += [
        [silo, "no vote", "–", "–", "–", "–", why]
        for silo, why in release["missing"].items()
        if silo not in release["silos"]
    ]
    reading = (
        "AUC 0.5 is guessing. Exposure 1.4 bits is that of a record never seen. A reconstruction of 10 to "
        "15 dB is like any record, one above 30 dB is a copy. What other attacks would find is not known."
    )
    return [text, table_of([head, *rows]), f"Outcome: {told(release)}.", reading]


def _vote(said: Mapping[str, Any]) -> str:
    """With the attacks that got too far, where the silo tells which."""
    failed = sorted(name for name, verdict in said["verdicts"].items() if verdict == "fail")
    vote = "no vote" if said["vote"] == "none" else str(said["vote"])
    return f"{vote} ({', '.join(failed)})" if failed else vote


def _bounded(scores: Mapping[str, float], name: str) -> str:
    if name not in scores:
        return "–"
    low = scores.get(f"{name}_low")
    return f"{scores[name]:.3g}" + ("" if low is None else f" ({low:.3g})")


def _plain(scores: Mapping[str, float], name: str) -> str:
    return f"{scores[name]:.3g}" if name in scores else "–"


def evaluation(facts: Facts) -> list[str]:
    summary, metric = facts.summary, facts.job.stop.metric
    known = {0: summary["initial"]["metrics"]} | {
        each["version"]: each["metrics"] for each in summary["versions"]
    }
    figures = known.get(facts.version, {"global": {}, "silos": {}})
    pooled = ", ".join(f"{name} {value:.4g}" for name, value in sorted(figures["global"].items()))
    parts = [
        f"On the silos' own test rows, pooled: {pooled or 'not known'}. Versions were judged by {metric}."
    ]
    if figures["silos"]:
        names = sorted({name for each in figures["silos"].values() for name in each})
        rows = [[silo, *(_plain(each, name) for name in names)] for silo, each in figures["silos"].items()]
        parts.append(table_of([["silo", *names], *rows]))
        parts += _worst(figures["silos"], metric)
    return parts + _compared(summary)


def _worst(silos: Mapping[str, Mapping[str, float]], metric: str) -> list[str]:
    values = {silo: each[metric] for silo, each in silos.items() if metric in each}
    if not values:
        return []
    worst = (min if larger_is_better(metric) else max)(values, key=lambda silo: values[silo])
    return [f"Worst silo: **{worst}**, {metric} {values[worst]:.4g}."]


def _compared(summary: Mapping[str, Any]) -> list[str]:
    report = summary["report"]
    if not report or not report["silos"]:
        return []
    metric = report["metric"]
    table = [["silo", f"{metric}, this model (95 %)", "trained alone (95 %)", "verdict"]]
    for silo, each in report["silos"].items():
        cells = [_interval(each["models"].get(name), metric) for name in ("global", "alone")]
        name = f"{silo} (held out)" if each["held_out"] else silo
        said = each["models"].get("global", {}).get("verdicts", {}).get(metric, "–")
        table.append([name, *cells, said])
    harmed = (
        f"Worse off than alone: {', '.join(report['harmed'])}."
        if report["harmed"]
        else "No silo is worse off than alone beyond the noise of its test rows."
    )
    return [table_of(table), harmed if report["do_no_harm"] is not None else ""]


def _interval(model: Mapping[str, Any] | None, metric: str) -> str:
    if model is None or metric not in model["metrics"]:
        return "–"
    bounds = model["intervals"].get(metric)
    within = f" ({bounds[0]:.3g} to {bounds[1]:.3g})" if bounds else ""
    return f"{model['metrics'][metric]:.3g}{within}"


def incidents(facts: Facts) -> list[str]:
    summary = facts.summary
    resumed, redone, never = summary["resumed"], summary["redone_rounds"], summary["never_contributed"]
    lines = [f"Resumed {resumed} times, {redone} rounds made again."] if resumed else []
    for what, words in _WORDS.items():
        lines += _some([words.format(**each) for each in summary[what]])
    lines += [f"Never contributed: {', '.join(never)}"] if never else []
    return ["\n".join(f"- {' '.join(line.split())}" for line in lines) or "None is on record."]


def _some(lines: Sequence[str]) -> list[str]:
    return [*lines[:MOST], *([f"… and {len(lines) - MOST} more of this kind"] if len(lines) > MOST else [])]
