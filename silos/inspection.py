"""Looks at every sample that a job would use, and sets aside those that are no good.

Whatever the task would refuse at the first sight of it is found here for all rows at once: the task then gets the rest.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from orchestrator.contract import ColumnRule, Contract, Facts, ImageRule
from orchestrator.core.errors import BadInput, BadJob
from orchestrator.task import ImageClassification, OwnTask, Tabular, Task
from silos.columns import Column, Reject
from silos.data import TableData
from silos.image_files import EncodedImages, ImageFolder, decode
from silos.tasks.task import Split

SPLITS: tuple[Split, ...] = ("train", "test")
_MANY = 10_000
"""Images decoded between two looks at what came of them."""


class Finding(NamedTuple):
    """A sample that is no good. It stays at the silo."""

    split: str
    row: int
    """Number in the data set."""
    place: str
    reason: str
    """Without a value."""
    detail: str


@dataclass
class Inspected:
    """What came of it."""

    findings: list[Finding] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    def as_json(self) -> dict[str, Any]:
        return asdict(self.facts)


def inspect(task: Task, data: TableData | ImageFolder, contract: Contract, workers: int = 0) -> Inspected:
    """Judge every sample of both splits; raises `BadInput` for what concerns the data set as a whole.

    ``workers``: threads that decode images.
    """
    found = Inspected()
    for split in SPLITS:
        look = _Look(task, data, contract, split, max(1, workers))
        found.findings += look.findings()
        found.facts.rows[split], found.facts.quarantined[split] = len(look.rows), len(look.bad)
        if split == "train":
            found.facts.labels.update(look.class_counts)
            found.facts.missing.update(look.missing)
    found.facts.reasons.update(Counter(each.reason for each in found.findings))
    return found


class _Look:
    """At one split."""

    def __init__(
        self, task: Task, data: TableData | ImageFolder, contract: Contract, split: Split, workers: int
    ) -> None:
        self._task, self._data, self._contract, self._split = task, data, contract, split
        self._workers = workers
        self.rows: NDArray[np.int64] = data.rows(split)
        self.bad: dict[int, tuple[str, str]] = {}
        """By number in the split: the reason and, with the value, what is wrong."""
        self.missing: dict[str, float] = {}
        self.class_counts: dict[str, int] = {}

    def findings(self) -> list[Finding]:
        if isinstance(self._data, TableData):
            self._columns(self._data)
        self._labels()
        if self._has_images:
            self._images()
        places = {i: self._data.place(int(self.rows[i])) for i in self.bad}
        return [Finding(self._split, int(self.rows[i]), places[i], *self.bad[i]) for i in sorted(self.bad)]

    @property
    def _reject(self) -> Reject:
        def reject(i: int, what: str, public: str) -> None:
            self.bad.setdefault(i, (public.partition(";")[0], what))

        return reject

    # tables

    def _columns(self, data: TableData) -> None:
        task, rules = self._task, self._contract.columns
        features = task.features if isinstance(task, Tabular) else ()
        for name in dict.fromkeys((*features, *rules)):
            column = data.read([name], self._split, self._reject)[name]
            if isinstance(task, Tabular) and name in task.categories:
                absent = column.levels(task.categories[name]) < 0
            elif name in features:
                absent = np.isnan(column.numbers())
            else:
                absent = (
                    np.array(column.text.is_null()) if _is_plain(column) else np.zeros(len(self.rows), bool)
                )
            self._rule(column, rules.get(name, ColumnRule()))
            absent[list(self.bad)] = False
            self.missing[name] = float(absent.mean()) if len(absent) else 0.0

    def _rule(self, column: Column, rule: ColumnRule) -> None:
        if rule.values:
            column.levels(rule.values)
        if not rule.is_number:
            return
        values = column.numbers()
        checks: list[tuple[NDArray[np.bool_], str]] = []
        if rule.type == "integer":
            checks.append((values != np.floor(values), "no whole number"))
        if rule.min is not None:
            checks.append((values < rule.min, f"below {rule.min:g}"))
        if rule.max is not None:
            checks.append((values > rule.max, f"above {rule.max:g}"))
        for outside, what in checks:
            for i in np.flatnonzero(outside & ~np.isnan(values)).tolist():
                told = f"column '{column.name}'"
                self._reject(i, f"{told} holds {values[i]:g}, {what}", f"{told}: a value {what}")

    # labels

    def _labels(self) -> None:
        """Of both kinds of data: a number for each row, -1 for none."""
        task = self._task
        if isinstance(task, OwnTask) or not len(self.rows):
            return
        names = task.classes or self._data.config.classes or self._folders
        numbers = self._numbers(task, names)
        allowed = _allowed(self._contract, task.num_classes, names)
        for i in np.flatnonzero(~np.isin(numbers, [*allowed.values(), -1])).tolist():
            self._reject(i, f"label number {numbers[i]}", "a label outside the contract's set")
        good = np.array([number >= 0 and i not in self.bad for i, number in enumerate(numbers)])
        counted = (
            np.bincount(numbers[good], minlength=task.num_classes)
            if good.any()
            else np.zeros(task.num_classes)
        )
        self.class_counts = {name: int(counted[number]) for name, number in allowed.items()}

    @property
    def _folders(self) -> tuple[str | int, ...]:
        """Classes of a folder of images, where the job names none."""
        data = self._data
        return data.classes if isinstance(data, ImageFolder) else ()

    def _numbers(self, task: Tabular | ImageClassification, names: Sequence[str | int]) -> NDArray[np.int64]:
        data = self._data
        if isinstance(data, ImageFolder):
            return self._folder_numbers(data, task.num_classes, names)
        target = task.target if isinstance(task, Tabular) else "label"
        numbers = data.read([target], self._split, self._reject)[target].labels(task.num_classes, names)
        if not isinstance(task, Tabular):
            for i in np.flatnonzero(numbers < 0).tolist():
                self._reject(i, "no label", "no label")
        return numbers

    def _folder_numbers(
        self, data: ImageFolder, num_classes: int, names: Sequence[str | int]
    ) -> NDArray[np.int64]:
        number = {str(name): index for index, name in enumerate(names)}
        if len(number) != num_classes:
            data.labels(self._split, num_classes, names)  # says what is wrong with the folders
        folders = data.class_names(self._split)
        for i, folder in enumerate(folders):
            if folder not in number:
                self._reject(i, f"the folder '{folder}' is no class of the job", "a folder that is no class")
        return np.array([number.get(folder, -1) for folder in folders], np.int64)

    # images

    @property
    def _has_images(self) -> bool:
        return isinstance(self._data, ImageFolder) or isinstance(self._task, ImageClassification)

    def _images(self) -> None:
        images, sizes = self._data.images(self._split), Counter[tuple[int, int]]()
        looked: dict[int, tuple[int, int]] = {}
        judge = self._judge(images)
        with ThreadPoolExecutor(self._workers) as pool:
            for start in range(0, len(images), _MANY):
                numbers = range(start, min(start + _MANY, len(images)))
                for i, size in zip(numbers, pool.map(judge, numbers), strict=True):
                    if isinstance(size, BadInput):
                        self._reject(i, str(size), size.public)
                    elif i not in self.bad:
                        looked[i] = size
                        sizes[size] += 1
        if _wants_one_size(self._task) and sizes:
            self._only(sizes.most_common(1)[0][0], looked)

    def _judge(self, images: EncodedImages) -> Callable[[int], "tuple[int, int] | BadInput"]:
        task, rule = self._task, self._contract.images or ImageRule()
        channels = task.channels if isinstance(task, ImageClassification) else 3

        def judge(i: int) -> tuple[int, int] | BadInput:
            try:
                _, height, width = decode(images, i, channels, None).shape
                if rule.modes or rule.min_size or rule.max_size:
                    _check_image(images.read(i), rule)
                return height, width
            except BadInput as error:
                return error

        return judge

    def _only(self, usual: tuple[int, int], looked: dict[int, tuple[int, int]]) -> None:
        """Images of another size than most have, where the job does not resize them."""
        for i, size in looked.items():
            if size != usual:
                what = f"the image has {size[0]}x{size[1]} pixels, most have {usual[0]}x{usual[1]}"
                self._reject(i, f"{what}; give task.size in the job", "an image of another size than most")


def _wants_one_size(task: Task) -> bool:
    return isinstance(task, ImageClassification) and task.size is None


def _is_plain(column: Column) -> bool:
    """Whether its values can be looked at as text."""
    try:
        return len(column.text) >= 0
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # images and other nested values
        return False


def _check_image(data: bytes, rule: ImageRule) -> None:
    with Image.open(BytesIO(data)) as image:
        mode, height, width = image.mode, image.height, image.width
    if rule.modes and mode not in rule.modes:
        what = f"mode {mode}, not one of {', '.join(rule.modes)}"
        raise BadInput(what, "an image of another mode than the contract's")
    least, most = rule.min_size or (0, 0), rule.max_size or (height, width)
    if height < least[0] or width < least[1] or height > most[0] or width > most[1]:
        raise BadInput(f"{height}x{width} pixels", "an image of a size outside the contract's")


def _allowed(contract: Contract, num_classes: int, names: Sequence[str | int]) -> dict[str, int]:
    """Labels that may occur, and their numbers."""
    known = {str(name): number for number, name in enumerate(names or range(num_classes))}
    wanted = [str(each) for each in contract.labels] or list(known)
    strangers = [each for each in wanted if each not in known]
    if strangers:
        raise BadJob(
            f"contract.labels: '{strangers[0]}' is no class of the task; there are: {', '.join(known)}"
        )
    return {name: known[name] for name in wanted}
