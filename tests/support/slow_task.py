"""The heart task with a pause per batch, so that a test can interfere while a silo trains."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.task import Tabular
from silos.tasks.tabular import TabularTask
from silos.tasks.task import At, Batch
from tests.support.flamby import SPEC


class SlowTask(TabularTask):
    """``pause_s`` seconds before each training batch."""

    def __init__(self, data: Any, pause_s: float = 0.05) -> None:
        super().__init__(Tabular.model_validate(SPEC), data)
        self._pause_s = pause_s

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        for batch in super().train_batches(at, batch_size):
            time.sleep(self._pause_s)
            yield batch


class CountedTask(SlowTask):
    """Pauses at each batch trained on, and notes it in a file: a silo that goes on passes over the others at once."""

    def __init__(self, data: Any, pause_s: float = 0.05, counted: str = "") -> None:
        super().__init__(data, 0.0)
        self._each_s, self._counted = pause_s, Path(counted)

    def loss(self, model: Any, batch: Batch) -> Any:
        time.sleep(self._each_s)
        with self._counted.open("a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        return super().loss(model, batch)
