"""A page about a finished run, made from its journal: HTML with the plots inside, and a short Markdown note."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator.core.events import Event, parse
from orchestrator.core.metrics import larger_is_better
from orchestrator.core.spent import spent
from orchestrator.history import History
from orchestrator.journal import JOURNAL, read_journal
from orchestrator.summary import summarise
from tracking.plots import figures_of, human_bytes

MAX_NOTE = 8000
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem; font-size: 1.15rem } .sub { color: #666; margin-top: .2rem }
table { border-collapse: collapse; margin: .5rem 0 } th, td { padding: .3rem .8rem; text-align: left }
th { border-bottom: 2px solid #222 } td { border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } img { max-width: 100%; margin: .5rem 0 }
code { background: #f3f3f3; padding: .1rem .3rem; border-radius: 3px; font-size: .85em; overflow-wrap: anywhere }
pre { background: #f7f7f7; padding: 1rem; overflow: auto; font-size: .85em }
"""

MODELS = {"global": "federated", "fine_tuned": "fine-tuned", "alone": "alone", "personal": "personal"}
"""Models of the silos' report, in the order of the columns."""

Table = list[list[str]]
"""Rows of cells; the first holds the headings, and columns after the first are numbers."""


def write(run_dir: Path, folder: Path) -> str:
    """Writes ``report.html``, ``plots/*.png``, ``job.yaml`` and ``summary.json`` into the folder and returns the
    note. Raises JournalDamaged."""
    events = parse(read_journal(run_dir / JOURNAL)[0])
    summary, pictures = summarise(events), pictures_of(events)
    job = job_text(run_dir, events)
    (folder / "plots").mkdir()
    for name, picture in pictures.items():
        (folder / "plots" / f"{name}.png").write_bytes(picture)
    (folder / "job.yaml").write_text(job, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(summary, pictures, job), encoding="utf-8")
    return note(summary)


def pictures_of(events: Iterable[Event]) -> dict[str, bytes]:
    """The plots as PNG."""
    return {name: _png(figure) for name, figure in figures_of(History.of(events)).items()}


def job_text(run_dir: Path, events: Iterable[Event]) -> str:
    """The job file as it was given, where the run directory has it; else the document with all defaults."""
    given = run_dir / "job.yaml"
    if given.exists():
        return given.read_text(encoding="utf-8")
    opened = History.of(events).opened
    return str(yaml.safe_dump(opened.job if opened else {}, sort_keys=False))


def note(summary: Mapping[str, Any]) -> str:
    """The description on MLflow's page of the run, in Markdown."""
    tables = [before_and_after(summary), contributed(summary)]
    report = summary.get("report")
    if report and report["silos"]:
        tables.insert(1, assessed(summary))
    tables += private(summary)
    text = [_status(summary), *(_markdown(table) for table in tables), "Full report: artifact `report.html`."]
    return "\n\n".join(text)[:MAX_NOTE]


def page(summary: Mapping[str, Any], pictures: Mapping[str, bytes], job: str) -> str:
    """One self-contained HTML page."""
    parts = [
        f"<h1>{_text(summary['name'])}</h1><p class=sub>run <code>{_text(summary['run_id'])}</code></p>",
        f"<p>{_text(_status(summary))}</p>",
        "<h2>Before and after, by silo</h2>",
        _html(before_and_after(summary)),
        *(_image(name, picture) for name, picture in pictures.items()),
        *_of_silos(summary),
        "<h2>Who contributed</h2>",
        _html(contributed(summary)),
        *(f"<h2>Privacy spent</h2>{_html(table)}" for table in private(summary)),
        *_refusals(summary),
        "<h2>Identity</h2>",
        _html([["", ""], *([name, f"`{value}`"] for name, value in _identity(summary).items())]),
        f"<h2>Job</h2><pre>{_text(job)}</pre>",
    ]
    title = _text(summary["name"])
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>{''.join(parts)}\n"
    )


def before_and_after(summary: Mapping[str, Any]) -> Table:
    """Each silo's figures of the first and the last version that it evaluated, the pooled ones last."""
    silos: Mapping[str, Mapping[str, Any]] = summary["silos"]
    pooled = {"first": summary["initial"]["metrics"]["global"], "last": _last(summary)}
    metrics = sorted({name for each in (*silos.values(), pooled) for name in each["last"]})
    rows = {**silos, "all, pooled": pooled}
    head = ["silo", "training rows", *(f"{name} {when}" for name in metrics for when in ("before", "after"))]
    table = [head]
    for silo, each in rows.items():
        count = str((each.get("num_examples") or {}).get("train", ""))
        table.append(
            [silo, count, *(_number(each[when].get(m)) for m in metrics for when in ("first", "last"))]
        )
    return table


def contributed(summary: Mapping[str, Any]) -> Table:
    """Into how many versions each silo's updates went, and its mean weight in them."""
    rows: Table = [["silo", "versions", "mean weight", "refused", "lost"]]
    for silo in summary["silos"]:
        weights = [c["weight"] for v in summary["versions"] for c in v["contributors"] if c["silo"] == silo]
        mean = _number(sum(weights) / len(weights)) if weights else "–"
        refused, lost = (sum(each["silo"] == silo for each in summary[what]) for what in ("refused", "lost"))
        rows.append([silo, str(len(weights)), mean, str(refused), str(lost)])
    return rows


def private(summary: Mapping[str, Any]) -> list[Table]:
    """What the run has cost each silo, and what the whole job was to cost; no table where nothing is accounted for."""
    silos = {
        name: (spent(each["privacy"]), spent(each["planned"])) for name, each in summary["silos"].items()
    }
    if not any(any(each) for each in silos.values()):
        return []
    rows = [[name, *each, _METRICS[summary["silos"][name]["metrics"]]] for name, each in silos.items()]
    return [[["silo", "privacy spent", "planned", "metrics on its rows"], *rows]]


_METRICS = {
    "open": "outside the guarantee",
    "summed": "in sealed sums only",
    "noised": "noised, in the budget",
    "none": "none",
}
"""How they left."""


def assessed(summary: Mapping[str, Any]) -> Table:
    """Each silo's figures of the models that it compared, with their intervals; then what they come to."""
    report = summary["report"]
    metric, models = report["metric"], [name for name in MODELS if _has(report, name)]
    table: Table = [["silo", *(MODELS[name] for name in models), "federated − alone", "verdict"]]
    for silo, each in report["silos"].items():
        name = f"{silo} (held out)" if each["held_out"] else silo
        figures = [_with_bounds(each["models"].get(model), metric) for model in models]
        verdict = each["models"].get("global", {}).get("verdicts", {}).get(metric, "")
        table.append([name, *figures, _gain(each, metric), verdict])
    for what in ("mean", "worst", "std", "p10", "jain"):
        table.append([what, *(_number(report["spreads"].get(name, {}).get(what)) for name in models), "", ""])
    return table


def _of_silos(summary: Mapping[str, Any]) -> list[str]:
    report, parts = summary.get("report"), []
    if report and report["silos"]:
        title = f"What the federation does for each silo ({report['metric']} of version {report['version']})"
        lines = "".join(f"<p>{_text(line)}</p>" for line in verdict_lines(report))
        parts += [f"<h2>{_text(title)}</h2>", _html(assessed(summary)), lines]
        parts += [_html(curve) for curve in [adapted(report)] if len(curve) > 1]
        parts += [_html(worth) for worth in [worths(report)] if len(worth) > 1]
    if summary.get("drift"):
        rows = [[each["silo"], str(each["version"]), ", ".join(each["signals"])] for each in summary["drift"]]
        parts += ["<h2>Drift alarms</h2>", _html([["silo", "version", "signals"], *rows])]
    return parts


def verdict_lines(report: Mapping[str, Any]) -> list[str]:
    """The verdict, and how it is come by."""
    if report["do_no_harm"] is None:
        return []
    known = f"{len(report['worse'])} of {len(report['benefit'])} silos are below what they reach alone"
    harmed = f"harmed: {', '.join(report['harmed'])}" if report["harmed"] else "none of them is harmed"
    unknown = f"; not known of {', '.join(report['unknown'])}" if report["unknown"] else ""
    blocked = (
        " The alias champion stays where it was (report.do_no_harm: block)." if report["blocked"] else ""
    )
    rule = "Harmed: the whole 95 % interval of federated − alone, on the silo's test rows, is on the wrong side of 0."
    return [f"{known}; {harmed}{unknown}.{blocked} {rule}"]


def adapted(report: Mapping[str, Any]) -> Table:
    """Figures after so many local steps from the global model."""
    metric = report["metric"]
    steps = sorted({point["steps"] for each in report["silos"].values() for point in each["curve"]})
    table: Table = [["silo", *(f"after {number} local steps" for number in steps)]]
    for silo, each in report["silos"].items():
        known = {point["steps"]: point["metrics"].get(metric) for point in each["curve"]}
        name = f"{silo} (held out)" if each["held_out"] else silo
        table.append([name, *(_number(known.get(number)) for number in steps)])
    return table if steps else []


def worths(report: Mapping[str, Any]) -> Table:
    """What each silo's updates are worth."""
    found = report["contributions"]
    if not found:
        return []
    rows = [[each["silo"], _number(each["value"]), _number(each["error"])] for each in found["worths"]]
    return [["silo", f"{found['metric']} by {found['method']}", "standard error"], *rows]


def _has(report: Mapping[str, Any], name: str) -> bool:
    return any(name in each["models"] for each in report["silos"].values())


def _with_bounds(model: Mapping[str, Any] | None, metric: str) -> str:
    if model is None or metric not in model["metrics"]:
        return "–"
    bounds = model["intervals"].get(metric)
    within = f" ({_number(bounds[0])} to {_number(bounds[1])})" if bounds else ""
    return f"{_number(model['metrics'][metric])}{within}"


def _gain(each: Mapping[str, Any], metric: str) -> str:
    ours, alone = (each["models"].get(name, {}).get("metrics", {}) for name in ("global", "alone"))
    return f"{ours[metric] - alone[metric]:+.4g}" if metric in ours and metric in alone else "–"


def _status(summary: Mapping[str, Any]) -> str:
    versions, best = summary["versions"], summary["best"]
    took = max(0.0, (summary["ended"] or 0) - (summary["started"] or 0))
    began = datetime.fromtimestamp(summary["started"] or 0, UTC).isoformat(" ", "minutes")
    sent = human_bytes(sum(each["bytes_up"] + each["bytes_down"] for each in versions))
    text = f"{summary['status'].capitalize()}: {summary['reason'] or 'no reason given'}. "
    when = "on a simulated clock" if summary.get("simulated") else f"from {began}"
    text += f"{len(versions)} versions in {took:.1f} s {when}; {sent} sent. "
    if best and best["value"] is not None:
        way = "highest" if larger_is_better(best["metric"]) else "lowest"
        text += f"Best version: {best['version']} ({way} {best['metric']}, {_number(best['value'])}). "
    return text.strip()


def _last(summary: Mapping[str, Any]) -> dict[str, float]:
    known = [each["metrics"]["global"] for each in summary["versions"] if each["metrics"]["global"]]
    return dict(known[-1]) if known else {}


def _identity(summary: Mapping[str, Any]) -> dict[str, str]:
    prints = {f"data of {silo}": each["fingerprint"] for silo, each in summary["silos"].items()}
    ours = {"job digest": summary["job_digest"], "parameters digest": summary["parameters_digest"]}
    return {name: value for name, value in {**ours, **prints}.items() if value}


def _refusals(summary: Mapping[str, Any]) -> list[str]:
    if not summary["refused"]:
        return []
    rows = [[each["silo"], str(each["version"]), each["code"], each["reason"]] for each in summary["refused"]]
    return ["<h2>Refused updates</h2>", _html([["silo", "version", "code", "reason"], *rows])]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _markdown(table: Table) -> str:
    head, *rows = table
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _html(table: Table) -> str:
    head, *rows = table
    top = "".join(f"<th{_right(cell)}>{_text(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td{_right(cell)}>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if any(head) else ''}{body}</table>"


def _cell(cell: str) -> str:
    return f"<code>{_text(cell.strip('`'))}</code>" if cell.startswith("`") else _text(cell)


def _right(cell: str) -> str:
    return " class=n" if cell[:1].isdigit() or cell.endswith(("before", "after", "rows", "weight")) else ""


def _text(value: Any) -> str:
    return html.escape(str(value))


def _image(name: str, picture: bytes) -> str:
    return f'<img alt="{_text(name)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
