"""Where a clip and noise would not hide one silo among the others."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.core.errors import BadJob
from orchestrator.privacy.mechanisms import BOUND, STEPS, AdaptiveClip, Gaussian, Noise

if TYPE_CHECKING:
    from orchestrator.job import Job

FEW = 20
"""Silos below which the noise of a whole silo is rarely worth its price."""


def refusals(job: "Job") -> Iterator[str]:
    names = [each.name for each in job.privacy]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"privacy: '{name}' stands twice; give it once"
    if {"clip", "adaptive_clip"} <= set(names):
        yield "privacy: 'clip' and 'adaptive_clip' bound the same vector; give one of them"
    if job.noise is None:
        return
    clips = [each for each in ("clip", "adaptive_clip") if each in names]
    if not clips or names.index("gaussian") < names.index(clips[0]):
        yield (
            "privacy: noise without a clip before it is no privacy: nothing bounds what one silo adds; put clip or "
            "adaptive_clip before gaussian"
        )
        return
    unsolvable = list(_solvable(job))
    yield from unsolvable
    yield from _bounded(job, job.noise)
    if not unsolvable:
        yield from _of_ring(job, job.noise)
        yield from _of_gate(job, job.noise)


def _bounded(job: "Job", noise: Gaussian) -> Iterator[str]:
    """How far one silo can move the result."""
    if job.combine.weights == "examples":
        yield (
            "combine.weights: with gaussian noise the numbers of rows would say how far a silo moves the average, and "
            "they are private as well; give uniform, or numbers that the silos agreed on"
        )
    elif job.combine.sensitivity(1.0, [1.0]) is None:
        yield f"combine: of '{job.combine.name}' no bound is known on how far one silo moves it; use mean or a sum"
    if not job.codec.contractive:
        yield f"codec: {job.codec.name} may lengthen an update after its clip, by which noise is measured; use raw"
    if job.strategy.scalars:
        yield (
            f"privacy: '{job.strategy.name}' sends {', '.join(sorted(job.strategy.scalars))} of each silo beside the "
            "vector, where no noise is added"
        )
    if noise.where == "silos" and job.combine.weights != "uniform":
        yield "privacy: each silo's part of the noise is for uniform weights; give combine.weights: uniform"
    if noise.where == "silos" and job.loosest_policy.most_stale:
        yield (
            "privacy: where silos add the noise, one with two updates in an average would have too little for both; "
            "give rounds.max_staleness: 0, or where: driver"
        )


def _solvable(job: "Job") -> Iterator[str]:
    """Whether there is a noise multiplier for the target, and a part of it for the count of clipped updates."""
    try:
        multiplier = job.facts.noise_multiplier
        for each in job.privacy:
            if isinstance(each, AdaptiveClip):
                each.scale(multiplier)
                if each.sigma_b is None:
                    yield (
                        "adaptive_clip.sigma_b: with noise, say how much of it the number of clipped updates takes; "
                        f"above half of noise_multiplier {multiplier:.3g}"
                    )
    except BadJob as error:
        yield str(error)


def _of_ring(job: "Job", noise: Gaussian) -> Iterator[str]:
    """What is cut off, or rounded away, is not the noise that is accounted for."""
    sums = job.sums
    if sums is None:
        return
    step = _largest(job)
    if sums.range == "auto":
        yield (
            "combine.range: 'auto' follows the updates, and tells of them what the noise is to hide; give "
            f"{step.reach:.4g} or more"
        )
    elif sums.range < step.reach:
        yield (
            f"combine.range: {sums.range:g} would cut off what the clip and the noise let through; give "
            f"{step.reach:.4g} or more"
        )
    point = sums.fixed_point(job.max_in_sum)
    if noise.where == "silos" and step.own_std < STEPS * point.quantum:
        yield (
            f"combine.value_bits: the ring's step {point.quantum:.3g} is too coarse for noise of {step.own_std:.3g}; "
            "give more bits, or ring: uint32"
        )


def _of_gate(job: "Job", noise: Gaussian) -> Iterator[str]:
    """Whom the gate keeps out is told to all, with the length of the update, to which no noise was added."""
    most, bound = job.gate.max_norm, _largest(job).bound
    if noise.where == "driver" and most is not None and most < bound:
        yield (
            f"gate.max_norm: {most:g} is below the clip's bound {bound:.4g}: which silos the gate keeps out would tell "
            "of updates that the driver's noise is to hide; give as much or more"
        )


def _largest(job: "Job") -> Noise:
    """The noise step at the largest bound that the job allows."""
    caps = [each.max_norm for each in job.privacy if isinstance(each, AdaptiveClip)]
    steps = job.steps({BOUND: caps[0]} if caps else {})
    return next(step for step in steps if isinstance(step, Noise))


def warnings(job: "Job") -> Iterator[str]:
    noise = job.noise
    if noise is None:
        return
    num_silos, multiplier = job.loosest_policy.buffer_size, job.facts.noise_multiplier
    if num_silos < FEW:
        yield (
            f"privacy: gaussian hides a whole silo among {num_silos}: every number of the average gets noise of "
            f"{multiplier:.3g} / {num_silos} of the clip's bound, which only small models stand; record-level privacy "
            "(dp_sgd) costs less"
        )
    if job.dp_sgd is not None:
        yield "privacy: noise at the silos' training and on their sum: both are accounted for, and both cost accuracy"
    if noise.insecure_test_noise_seed is not None:
        yield "privacy: with insecure_test_noise_seed the noise can be taken away again: for tests only"
    if noise.where == "silos" and not getattr(job.combine, "protects", False):
        yield (
            f"privacy: 'where: silos' protects from the driver only in a sum that hides its terms, and with "
            f"'{job.combine.name}' it sees every update with a part of the noise"
        )
    yield "privacy: metrics and numbers of rows leave beside the noise; each silo's policy says which (metrics_out)"
