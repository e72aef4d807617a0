"""The model card of a run: what the model is, who is in it, what protects them, and how to check that. Markdown, made
from the run's journal alone (Mitchell et al. 2019)."""

from collections.abc import Mapping
from typing import Any

from orchestrator.card_facts import Facts, Table, date_of, table_of
from orchestrator.card_figures import attacks, evaluation, incidents
from orchestrator.core.printable import printable
from orchestrator.job import Job
from orchestrator.privacy_statement import statement
from orchestrator.voting import told


def card(facts: Facts, digest: str | None) -> str:
    """All sections. ``digest``: of the version's parameters, where they are still there."""
    sections = {
        "Model": [table_of(_model(facts))],
        "Intended use": _use(facts),
        "Data": [table_of(_data(facts)), *_data_notes(facts)],
        "Who contributed": [table_of(_contributed(facts)), *_contributed_notes(facts)],
        "Privacy": _privacy(facts),
        "What attacks found": attacks(facts),
        "Evaluation": evaluation(facts),
        "Incidents": incidents(facts),
        "How to check this": _check(facts, digest),
    }
    parts = [f"# Model card: {facts.summary['name']}", _lead(facts)]
    for title, paragraphs in sections.items():
        parts += [f"## {title}", *paragraphs]
    text = "\n\n".join(part for part in parts if part)
    return "".join(f"{printable(line)}\n" for line in text.split("\n"))


def _lead(facts: Facts) -> str:
    summary, release = facts.summary, facts.summary["release"]
    when = date_of(summary["ended"])
    text = f"Version {facts.version} of run `{summary['run_id']}`, {summary['status']} on {when}."
    if summary["simulated"]:
        text += " **The run was simulated: its clock is virtual.**"
    if release is None:
        return f"{text} The silos were not asked whether it may be released (`release` in the job)."
    return f"{text} Release: **{told(release)}**."


def _model(facts: Facts) -> Table:
    job = facts.job
    task = job.task.model_dump(mode="json")
    model = task.get("model") or {}
    options = ", ".join(f"{k}: {v}" for k, v in model.items() if k != "name" and v not in (None, [], {}))
    classes = task.get("classes") or task.get("num_classes")
    target = f", target `{task['target']}`" if task.get("target") else ""
    rounds = f"{len(facts.rounds)} of {job.rounds.total} rounds, mode {job.rounds.mode}"
    rows = [
        ["task", f"{task['name']}, data set `{task.get('dataset', '')}`{target}"],
        ["classes", str(classes or "")],
        ["network", model.get("name", "of the task's own") + (f" ({options})" if options else "")],
        ["trained by", f"{job.strategy.name}, {rounds}; {len(job.training)} silos train"],
        ["local training", _local(job)],
        ["started from", job.start_from.told if job.start_from else "random weights of the job's seed"],
    ]
    return [["", ""], *(row for row in rows if row[1])]


def _local(job: Job) -> str:
    local = job.local
    length = f"{local.steps} steps" if local.steps else f"{local.num_epochs} epochs"
    return f"{length} a round, batches of {local.batch_size}, {local.optimizer.name} at rate {local.optimizer.lr:g}"


def _use(facts: Facts) -> list[str]:
    given = facts.job.card
    rows = [
        ["intended for", given.intended_use],
        ["not for", given.not_for],
        ["known limits", given.limits],
        ["contact", given.contact],
    ]
    missing = "*not stated; fill in `card` in the job before the model is handed on*"
    return [table_of([["", ""], *([name, text or missing] for name, text in rows)])]


def _data(facts: Facts) -> Table:
    table = [["silo", "training rows", "test rows", "fingerprint of the data"]]
    for silo, each in facts.summary["silos"].items():
        rows = [str(each["num_examples"].get(split, "not told")) for split in ("train", "test")]
        table.append(
            [silo, *rows, f"`{each['fingerprint'][:16]}…`" if each["fingerprint"] else "never joined"]
        )
    return table


def _data_notes(facts: Facts) -> list[str]:
    notes = []
    left_out = [
        f"{silo}: {', '.join(f'{count} {split}' for split, count in each['quarantined'].items() if count)}"
        for silo, each in facts.summary["silos"].items()
        if any(each.get("quarantined", {}).values())
    ]
    labels = [
        f"{silo}: {', '.join(f'{count} of {label}' for label, count in each['labels'].items())}"
        for silo, each in facts.summary["silos"].items()
        if each.get("labels")
    ]
    if labels:
        notes.append(f"Training rows by class: {'; '.join(labels)}.")
    if facts.job.contract is not None:
        most = f"{facts.job.contract.max_quarantined:.3g}"
        notes.append(
            f"Held against the job's data contract, which lets {most} of a split's rows be left out."
        )
    if left_out:
        notes.append(f"Left out by the data contract: {'; '.join(left_out)}.")
    release = facts.job.release
    if release is not None and release.canaries:
        notes.append(
            f"Each silo put up to {release.canaries} meaningless records (canaries) among its training "
            "rows, to see afterwards whether the model remembers them; they are counted above."
        )
    return notes


def _contributed(facts: Facts) -> Table:
    table = [["silo", "updates in the model", "mean share", "first", "last"]]
    for silo in facts.job.silos:
        given = [
            (event.time, each.weight)
            for version, event in sorted(facts.rounds.items())
            for each in event.contributors
            if each.silo == silo and version <= facts.version
        ]
        if not given:
            why = "held out" if silo in facts.job.held_out else "none"
            table.append([silo, why, "", "", ""])
            continue
        share = sum(weight for _, weight in given) / len(given)
        table.append([silo, str(len(given)), f"{share:.3g}", date_of(given[0][0]), date_of(given[-1][0])])
    return table


def _contributed_notes(facts: Facts) -> list[str]:
    notes = []
    worths = (facts.summary["report"] or {}).get("contributions")
    if worths and worths["worths"]:
        said = ", ".join(f"{each['silo']} {each['value']:+.3g}" for each in worths["worths"])
        notes.append(f"Worth of each silo's updates, in {worths['metric']} ({worths['method']}): {said}.")
    return notes


def _privacy(facts: Facts) -> list[str]:
    rounds = [
        {"sealed": each.sealed is not None}
        for version, each in sorted(facts.rounds.items())
        if version <= facts.version
    ]
    return statement(facts.job, rounds, _trained(facts))


def _trained(facts: Facts) -> dict[str, Mapping[str, Any]]:
    return {silo: facts.summary["silos"][silo] for silo in facts.job.training}


def _check(facts: Facts, digest: str | None) -> list[str]:
    summary = facts.summary
    last = summary["parameters_digest"]
    rows = [
        ["", ""],
        ["job", f"`{summary['job_digest']}`"],
        [
            f"parameters of version {facts.version}",
            f"`{digest}`" if digest else "no longer in the run directory",
        ],
        ["parameters of the last version", f"`{last}`" if last else "the run has not ended"],
        [f"head of the journal ({facts.num_lines} lines)", f"`{facts.head}`"],
        ["key of the driver that signed it", f"`{facts.driver_key}`" if facts.driver_key else "none"],
    ]
    run = summary["run_id"]
    how = (
        "The journal is a chain of hashes: whoever has its head can tell whether any line was changed, dropped or put "
        f"in. `siloray verify {run}` checks it offline; `siloray show {run}` prints what it says. Digests are SHA-256; "
        "that of parameters is of the shared ones as little-endian float32, in the model's order."
    )
    return [table_of(rows), how]
