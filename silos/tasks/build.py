"""From a job's task and a silo's data set to the task that trains."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.errors import BadInput
from orchestrator.task import ImageClassification, OwnTask, Tabular
from silos.config import DatasetConfig
from silos.data import TableData, open_data
from silos.image_files import ImageFolder
from silos.tasks import own
from silos.tasks.task import Task


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


def _tabular(spec: Tabular, data: TableData | ImageFolder, allow_code: Sequence[str]) -> Task:
    from silos.tasks.tabular import TabularTask

    if not isinstance(data, TableData):
        raise BadInput(
            f"data set '{spec.dataset}': the task 'tabular' needs tables, and this is a folder of images"
        )
    return TabularTask(spec, data, allow_code)


def _image_classification(
    spec: ImageClassification, data: TableData | ImageFolder, workers: int, allow_code: Sequence[str]
) -> Task:
    from silos.tasks.image_classification import ImageClassificationTask

    return ImageClassificationTask(spec, data, workers, allow_code)
