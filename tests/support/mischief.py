"""The heart task, with what may go wrong at a silo: numbers that are none, code that fails, slowness."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from orchestrator.task import Tabular
from silos.tasks.tabular import TabularTask
from silos.tasks.task import At, Batch
from tests.support.flamby import SPEC


class Mischief(TabularTask):
    """``nan`` and ``fails``: versions by silo. ``pause_s``: before each training batch."""

    def __init__(
        self,
        data: Any,
        nan: Mapping[str, Sequence[int]] | None = None,
        fails: Mapping[str, Sequence[int]] | None = None,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(Tabular.model_validate(SPEC), data)
        self._nan, self._fails, self._pause_s = nan or {}, fails or {}, pause_s

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        if at.version in self._fails.get(at.silo, ()):
            raise RuntimeError("a defect in the task's own code")
        for inputs, labels in super().train_batches(at, batch_size):
            time.sleep(self._pause_s)
            bad = at.version in self._nan.get(at.silo, ())
            yield torch.full_like(inputs, torch.nan) if bad else inputs, labels
