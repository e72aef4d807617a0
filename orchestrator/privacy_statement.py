"""What a run's privacy comes to, in plain words: from its job, and from what the silos said that they have spent. Pure.

Nothing is claimed that the record does not show: a sum counts as sealed where its round says so, an epsilon where the
silo told one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.job import Job
from orchestrator.privacy.clip import Clip
from orchestrator.privacy.dp_sgd import DpSgd
from orchestrator.privacy.mechanisms import AdaptiveClip, Gaussian
from orchestrator.privacy.ring_sum import RingSum

_SUMS = {
    "secure_sum": (
        "Updates were masked at the silos (secure sum, {mode} mode). The driver saw the sum over at least "
        "{least} silos in a round, and no single silo's update. {lying} This holds while fewer than a third "
        "of the silos work together with the driver, unless the job says otherwise ({colluders})."
    ),
    "two_aggregator_sum": (
        "Updates were split over two aggregators, the driver and {second}. Neither saw a single update; "
        "both together could have seen all of them: this holds as long as the two do not work together."
    ),
    "encrypted_sum": (
        "Updates were encrypted (BFV) under a key that the silos share and the driver has not. The driver "
        "saw sums. A silo that worked together with the driver, or whose key was stolen, could have read "
        "every silo's update."
    ),
}
_NOT_SEALED = (
    "The driver saw every silo's update in every round. From an update of few rows, rows can be computed "
    "back; nothing in this job kept the driver, or whoever reads its memory, from trying."
)
_SUM_IS_NO_DP = (
    "A sum hides whose contribution something was. It does not bound what the sum, or the released model, "
    "says about one person: for that there is differential privacy, see below."
)
_KEPT_IN = (
    "A silo that keeps its number of rows to itself tells none, for the number follows from it: its own "
    "ledger has the figure."
)
_ONE_CLUSTER = (
    "Where driver and silos were nodes of one Ray cluster, none of this is a boundary between them: a "
    "cluster is one trust domain. Between organisations that each dialled out to the driver, it is."
)


def statement(
    job: Job, rounds: Sequence[Mapping[str, Any]], silos: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Paragraphs. ``rounds``: of the summary, up to the version in question, each with ``sealed``; ``silos``:
    likewise."""
    return [
        "No row left its silo. What left are model updates, metrics and the public numbers in the run's record.",
        *_sums(job, rounds),
        *_steps(job, silos),
        *_spent(job, silos),
        *_outside(job, silos),
        _ONE_CLUSTER,
    ]


def _sums(job: Job, rounds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    combine = job.combine
    if not isinstance(combine, RingSum) or not combine.protects:
        yield _NOT_SEALED
        return
    mode = getattr(combine, "mode", "passive")
    lying = {
        "active": "Silos checked one another's lists of who was in a sum, so a driver that lies opens "
        "nothing more.",
        "passive": "A driver that follows the protocol learns nothing else; one that lies about who was in a "
        "sum is refused by each silo on its own, without the silos comparing notes (that is mode: active).",
    }[mode]
    colluders = getattr(combine, "colluders", None)
    facts = {
        "mode": mode,
        "second": getattr(combine, "second", ""),
        "lying": lying,
        "least": max(job.least_in_sum, combine.least),
        "colluders": "it does not" if colluders is None else f"colluders: {colluders}",
    }
    yield _SUMS.get(combine.name, "Updates were summed sealed ({mode}).").format(**facts)
    if combine.groups is not None:
        yield (
            f"In each round silos were drawn into random groups of {combine.groups.size} or more, and the driver "
            "saw each group's sum: more than one sum of all. Of the groups' means it took the "
            f"{combine.groups.rule}, so that one bad silo spoils its group only."
        )
    sealed = sum(bool(each["sealed"]) for each in rounds)
    yield (
        f"All {len(rounds)} rounds behind this version were summed so; each round's tag is in the record."
        if sealed == len(rounds)
        else f"**Only {sealed} of the {len(rounds)} rounds behind this version say that they were summed so.**"
    )
    yield _SUM_IS_NO_DP


def _steps(job: Job, silos: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not any(isinstance(step, DpSgd | Gaussian) for step in job.privacy):
        yield (
            "**No differential privacy**: nothing bounds what the model may say about a single person. How "
            "much it gives away in attacks that were tried, if any, stands below."
        )
    for step in job.privacy:
        match step:
            case Clip():
                yield f"Each update was shortened to a length of at most {step.max_norm:g}. That alone protects nobody."
            case AdaptiveClip():
                yield "Each update was shortened to a length that follows a quantile of the updates' lengths."
            case Gaussian():
                yield _noise(step)
            case DpSgd():
                yield _dp_sgd(step)
        if getattr(step, "insecure_test_noise_seed", None) is not None:
            yield "**The noise repeats (`insecure_test_noise_seed`), so it protects nobody: this was a test.**"


def _noise(step: Gaussian) -> str:
    who = (
        "the silos, each its part, so that nobody needed to be trusted where the sum was sealed"
        if step.where == "silos"
        else "the driver, which saw the sum without it and is trusted with that"
    )
    return (
        f"Gaussian noise ({_amount(step.noise_multiplier, step.target_epsilon)}) was added by {who}. It "
        "protects whole **silos**: who sees the model cannot tell well whether one silo's data were in it. "
        "It is no promise to a single person beyond that."
    )


def _dp_sgd(step: DpSgd) -> str:
    unit = "patient, with all of that patient's rows" if step.unit == "patient" else "record"
    return (
        f"Silos trained with DP-SGD: every step's gradients were shortened to {step.max_grad_norm:g} and "
        f"noise ({_amount(step.noise_multiplier, step.target_epsilon)}) was added at the silo. It protects "
        f"each single **{unit}** from everybody, the driver and the other silos included, within the "
        "epsilon below. A person in several silos' data is protected by the sum of their epsilons only."
    )


def _amount(multiplier: float | None, target: float | None) -> str:
    return f"multiplier {multiplier:g}" if multiplier is not None else f"calibrated to epsilon {target:g}"


def _spent(job: Job, silos: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    spent = {
        silo: each["privacy"] for silo, each in silos.items() if each["privacy"].get("epsilon") is not None
    }
    if not spent:
        if any(isinstance(step, DpSgd | Gaussian) for step in job.privacy):
            yield f"**No silo has told an epsilon.** {_KEPT_IN}"
        return
    yield (
        "Privacy spent, as each silo told it: epsilon at the given delta, over everything that its ledger "
        "knows of these data (by privacy loss distributions; Rényi's bound beside it). Smaller is better: "
        "up to 1 is strong, above 10 says little."
    )
    lines = ["| silo | epsilon | by Rényi | of this job | delta |", "| --- | ---: | ---: | ---: | ---: |"]
    for silo, each in spent.items():
        figures = [each.get(name) for name in ("epsilon", "epsilon_rdp", "epsilon_job", "delta")]
        lines.append(f"| {silo} | {' | '.join('–' if x is None else f'{x:.4g}' for x in figures)} |")
    yield "\n".join(lines)
    without = [silo for silo in silos if silo not in spent]
    if without:
        yield f"No epsilon is known of {', '.join(without)}. {_KEPT_IN}"


def _outside(job: Job, silos: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What was made of rows beside the training's noise."""
    if job.dp_sgd is None:
        return
    if getattr(job.task, "scales_by_rows", False):
        yield (
            "Outside that epsilon: means and deviations, by which each silo scaled its columns, were made from its "
            "rows without noise."
        )
    told = [silo for silo, each in silos.items() if each["metrics"] == "open"]
    if told:
        yield f"Outside that epsilon: metrics on test rows left without noise from {', '.join(told)}."
