"""A task whose training batches come at a given pace: silos of unequal speed on one machine."""

import time
from collections.abc import Iterator
from typing import Any

from orchestrator.task import ImageClassification
from silos.tasks.image_classification import ImageClassificationTask
from silos.tasks.task import At, Batch


class PacedImages(ImageClassificationTask):
    """Waits ``pace_s`` seconds before each training batch; at the silo ``slow`` ``times`` as long. Sleeping takes no
    processor from the others, so that silos on two cores are as fast as on machines of their own."""

    def __init__(self, data: Any, spec: dict[str, Any], slow: str, times: float, pace_s: float) -> None:
        super().__init__(ImageClassification.model_validate(spec), data)
        self._slow, self._times, self._pace_s = slow, times, pace_s

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        pause = self._pace_s * (self._times if at.silo == self._slow else 1.0)
        for batch in super().train_batches(at, batch_size):
            time.sleep(pause)
            yield batch
