"""The mean of the raw gradients along a local path: what a silo found, whatever its optimizer made of it."""

from orchestrator.core.protocols import Array, LocalRun


def note(run: LocalRun, gradient: Array) -> None:
    """Count a gradient of the loss, as it is before any correction. Of SGD ``-delta / path`` says as much for free."""
    if run.exact_path:
        return
    if "gradients" in run.memo:
        run.memo["gradients"] += gradient
    else:
        run.memo["gradients"] = gradient + 0.0  # a copy: the gradient lives until the next one


def mean_gradient(run: LocalRun) -> Array:
    """Of the gradients noted; zeros without any."""
    return run.memo["gradients"] / run.num_steps if run.num_steps else run.anchor * 0.0
