"""What goes with DP-SGD, and what does not: part of the table of sentences (`orchestrator.legality`)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.local import Local

if TYPE_CHECKING:
    from orchestrator.job import Job


def refusals(job: "Job") -> Iterator[str]:
    """Reasons why the job's training cannot be private."""
    if job.dp_sgd is None:
        return
    if not job.strategy.one_gradient:
        yield (
            f"privacy: dp_sgd accounts for one gradient a step, of the batch's plain loss, and '{job.strategy.name}' "
            "looks at the rows in another way"
        )
    yield from unfit(job.local)
    if job.release is not None and job.release.canaries:
        yield (
            "release.canaries: canaries are made of the silo's rows, so that with them a record has a part in several "
            "units of a step, and dp_sgd accounts for one; leave them out, and attack by membership or inversion"
        )
    if job.report.do_no_harm == "block":
        yield (
            "report.do_no_harm: with dp_sgd no model is trained on a silo's rows alone, which would be outside the "
            "budget, so nothing can be found to block"
        )


def unfit(local: Local) -> Iterator[str]:
    """What of a local training does not go with DP-SGD."""
    if local.precision != "float32":
        yield (
            f"local.precision: sums of {local.precision} gradients are rounded by more than the bound of one record's; "
            "with dp_sgd use float32"
        )
    if local.clip_grad_norm is not None:
        yield (
            "local.clip_grad_norm: with dp_sgd every record's gradient is cut (max_grad_norm); cutting their noised "
            "mean as well would only bias it"
        )
    if local.compile:
        yield "local.compile: a compiled model does not show single records' gradients, which dp_sgd needs"


def warnings(job: "Job") -> Iterator[str]:
    """What is legal but probably not meant."""
    spec = job.dp_sgd
    if spec is None:
        return
    if spec.insecure_test_noise_seed is not None:
        yield "privacy: with insecure_test_noise_seed dp_sgd protects nobody"
    if getattr(job.task, "scales_by_rows", False):
        yield (
            "task.standardise: means and deviations of the silo's own rows are outside dp_sgd's epsilon, and a silo "
            "with a budget refuses that: give public numbers, as standardise: {age: [54, 9]}, or false"
        )
    if job.report.silos and (job.report.alone or job.report.adapt):
        yield (
            "report: with dp_sgd silos train no model alone and fine-tune none for the report: that would be outside "
            "the budget"
        )
