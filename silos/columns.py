"""Columns of a table as numbers: numeric values, levels of a category, class labels. NaN and -1 mean "missing"."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.core.errors import BadInput
from silos.config import Missing

Where = Callable[[int], str]
"""Names the place of the i-th value, for a message: ``heart.csv, row 17``."""


def numbers(name: str, column: pa.ChunkedArray, codes: Sequence[Missing], where: Where) -> NDArray[np.float64]:
    """A numeric column, missing values as NaN; `BadInput` for a value that is no finite number."""
    values = np.array(_as_float(name, _plain(column), codes, where).to_numpy(), dtype=np.float64)
    missing = [number for code in codes if (number := _number(code)) is not None]
    values[np.isin(values, missing)] = np.nan
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        raise BadInput(f"{where(int(infinite[0]))}: column '{name}' holds an infinite number; list it under 'missing' in silo.yaml")
    return values


def levels(
    name: str, column: pa.ChunkedArray, names: Sequence[str | int], codes: Sequence[Missing], where: Where
) -> NDArray[np.int64]:
    """The position of each value in ``names``, missing values as -1; `BadInput` for a value not among them."""
    if all(isinstance(each, int) for each in names):
        values = numbers(name, column, codes, where)
        missing = np.isnan(values)
        found = _index(values, np.array(names, dtype=np.float64))
    else:
        text = text_of(column, codes)
        missing = np.array(text.is_null())
        found = np.array(pc.fill_null(pc.index_in(text, pa.array([str(each) for each in names])), -1), dtype=np.int64)
    unknown = np.flatnonzero((found < 0) & ~missing)
    if unknown.size:
        row = int(unknown[0])
        allowed = ", ".join(str(each) for each in names[:12]) + (", ..." if len(names) > 12 else "")
        raise BadInput(f"{where(row)}: column '{name}' holds {column[row].as_py()!r}, which is none of: {allowed}")
    return found


def labels(
    name: str, column: pa.ChunkedArray, num_classes: int, classes: Sequence[str | int], codes: Sequence[Missing], where: Where
) -> NDArray[np.int64]:
    """Class numbers from 0, missing ones as -1: positions in ``classes``, or without it whole numbers as they are."""
    if classes:
        return levels(name, column, classes, codes, where)
    kind = _plain(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _whole_or_refuse(name, column, codes, where)
    values = numbers(name, column, codes, where)
    bad = np.flatnonzero(~np.isnan(values) & ((values != np.floor(values)) | (values < 0) | (values >= num_classes)))
    if bad.size:
        row = int(bad[0])
        raise BadInput(
            f"{where(row)}: the label {values[row]:g} in column '{name}' is out of range: the job has {num_classes} "
            f"classes, 0 to {num_classes - 1}"
        )
    return np.where(np.isnan(values), -1, values).astype(np.int64)


def _whole_or_refuse(name: str, column: pa.ChunkedArray, codes: Sequence[Missing], where: Where) -> pa.ChunkedArray:
    text = text_of(column, codes)
    row = _first_text(text)
    if row is not None:
        raise BadInput(f"{where(row)}: the label in column '{name}' is a name ({text[row].as_py()!r}); list the 'classes' in the job's task")
    return text


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary encoding."""
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def text_of(column: pa.ChunkedArray, codes: Sequence[Missing]) -> pa.ChunkedArray:
    """As trimmed text; empty text and missing codes are null."""
    plain = _plain(column)
    if pa.types.is_boolean(plain.type):
        plain = plain.cast(pa.int8())
    text = pc.utf8_trim_whitespace(plain.cast(pa.string()))
    absent = pc.is_in(text, pa.array(["", *(str(code) for code in codes)], pa.string()))
    return pc.if_else(absent, pa.scalar(None, pa.string()), text)


def _as_float(name: str, column: pa.ChunkedArray, codes: Sequence[Missing], where: Where) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.cast(pa.float64(), safe=False)
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise BadInput(f"{where(0)}: column '{name}' is of type {kind}, which is neither a number nor text")
    text = text_of(column, codes)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        row = _first_text(text) or 0
        raise BadInput(
            f"{where(row)}: column '{name}' holds {text[row].as_py()!r}, not a number; list it under 'missing' in "
            "silo.yaml, or the column's levels under task.categories in the job"
        ) from None


def _first_text(text: pa.ChunkedArray) -> int | None:
    """The first value that is no number."""
    for row, value in enumerate(text):
        try:
            value.cast(pa.float64())
        except pa.ArrowInvalid:
            return row
    return None


def _number(code: Missing) -> float | None:
    try:
        return float(code)
    except ValueError:
        return None


def _index(values: NDArray[np.float64], names: NDArray[np.float64]) -> NDArray[np.int64]:
    """Position of each value among the names, -1 where it is none."""
    order = np.argsort(names)
    at = np.clip(np.searchsorted(names, values, sorter=order), 0, len(names) - 1)
    position = order[at]
    return np.where(names[position] == values, position, -1).astype(np.int64)
