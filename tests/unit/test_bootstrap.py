"""Intervals by resampled test rows."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.core.metrics import MetricSums, Sums
from silos import bootstrap
from silos.bootstrap import FEWEST, Outputs, gains, interval, intervals, repeatable, resampled, verdict
from silos.tasks.tabular import score_histogram


class Binary:
    """Accuracy and AUC of one score per row."""

    def measure(self, model: nn.Module, batch: tuple[Tensor, ...]) -> MetricSums:
        scores, labels = model(batch[0]).reshape(-1), batch[1]
        right = float(((scores > 0) == (labels > 0.5)).sum())
        return {"accuracy": Sums("mean", (right, float(len(labels)))), "auc": score_histogram(scores, labels)}


def watched(module: nn.Module, task: Any, batches: list[tuple[Tensor, ...]]) -> Outputs:
    seen = Outputs()
    watch = seen.watching(module)
    for batch in seen.measured(batches):
        task.measure(module, batch)
    watch.remove()
    return seen


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=draw) < 0.5).float()
    return torch.randn(count, 1, generator=draw) + labels[:, None] - 0.5, labels


def nothing(_: int) -> None: ...


def test_a_mean_has_the_interval_of_the_normal_law() -> None:
    scores, labels = rows(400)
    drawn = resampled(Binary(), {"m": scores}, (labels,), 1, 1_000, nothing)["m"]
    low, high = intervals(drawn)["accuracy"]
    share = float(((scores[:, 0] > 0) == (labels > 0.5)).float().mean())
    width = 1.96 * math.sqrt(share * (1 - share) / 400)
    assert low == pytest.approx(share - width, abs=0.006) and high == pytest.approx(share + width, abs=0.006)


def test_a_ranking_has_an_interval_and_the_seed_draws_it() -> None:
    scores, labels = rows(60)
    one, same, other = (
        intervals(resampled(Binary(), {"m": scores}, (labels,), seed, 200, nothing)["m"])["auc"]
        for seed in (1, 1, 2)
    )
    assert 0 < one[0] < one[1] <= 1 and one == same and one != other


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    scores, labels = rows(300)
    nearly = scores + 0.02 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(5))
    drawn = resampled(Binary(), {"a": scores, "b": nearly}, (labels,), 1, 300, nothing)
    low, high = gains(drawn["a"], drawn["b"])["accuracy"]
    own = intervals(drawn["a"])["accuracy"]
    assert high - low < 0.5 * (own[1] - own[0])
    assert gains(drawn["a"], drawn["a"])["accuracy"] == (0.0, 0.0)


def test_a_figure_that_is_mostly_undefined_has_none() -> None:
    assert interval([1.0, 2.0], 5) is None
    assert interval([1.0] * 3, 5) == (1.0, 1.0)
    assert intervals([{}, {}, {"auc": 1.0}]) == {}


def test_a_verdict_needs_all_of_the_interval() -> None:
    assert verdict("accuracy", (0.01, 0.2)) == "better" and verdict("loss", (0.01, 0.2)) == "worse"
    assert verdict("accuracy", (-0.2, -0.01)) == "worse" and verdict("loss", (-0.2, -0.01)) == "better"
    assert verdict("accuracy", (-0.2, 0.0)) == "same" and verdict("accuracy", (0.0, 0.0)) == "same"


def test_outputs_are_kept_row_by_row() -> None:
    module, (inputs, labels) = nn.Linear(1, 1), rows(25)
    seen = watched(module, Binary(), list(zip(inputs.split(10), labels.split(10), strict=True)))
    found = seen.rows()
    assert found is not None
    assert torch.equal(found[0], module(inputs).detach()) and torch.equal(found[1][0], labels)
    assert repeatable(Binary(), found, Binary().measure(module, (inputs, labels)))


def test_no_rows_where_there_are_too_few_or_the_task_does_something_else() -> None:
    module, (inputs, labels) = nn.Linear(1, 1), rows(FEWEST - 1)
    assert watched(module, Binary(), [(inputs, labels)]).rows() is None

    class Twice(Binary):
        def measure(self, model: nn.Module, batch: tuple[Tensor, ...]) -> MetricSums:
            model(batch[0])
            return super().measure(model, batch)

    assert watched(module, Twice(), [rows(20)]).rows() is None

    class Peeks(Binary):
        """Its figure depends on the inputs."""

        def measure(self, model: nn.Module, batch: tuple[Tensor, ...]) -> MetricSums:
            return {**super().measure(model, batch), "mean": Sums("mean", (float(batch[0].sum()), 1.0))}

    inputs, labels = rows(20)
    found = watched(module, Peeks(), [(inputs, labels)]).rows()
    assert found is not None and not repeatable(Peeks(), found, Peeks().measure(module, (inputs, labels)))


def test_large_outputs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "LARGEST", 100)
    assert watched(nn.Linear(1, 1), Binary(), [rows(50)]).rows() is None
