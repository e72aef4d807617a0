"""How far figures would move with other test rows: percentile intervals of resampled rows (Efron 1979).

A model's outputs are kept from one pass over the rows and the metrics are taken of drawn rows, so that any metric has
an interval, a ranking's too. All models are measured on the same draws: the difference of two of them has an interval
of its own, which is narrower than their two intervals suggest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.core.messages import Verdict
from orchestrator.core.metrics import MetricSums, larger_is_better, values
from silos.tasks.task import Batch, Task

FEWEST = 10
"""Rows: of fewer, drawn ones say nothing."""
LARGEST = 256 << 20
"""Bytes of one model's outputs that are kept."""
INSIDE = 0.95

Interval = tuple[float, float]


class Outputs:
    """What a model said of each test row, and what else the task measures by."""

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self._rest: list[tuple[Tensor, ...]] = []
        self._bytes = 0
        self.usable = True
        """False where the task asks its model for something else than one tensor with a row for each of the batch."""

    def watching(self, module: nn.Module) -> Any:
        """Sees what the module returns, until ``remove`` is called on the result."""
        return module.register_forward_hook(lambda module, inputs, output: self._came(output))

    def _came(self, output: Any) -> None:
        self.usable = self.usable and isinstance(output, Tensor) and output.dim() > 0
        if self.usable:
            self._outputs.append(output.detach().to("cpu"))
            self._bytes += self._outputs[-1].nbytes
            self.usable = self._bytes <= LARGEST

    def measured(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches, one after the other, each followed by its outputs."""
        for batch in batches:
            yield batch
            self._rest.append(tuple(each.to("cpu") for each in batch[1:]))
            seen = [len(each) for each in self._outputs[len(self._rest) - 1 :]]
            self.usable = self.usable and seen == [len(batch[0])]

    def rows(self) -> tuple[Tensor, Batch] | None:
        """All outputs, and the rest of the rows; None where they are no good, or too few."""
        if not self.usable or sum(map(len, self._outputs)) < FEWEST:
            return None
        return torch.cat(self._outputs), tuple(torch.cat(column) for column in zip(*self._rest, strict=True))


def resampled(
    task: Task,
    outputs: Mapping[str, Tensor],
    rest: Batch,
    seed: int,
    times: int,
    done: Callable[[int], None],
) -> dict[str, list[dict[str, float]]]:
    """Each model's figures on ``times`` draws of as many rows as there are, with replacement."""
    draw = torch.Generator().manual_seed(seed)
    count = len(next(iter(outputs.values())))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in outputs}
    for number in range(times):
        rows = torch.randint(count, (count,), generator=draw)
        drawn = tuple(each[rows] for each in rest)
        for name, output in outputs.items():
            found[name].append(figures(task, output[rows], drawn))
        done(number + 1)
    return found


def figures(task: Task, output: Tensor, rest: Batch) -> dict[str, float]:
    """The task's metrics of outputs that are known."""
    with torch.inference_mode():
        return values(task.measure(nn.Identity(), (output, *rest)))


def repeatable(task: Task, rows: tuple[Tensor, Batch], metrics: MetricSums) -> bool:
    """Whether the task's metrics follow from the outputs alone."""
    try:
        again = figures(task, *rows)
    except Exception:  # the task's own code, which asks its model for more than outputs
        return False
    known = values(metrics)
    return again.keys() == known.keys() and all(
        abs(again[name] - value) <= 1e-4 * max(1.0, abs(value)) for name, value in known.items()
    )


def intervals(drawn: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """By metric."""
    names = {name for each in drawn for name in each}
    found = {name: interval([each[name] for each in drawn if name in each], len(drawn)) for name in names}
    return {name: each for name, each in sorted(found.items()) if each is not None}


def gains(model: Sequence[Mapping[str, float]], alone: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """By metric, of the difference on each draw."""
    pairs = zip(model, alone, strict=True)
    return intervals([{name: a[name] - b[name] for name in a.keys() & b.keys()} for a, b in pairs])


def interval(drawn: Sequence[float], times: int) -> Interval | None:
    """Percentiles; None where the figure was undefined in more than half of the draws."""
    if 2 * len(drawn) < times:
        return None
    low, high = np.quantile(drawn, [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return float(low), float(high)


def verdict(metric: str, gain: Interval) -> Verdict:
    """What a difference means: nothing, unless all of its interval lies on one side of zero."""
    low, high = gain if larger_is_better(metric) else (-gain[1], -gain[0])
    if low > 0:
        return "better"
    return "worse" if high < 0 else "same"
