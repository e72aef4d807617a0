"""The organisation's last word: which jobs run on its data, and which figures leave."""

import math
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from pydantic import ValidationError

from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.job import Job, Transform
from orchestrator.task import OwnTask, modules
from silos.config import Policy, RequiredStep, SiloConfig

_TELLS_NO_STEPS = (
    *("fedavg", "fedprox", "feddyn", "fedma", "moon", "diloco", "fedasync", "area"),
    *("fomaml", "per_fedavg", "reptile"),
    *("ditto", "apfl", "fedper", "fedrep", "fedbn", "fedmd"),
)
"""Strategies of which a report is the same function of the update, however many steps led to it. FedNova sends the
number itself (as ``path``), and SCAFFOLD's two vectors differ by it, as Meta-SGD's do."""


def received(text: str) -> Job | None:
    """The job that a driver sent; None for what is no job here."""
    try:
        return Job.model_validate_json(text)
    except ValidationError:
        return None


def review(job: Job, config: SiloConfig) -> str | None:
    """Why this silo refuses the job, in one line; None when it takes part."""
    return next(_refusals(job, config), None)


def _refusals(job: Job, config: SiloConfig) -> Iterator[str]:
    policy, task, silo = config.policy, job.task, config.name
    if not any(fnmatchcase(job.name, glob) for glob in policy.allow_jobs):
        yield f"{silo} does not allow the job '{job.name}' (allow_jobs: {_listed(policy.allow_jobs)})"
    for dataset in job.datasets:
        if dataset not in config.datasets:
            yield f"{silo} has no data set '{dataset}' (its silo.yaml: {_listed(sorted(config.datasets))})"
    yield from _budgets(job, config)
    if not isinstance(task, OwnTask) and task.name not in policy.allow_tasks:
        yield f"{silo} does not allow the task '{task.name}' (allow_tasks: {_listed(policy.allow_tasks)})"
    for module in sorted(modules(task)):
        if not code_allowed(module, policy.allow_code):
            yield f"{silo} does not allow code of '{module}' (allow_code: {_listed(policy.allow_code)})"
    if policy.allow_strategies != "all" and job.strategy.name not in policy.allow_strategies:
        allowed = _listed(policy.allow_strategies)
        yield f"{silo} does not allow the strategy '{job.strategy.name}' (allow_strategies: {allowed})"
    if job.policy.min_silos < policy.min_cohort:
        yield (
            f"{silo} wants at least {policy.min_cohort} silos in every average (policy.min_cohort); a round of "
            f"this job may close with {job.policy.min_silos}: give rounds.min_updates: {policy.min_cohort}"
        )
    elif job.least_in_sum < policy.min_cohort:
        yield (
            f"{silo} wants at least {policy.min_cohort} silos in every sum (policy.min_cohort); the driver learns "
            f"those of {job.least_in_sum}: give combine.groups.size: {policy.min_cohort}"
        )
    if policy.metrics == "summed" and not (job.sums is not None and job.sums.protects):
        yield (
            f"{silo} lets metrics out only within a sum of which nobody sees a term (policy.metrics: summed), and the "
            f"driver sees those of '{job.combine.name}': use secure_sum"
        )
    yield from _limits(job, policy, silo)
    if not policy.share_counts:
        yield from _counts(job, config)


def _budgets(job: Job, config: SiloConfig) -> Iterator[str]:
    """What no noise makes up for: rows that are shown, or by which others are scaled, and patients whom another column
    names."""
    for dataset in job.datasets:
        budget = config.datasets[dataset].budget if dataset in config.datasets else None
        if budget is None:
            continue
        whose = f"{config.name}: '{dataset}' has a privacy budget"
        if dataset != job.task.dataset:
            yield (
                f"{whose} (datasets.{dataset}.budget), and '{job.strategy.name}' tells what models say of each of its "
                "rows: give a data set without one for strategy.public"
            )
        elif budget.unit != "silo" and getattr(job.task, "scales_by_rows", False):
            yield (
                f"{whose} (datasets.{dataset}.budget), and this job scales columns by means and deviations of its "
                "rows, without noise: give public numbers, as task.standardise: {age: [54, 9]}, or false"
            )
        elif budget.column is not None and job.dp_sgd is not None and job.dp_sgd.column is not None:
            column = config.datasets[dataset].in_file(job.dp_sgd.column)
            if column != budget.column:
                yield (
                    f"{whose} for each patient, whom the column '{budget.column}' names (datasets.{dataset}.budget), "
                    f"and this job goes by '{column}': give privacy.column: {budget.column}"
                )


def _limits(job: Job, policy: Policy, silo: str) -> Iterator[str]:
    if policy.max_rounds is not None and job.rounds.total > policy.max_rounds:
        yield f"{silo} allows {policy.max_rounds} rounds (policy.max_rounds); this job has {job.rounds.total}"
    most, rule = policy.evaluations
    asked = job.report.num_evaluations(len(job.training)) + (job.release is not None)
    if most is not None and asked > most:
        yield (
            f"{silo} allows {most} {rule}; this job may have {asked}: give fewer with report.contribution, "
            "report.permutations or report.silos"
        )
    if policy.require_combiner and job.combine.name not in policy.require_combiner:
        wanted = _listed(policy.require_combiner)
        yield f"{silo} does not allow the combiner '{job.combine.name}' (require_combiner: {wanted})"
    second = getattr(job.combine, "second", silo)
    if policy.allow_second != "all" and second != silo and second not in policy.allow_second:
        allowed = _listed(policy.allow_second)
        yield f"{silo} does not allow '{second}' as the second aggregator (allow_second: {allowed})"
    for step in policy.require_privacy:
        if not any(_meets(each, step) for each in job.privacy):
            yield f"{silo} requires the privacy step '{step.name}'{_bound(step)} (require_privacy)"


def _counts(job: Job, config: SiloConfig) -> Iterator[str]:
    """What would tell the number of rows."""
    keeps = f"{config.name} keeps its number of rows to itself (policy.share_counts)"
    if job.combine.weights == "examples" and not (job.sums is not None and job.sums.protects):
        yield f"{keeps}; use combine.weights: uniform, or numbers that the silos agreed on"
    if config.local.applied(job.local).steps is None and job.strategy.name not in _TELLS_NO_STEPS:
        yield (
            f"{keeps}; what '{job.strategy.name}' reports tells the number of steps: give local.steps, "
            f"or use one of {_listed(_TELLS_NO_STEPS)}"
        )
    missing = list(_following_rows(job, config))
    if missing:
        yield (
            f"{keeps}; how strong the noise in an update is tells it, where dp_sgd's noise or steps follow from it: "
            f"give {' and '.join(missing)}"
        )


def _following_rows(job: Job, config: SiloConfig) -> Iterator[str]:
    """What to give, so that the noise in an update is the same whatever the number of rows."""
    if job.dp_sgd is None:
        return
    if job.dp_sgd.target_epsilon is not None:
        yield "noise_multiplier in place of target_epsilon"
    if config.local.applied(job.local).steps is None:
        yield "local.steps"
    if job.strategy.alone:
        yield "no strategy.alone_epochs"


def _meets(given: Transform, wanted: RequiredStep) -> bool:
    """A clip whose bound adapts is one: its ``max_norm`` is the largest that the bound gets. Noise that repeats is
    none."""
    if getattr(given, "insecure_test_noise_seed", None) is not None:
        return False
    if given.name != wanted.name and (given.name, wanted.name) != ("adaptive_clip", "clip"):
        return False
    return wanted.max_norm is None or getattr(given, "max_norm", math.inf) <= wanted.max_norm


def _bound(step: RequiredStep) -> str:
    return "" if step.max_norm is None else f" with max_norm at most {step.max_norm:g}"


def code_allowed(module: str, allow_code: Iterable[str]) -> bool:
    """Whether a module, or a package around it, is on the list."""
    return any(module == each or module.startswith(f"{each}.") for each in allow_code)


def released(metrics: MetricSums, policy: Policy) -> dict[str, Sums]:
    """The sums that the policy lets out by themselves; without ``share_counts`` scaled to one row."""
    if policy.metrics in ("summed", "none"):
        return {}
    out = named(metrics, policy)
    return out if policy.share_counts else {name: _without_count(sums) for name, sums in out.items()}


def in_sums(metrics: MetricSums, policy: Policy) -> dict[str, Sums]:
    """Those that it lets into a sum of which nobody sees a term. Noised ones have left already."""
    return named(metrics, policy) if policy.metrics in ("open", "summed") else {}


def named(metrics: MetricSums, policy: Policy) -> dict[str, Sums]:
    """Those whose names the policy lets out."""
    return {name: sums for name, sums in metrics.items() if _named(name, policy)}


def _named(name: str, policy: Policy) -> bool:
    return policy.metrics_out == "all" or name in policy.metrics_out


def _without_count(sums: Sums) -> Sums:
    count = sums.count
    return Sums(sums.kind, tuple(value / count for value in sums.values)) if count > 0 else sums


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
