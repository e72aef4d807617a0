"""Columns of a table as numbers: values, levels of a category, class labels. NaN and -1 are "missing"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.core.errors import BadInput
from silos.config import Missing

Reject = Callable[[int, str, str], None]
"""Number of the value, what is wrong with it, and the same in words that hold no value."""


@dataclass(frozen=True)
class Column:
    """One column of a split, as it is stored, and how to read it."""

    name: str
    """The job's name."""
    values: pa.ChunkedArray
    missing: Sequence[Missing]
    """Values that mean "not known"; nulls and empty text always do."""
    place: Callable[[int], str]
    """Names the place of the i-th value, for a message: ``heart.csv, row 17``."""
    reject: "Reject | None" = None
    """Told of each value that is no good, which then counts as missing; None: the first one is refused."""

    def numbers(self) -> NDArray[np.float64]:
        """As numbers, missing ones as NaN; `BadInput` for a value that is no finite number."""
        values = np.array(self._as_float().to_numpy(), dtype=np.float64)
        codes = [number for code in self.missing if (number := _number(code)) is not None]
        values[np.isin(values, codes)] = np.nan
        infinite = np.abs(values) > np.finfo(np.float32).max  # what training computes with
        what = "holds an infinite number, or one beyond 3e38; list it under 'missing' in silo.yaml"
        self._refuse(np.flatnonzero(infinite), lambda row: what, "an infinite number")
        values[infinite] = np.nan
        return values

    def levels(self, names: Sequence[str | int]) -> NDArray[np.int64]:
        """Each value's position in ``names``, -1 where missing; `BadInput` for a value not among them."""
        if all(isinstance(each, int) for each in names):
            values = self.numbers()
            missing, found = np.isnan(values), _positions(values, np.array(names, dtype=np.float64))
        else:
            missing = np.array(self.text.is_null())
            positions = pc.index_in(self.text, pa.array([str(each) for each in names]))
            found = np.array(pc.fill_null(positions, -1), dtype=np.int64)

        def what(row: int) -> str:
            return f"holds {self._plain[row].as_py()!r}, which is none of: {shortened(names)}"

        unknown = np.flatnonzero((found < 0) & ~missing)
        self._refuse(unknown, what, "a value that is none of those that the job lists")
        return found

    def labels(self, num_classes: int, classes: Sequence[str | int]) -> NDArray[np.int64]:
        """Class numbers, -1 where missing: positions in ``classes``, or else the numbers themselves."""
        if classes:
            return self.levels(classes)
        if self._is_text:
            remedy = "list 'classes' in the job's task"
            self._refuse(
                _words(self.text),
                lambda row: f"holds the name {self.text[row].as_py()!r}; {remedy}",
                f"a name; {remedy}",
            )
        values = self.numbers()
        outside = (values != np.floor(values)) | (values < 0) | (values >= num_classes)
        bad = np.flatnonzero(~np.isnan(values) & outside)
        limits = f"outside the job's classes 0 to {num_classes - 1}"
        self._refuse(bad, lambda row: f"holds the label {values[row]:g}, {limits}", f"a label {limits}")
        values[bad] = np.nan
        return np.where(np.isnan(values), -1, values).astype(np.int64)

    @cached_property
    def text(self) -> pa.ChunkedArray:
        """As trimmed text; what is missing is null."""
        plain = self._plain
        if pa.types.is_boolean(plain.type):
            plain = plain.cast(pa.int8())
        text = pc.utf8_trim_whitespace(plain.cast(pa.string()))
        absent = pc.is_in(text, pa.array(["", *(str(code) for code in self.missing)], pa.string()))
        return pc.if_else(absent, pa.scalar(None, pa.string()), text)

    @cached_property
    def _plain(self) -> pa.ChunkedArray:
        """Without dictionary encoding."""
        kind = self.values.type
        return self.values.cast(kind.value_type) if pa.types.is_dictionary(kind) else self.values

    @property
    def _is_text(self) -> bool:
        return pa.types.is_string(self._plain.type) or pa.types.is_large_string(self._plain.type)

    def _as_float(self) -> pa.ChunkedArray:
        kind = self._plain.type
        if any(check(kind) for check in _NUMERIC):
            return self._plain.cast(pa.float64(), safe=False)
        if not self._is_text:
            raise self._bad(
                0, f"is of type {kind}, which is neither a number nor text", "no numbers, no text"
            )
        try:
            return self.text.cast(pa.float64())
        except pa.ArrowInvalid:
            words = _words(self.text)
        remedy = "list it under 'missing' in silo.yaml, or the column's levels in task.categories"
        self._refuse(
            words,
            lambda row: f"holds {self.text[row].as_py()!r}, not a number; {remedy}",
            f"a value that is no number; {remedy}",
        )
        is_word = np.zeros(len(self.text), bool)
        is_word[words] = True
        return pc.if_else(pa.array(is_word), pa.scalar(None, pa.string()), self.text).cast(pa.float64())

    def _refuse(self, rows: NDArray[np.int64], what: Callable[[int], str], public: str) -> None:
        """Raises `BadInput` for the first of these rows, unless somebody takes all of them."""
        for row in rows.tolist():
            if self.reject is None:
                raise self._bad(row, what(row), public)
            self.reject(row, f"column '{self.name}' {what(row)}", f"column '{self.name}': {public}")

    def _bad(self, row: int, what: str, public: str) -> BadInput:
        return BadInput(f"{self.place(row)}: column '{self.name}' {what}", f"column '{self.name}': {public}")


_NUMERIC: tuple[Callable[[pa.DataType], bool], ...] = (
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null),
)


def shortened(names: Sequence[object]) -> str:
    """The first few of these names."""
    return ", ".join(str(each) for each in names[:12]) + (", ..." if len(names) > 12 else "")


def _words(text: pa.ChunkedArray) -> NDArray[np.int64]:
    """The values that are no numbers."""
    words = []
    for value in pc.unique(text):
        try:
            value.cast(pa.float64())
        except pa.ArrowInvalid:
            words.append(value.as_py())
    return np.flatnonzero(np.array(pc.is_in(text, pa.array(words, text.type))))


def _number(code: Missing) -> float | None:
    try:
        return float(code)
    except ValueError:
        return None


def _positions(values: NDArray[np.float64], names: NDArray[np.float64]) -> NDArray[np.int64]:
    """Position of each value among the names, -1 where it is none."""
    order = np.argsort(names)
    at = np.clip(np.searchsorted(names, values, sorter=order), 0, len(names) - 1)
    return np.where(names[order[at]] == values, order[at], -1).astype(np.int64)
