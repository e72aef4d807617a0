"""Which rules of rounds go with which strategies: part of the table of sentences (`orchestrator.legality`)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.strategies.area import Area
from orchestrator.strategies.fedasync import FedAsync
from orchestrator.strategies.fednova import FedNova
from orchestrator.strategies.scaffold import Scaffold

if TYPE_CHECKING:
    from orchestrator.job import Job

_INVARIANT = "use fednova, scaffold or feddyn"


def refusals(job: "Job") -> Iterator[str]:
    """Reasons why the job's rounds make no sense with its strategy."""
    yield from _of_steps(job)
    yield from _of_lateness(job)
    yield from _of_weights(job)
    if isinstance(job.strategy, FedAsync) and (job.policy.buffer_size > 1 or job.rounds.grace):
        yield (
            "strategy: fedasync mixes in one local model at a time: give rounds.mode: fedasync (a buffer of 1, no "
            "grace), or buffer updates with strategy fedavg"
        )
    if job.rounds.mode == "auto" and len(job.needed_silos) > job.loosest_policy.buffer_size:
        yield (
            f"rounds.mode: auto may come to rounds of fewer updates than the {len(job.needed_silos)} required "
            "silos: give a larger rounds.buffer"
        )


def _of_steps(job: "Job") -> Iterator[str]:
    if job.strategy.step_invariant:
        return
    name = job.strategy.name
    if job.rounds.mode == "auto":
        yield (
            f"rounds.mode: auto may let silos make unequal numbers of steps, and where {name} converges to depends on "
            f"them: {_INVARIANT}, or choose a mode"
        )
    elif job.rounds.equal_time:
        yield (
            f"rounds.equal_time: fast silos make more steps, and {name} would go to the optimum of those: {_INVARIANT}"
        )
    if job.rounds.partial:
        yield (
            f"rounds.partial: what slow silos hand in has fewer steps, and {name} would go to the optimum of the fast "
            f"ones: {_INVARIANT}"
        )


def _of_lateness(job: "Job") -> Iterator[str]:
    late = job.loosest_policy.most_stale
    if isinstance(job.strategy, Scaffold) and late > 1:
        yield (
            f"strategy: SCAFFOLD's control variates go stale with the model, and updates may be {late} versions late "
            "here: use rounds.mode sync, quorum or semi_sync, or rounds.max_staleness: 1"
        )


def _of_weights(job: "Job") -> Iterator[str]:
    strategy = job.strategy
    if job.rounds.rate_correction and not strategy.reweighs:
        yield (
            f"rounds.rate_correction: {strategy.name} weighs updates in its own way, which other weights would break: "
            "leave it out"
        )
    if isinstance(strategy, Area) and job.combine.weights == "examples":
        yield (
            "strategy: area adds what each silo changed times the silo's share, which must be known before the first "
            "update: give combine.weights: uniform, or a number for each silo (its rows)"
        )
    if strategy.sends_model and job.alters_updates:
        yield (
            f"privacy: {strategy.name} sends parameters, not what changed in them: a bound that they fit under bounds "
            "nothing"
        )
    if strategy.sends_model and job.gate.max_norm is not None:
        yield f"gate.max_norm: {strategy.name} sends parameters, not what changed in them, whose norm says nothing"
    if strategy.sends_model and job.codec.name != "raw":
        yield (
            f"codec: {strategy.name} sends parameters, not what changed in them, and rounding those costs more than a "
            "round of training gains: use raw"
        )


def warnings(job: "Job") -> Iterator[str]:
    """What is legal but probably not meant."""
    rounds, policy = job.rounds, job.policy
    late = job.loosest_policy.most_stale
    if isinstance(job.strategy, Scaffold) and late > 0:
        yield "SCAFFOLD's control variates refer to an older model when rounds.max_staleness > 0"
    if rounds.rate_correction and policy.buffer_size == policy.cohort_size == len(job.training):
        yield "rounds.rate_correction changes nothing in rounds that wait for all silos"
    if rounds.rate_correction and rounds.staleness_exponent and late > 0:
        yield (
            "rounds.staleness_exponent makes slow silos count less, against rounds.rate_correction: 0 is right with it"
        )
    if late > 1 and not job.corrects_rates and job.strategy.reweighs:
        remedy = (
            "rounds.rate_correction: true" if job.sums is None else "a larger rounds.buffer makes it less"
        )
        yield (
            "silos that deliver rarely count for less than their share, and what only they have may be lost: "
            f"{remedy}"
        )
    if (
        rounds.asks_for_steps
        and isinstance(job.strategy, FedNova)
        and job.local.optimizer.arguments.get("momentum")
    ):
        yield (
            "rounds.equal_time with local momentum: a silo of few steps gets under way only, and FedNova multiplies "
            "what it sends many times over: use plain SGD, or scaffold"
        )
    if isinstance(job.strategy, FedAsync | Area) and rounds.staleness_exponent:
        yield f"rounds.staleness_exponent means nothing to {job.strategy.name}"
