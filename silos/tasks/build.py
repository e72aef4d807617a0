"""From a job's task and a silo's data set to the task that trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import BadInput, BadJob
from orchestrator.task import ImageClassification, OwnTask, Tabular, modules
from silos.config import DatasetConfig
from silos.data import TableData, open_data
from silos.image_files import ImageFolder
from silos.tasks import own
from silos.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn


def build(
    spec: Tabular | ImageClassification | OwnTask,
    config: DatasetConfig,
    silo_dir: Path,
    workers: int = 0,
    allow_code: Sequence[str] = (),
) -> Task:
    """Open the data set and build the task; `BadInput` in one line for whatever is wrong with either."""
    return build_on(spec, open_data(config, silo_dir), workers, allow_code)


def build_on(
    spec: Tabular | ImageClassification | OwnTask,
    data: TableData | ImageFolder,
    workers: int = 0,
    allow_code: Sequence[str] = (),
) -> Task:
    """As `build`, on data that is open already (its ``fingerprint`` is wanted as well)."""
    match spec:
        case Tabular():
            return _tabular(spec, data, allow_code)
        case ImageClassification():
            return _image_classification(spec, data, workers, allow_code)
        case _:
            made: Task = own.make(spec.name, allow_code, data, **spec.options)
            return made


def model_of(spec: Tabular | ImageClassification | OwnTask, input_shape: Sequence[int]) -> "nn.Module":
    """The job's architecture without any data, for exports; a user's own model is imported here.

    Raises `BadInput` for a task of the user's own: only its class knows its model.
    """
    allowed = modules(spec)
    match spec:
        case Tabular():
            from silos.tasks.tabular import tabular_model

            return tabular_model(spec, input_shape[0], tuple(allowed))
        case ImageClassification():
            from silos.tasks.image_classification import image_model

            return image_model(spec, input_shape, tuple(allowed))
        case _:
            raise BadInput(f"the model of the task '{spec.name}' cannot be built without its data")


def _tabular(spec: Tabular, data: TableData | ImageFolder, allow_code: Sequence[str]) -> Task:
    from silos.tasks.tabular import TabularTask

    if not isinstance(data, TableData):
        raise BadJob(
            f"data set '{spec.dataset}': the task 'tabular' needs tables, and this is a folder of images"
        )
    return TabularTask(spec, data, allow_code)


def _image_classification(
    spec: ImageClassification, data: TableData | ImageFolder, workers: int, allow_code: Sequence[str]
) -> Task:
    from silos.tasks.image_classification import ImageClassificationTask

    return ImageClassificationTask(spec, data, workers, allow_code)
