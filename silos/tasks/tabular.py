"""Numbers and categories in columns: logistic regression and multi-layer perceptrons."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import BadInput
from orchestrator.core.metrics import AUC_BINS, MetricSums, Sums
from orchestrator.task import Logistic, Mlp, Tabular
from silos.columns import Column
from silos.data import TableData
from silos.tasks import own
from silos.tasks.layers import mlp
from silos.tasks.order import shuffled
from silos.tasks.task import At, Batch, Split

Matrix = NDArray[np.float64]
_SPLITS: tuple[Split, ...] = ("train", "test")
_LOGIT_LIMIT = 16.0
"""Scores beyond count as this in the histogram for the area under the curve."""


class Rows(NamedTuple):
    """Inputs and labels of a split."""

    inputs: Matrix
    """``[rows, inputs]``, NaN where missing."""
    labels: NDArray[np.int64]
    """-1 where missing."""


class TabularTask:
    """The silo's rows as two tensors per split.

    Inputs are the numeric features in the job's order, then for each categorical feature one column per level
    but the first. Rows without a label are left out; rows with a missing feature as ``missing_rows`` says.
    """

    def __init__(self, spec: Tabular, data: TableData, allow_code: Sequence[str] = ()) -> None:
        self._spec, self._data, self._allow_code = spec, data, tuple(allow_code)
        self.inputs = input_names(spec)
        """Names of the model's inputs."""
        self._kept: dict[Split, NDArray[np.bool_]] = {}
        self.num_dropped: dict[Split, int] = {}
        """Rows left out of each split because something in them is missing."""
        self._tensors = self._prepared({split: self._read(split) for split in _SPLITS})

    def model(self) -> nn.Module:
        """A new model; a user's own is tried on two rows."""
        return self._tried(self._new_model())

    def num_examples(self, split: Split) -> int:
        return len(self._tensors[split][1])

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        inputs, labels = self._tensors["train"]
        for rows in shuffled(len(labels), at, batch_size):
            yield inputs[rows], labels[rows]

    def train_rows(self, rows: Sequence[Tensor], seed: int) -> Iterator[Batch]:
        inputs, labels = self._tensors["train"]
        return ((inputs[each], labels[each]) for each in rows)

    def train_groups(self, column: str) -> NDArray[np.int64]:
        return self._data.groups(column)[self._kept["train"]]

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        inputs, labels = self._tensors["test"]
        if len(labels):
            yield from zip(inputs.split(batch_size), labels.split(batch_size), strict=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._losses(model(batch[0]), batch[1], "mean")

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        """``loss`` and ``accuracy``, and for two classes ``auc``."""
        logits, labels = model(batch[0]).float(), batch[1]
        count = float(len(labels))
        loss = self._losses(logits, labels, "sum").item()
        if self._spec.num_classes > 2:
            right = (logits.argmax(dim=1) == labels).sum().item()
            return {"loss": Sums("mean", (loss, count)), "accuracy": Sums("mean", (float(right), count))}
        scores = logits.reshape(-1)
        right = ((scores > 0) == (labels > 0.5)).sum().item()
        means = {"loss": Sums("mean", (loss, count)), "accuracy": Sums("mean", (float(right), count))}
        return {**means, "auc": score_histogram(scores, labels)}

    def _losses(self, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        if self._spec.num_classes == 2:
            return functional.binary_cross_entropy_with_logits(
                logits.reshape(-1), labels, reduction=reduction
            )
        return functional.cross_entropy(logits, labels, reduction=reduction)

    def _new_model(self) -> nn.Module:
        return tabular_model(self._spec, len(self.inputs), self._allow_code)

    def _tried(self, model: nn.Module) -> nn.Module:
        spec = self._spec
        if isinstance(spec.model, Logistic | Mlp):
            return model
        wanted = (2, 1) if spec.num_classes == 2 else (2, spec.num_classes)
        return own.tried(spec.model.name, model, self._tensors["train"][0][:1].repeat(2, 1), wanted)

    def _read(self, split: Split) -> Rows:
        spec = self._spec
        columns = self._data.read([*spec.features, spec.target], split)
        numeric = [columns[name].numbers()[:, None] for name in spec.features if name not in spec.categories]
        indicators = [
            _one_hot(columns[name], spec.categories[name])
            for name in spec.features
            if name in spec.categories
        ]
        labels = columns[spec.target].labels(spec.num_classes, spec.classes or self._data.config.classes)
        return Rows(np.concatenate(numeric + indicators, axis=1), labels)

    def _prepared(self, read: dict[Split, Rows]) -> dict[Split, tuple[Tensor, Tensor]]:
        mean = self._means(read["train"].inputs) if self._data.config.missing_rows == "mean" else None
        complete = {split: self._complete(split, rows, mean) for split, rows in read.items()}
        spec = self._spec
        centre, scale = (
            _standard(complete["train"].inputs) if spec.scales_by_rows else _public(spec, self.inputs)
        )
        kind = torch.float32 if spec.num_classes == 2 else torch.int64
        return {
            split: (
                torch.from_numpy(((rows.inputs - centre) / scale).astype(np.float32)),
                torch.from_numpy(rows.labels).to(kind),
            )
            for split, rows in complete.items()
        }

    def _complete(self, split: Split, rows: Rows, mean: Matrix | None) -> Rows:
        """What is missing filled with ``mean`` if given; rows still incomplete left out, and counted."""
        inputs = rows.inputs if mean is None else np.where(np.isnan(rows.inputs), mean, rows.inputs)
        keep = (rows.labels >= 0) & ~np.isnan(inputs).any(axis=1)
        self._kept[split], self.num_dropped[split] = keep, int((~keep).sum())
        if split == "train" and not keep.any():
            remedy = "use 'missing_rows: mean' in silo.yaml or fewer features"
            raise BadInput(self._none_complete(rows, remedy), f"no training row is complete; {remedy}")
        return Rows(inputs[keep], rows.labels[keep])

    def _means(self, inputs: Matrix) -> Matrix:
        known = ~np.isnan(inputs)
        empty = np.flatnonzero(~known.any(axis=0))
        if empty.size:
            name, file = self.inputs[int(empty[0])], self._data.files[0].path
            what = f"'{name}' has no value in any training row; leave it out of task.features"
            raise BadInput(f"{file}: {what}", what)
        return np.where(known, inputs, 0.0).sum(axis=0) / known.sum(axis=0)

    def _none_complete(self, rows: Rows, remedy: str) -> str:
        missing = [*np.isnan(rows.inputs).sum(axis=0), (rows.labels < 0).sum()]
        worst = int(np.argmax(missing))
        name = (*self.inputs, self._spec.target)[worst]
        return (
            f"{self._data.files[0].path}: no training row is complete; '{name}' is missing in "
            f"{missing[worst]} of {len(rows.labels)}; {remedy}"
        )


def input_names(spec: Tabular) -> tuple[str, ...]:
    """What each input of the model is: ``age``, ..., ``cp=2``, ``cp=3``, ..."""
    numeric = [name for name in spec.features if name not in spec.categories]
    categorical = [name for name in spec.features if name in spec.categories]
    return (*numeric, *(f"{name}={level}" for name in categorical for level in spec.categories[name][1:]))


def tabular_model(spec: Tabular, num_inputs: int, allow_code: Sequence[str]) -> nn.Module:
    """A new model; one output for two classes."""
    num_outputs = 1 if spec.num_classes == 2 else spec.num_classes
    match spec.model:
        case Logistic():
            return nn.Linear(num_inputs, num_outputs)
        case Mlp():
            return mlp(num_inputs, spec.model.hidden, num_outputs)
        case _:
            made: nn.Module = own.make(spec.model.name, allow_code, **spec.model.options)
            return made


def score_histogram(scores: Tensor, labels: Tensor) -> Sums:
    """Counts of negatives, then of positives, in `AUC_BINS` equal bins of the logit."""
    span = torch.nan_to_num(scores).clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT) + _LOGIT_LIMIT
    bins = (span / (2 * _LOGIT_LIMIT) * AUC_BINS).long().clamp(max=AUC_BINS - 1)
    counts = torch.bincount(bins + AUC_BINS * (labels > 0.5), minlength=2 * AUC_BINS)
    return Sums("auc", tuple(counts.double().tolist()))


def _one_hot(column: Column, names: Sequence[str | int]) -> Matrix:
    """One column for each level but the first; NaN in all where the value is missing."""
    found = column.levels(names)
    indicators = (found[:, None] == np.arange(1, len(names))).astype(np.float64)
    indicators[found < 0] = np.nan
    return indicators


def _public(spec: Tabular, inputs: Sequence[str]) -> tuple[Matrix, Matrix]:
    """Centre and scale of each input that the job gives."""
    centre, scale = zip(*map(spec.public_scale, inputs), strict=True)
    return np.array(centre), np.array(scale)


def _standard(inputs: Matrix) -> tuple[Matrix, Matrix]:
    """Mean and unbiased deviation + 1e-9 of each input; a constant one is centred and not scaled."""
    deviation = inputs.std(axis=0, ddof=1) if len(inputs) > 1 else np.zeros(inputs.shape[1])
    mean = inputs.mean(axis=0)
    varies = deviation > 1e-12 * np.maximum(1.0, np.abs(mean))
    return mean, np.where(varies, deviation + 1e-9, 1.0)
