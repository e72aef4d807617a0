"""The organisation's last word: which jobs run on its data, and which figures leave."""

from collections.abc import Iterable, Iterator

from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.job import Job
from orchestrator.task import OwnTask, modules
from silos.config import Policy, SiloConfig


def review(job: Job, config: SiloConfig) -> str | None:
    """Why this silo refuses the job, in one line; None when it takes part."""
    return next(_refusals(job, config), None)


def _refusals(job: Job, config: SiloConfig) -> Iterator[str]:
    policy, task, silo = config.policy, job.task, config.name
    if task.dataset not in config.datasets:
        yield f"{silo} has no data set '{task.dataset}' (its silo.yaml: {_listed(sorted(config.datasets))})"
    if not isinstance(task, OwnTask) and task.name not in policy.allow_tasks:
        yield f"{silo} does not allow the task '{task.name}' (allow_tasks: {_listed(policy.allow_tasks)})"
    for module in sorted(modules(task)):
        if not code_allowed(module, policy.allow_code):
            yield f"{silo} does not allow code of '{module}' (allow_code: {_listed(policy.allow_code)})"
    if policy.allow_strategies != "all" and job.strategy.name not in policy.allow_strategies:
        allowed = _listed(policy.allow_strategies)
        yield f"{silo} does not allow the strategy '{job.strategy.name}' (allow_strategies: {allowed})"
    if job.policy.min_updates < policy.min_cohort:
        yield (
            f"{silo} wants at least {policy.min_cohort} silos in every average (policy.min_cohort); a round "
            f"of this job may close with {job.policy.min_updates} (rounds.min_updates)"
        )
    if not policy.share_counts and job.combine.weights == "examples":
        yield (
            f"{silo} keeps its number of rows to itself (policy.share_counts); use combine.weights: uniform, "
            "or numbers that the silos agreed on"
        )


def code_allowed(module: str, allow_code: Iterable[str]) -> bool:
    """Whether a module, or a package around it, is on the list."""
    return any(module == each or module.startswith(f"{each}.") for each in allow_code)


def released(metrics: MetricSums, policy: Policy) -> dict[str, Sums]:
    """The sums that the policy lets out; without ``share_counts`` scaled to one row."""
    out = {name: sums for name, sums in metrics.items() if _named(name, policy)}
    return out if policy.share_counts else {name: _without_count(sums) for name, sums in out.items()}


def _named(name: str, policy: Policy) -> bool:
    return policy.metrics_out == "all" or name in policy.metrics_out


def _without_count(sums: Sums) -> Sums:
    count = sums.count
    return Sums(sums.kind, tuple(value / count for value in sums.values)) if count > 0 else sums


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
