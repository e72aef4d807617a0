"""A silo's data set: tables and images by `pyarrow.dataset`, or a folder of images per class.

Tables are memory-mapped and read column by column; encoded images are read block by block (a Parquet row
group, or an Arrow file). A user's own task is given the opened `TableData` or `ImageFolder`.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, fs

from orchestrator.core.errors import BadInput
from silos.columns import Column, Reject, shortened
from silos.config import ColumnSplit, DatasetConfig
from silos.files import (
    TABLES,
    UNREADABLE,
    Place,
    fingerprint,
    is_image_folder,
    nearest,
    places,
    reason,
    table_files,
)
from silos.image_files import ImageFolder, TableImages
from silos.lean_arrow import ds
from silos.splits import Tags, column_tags, share_tags, wants_no_test
from silos.tasks.task import Split

if TYPE_CHECKING:
    from silos.key_source import Encryption
    from silos.parquet_keys import ParquetKeys


class Block(NamedTuple):
    """Rows that are read together."""

    fragment: ds.Fragment
    in_file: int
    """Number in its file of the first row."""
    num_rows: int


def open_data(config: DatasetConfig, silo_dir: Path) -> "TableData | ImageFolder":
    """Open what ``silo.yaml`` describes; relative paths start at ``silo_dir``. `BadInput` if that fails."""
    found = places(config, silo_dir)
    if is_image_folder(config, found):
        if config.encryption is not None:
            raise BadInput(
                f"{found[0].path}: 'encryption' is for Parquet files, and this is a folder of images"
            )
        return ImageFolder(config, found)
    keys = None if config.encryption is None else _keys(config.encryption, silo_dir)
    return TableData(config, table_files(found), keys)


def _keys(encryption: "Encryption", silo_dir: Path) -> "ParquetKeys":
    from silos.parquet_keys import ParquetKeys

    return ParquetKeys(encryption.key.key(silo_dir))


class TableData:
    """Rows in the order of the files (alphabetical), numbered from 0. Columns go by the job's names."""

    def __init__(
        self, config: DatasetConfig, files: Sequence[Place], keys: "ParquetKeys | None" = None
    ) -> None:
        """``keys``: of files that are encrypted, and must be."""
        self.config = config
        self.files = tuple(files)
        self._dataset, self._known = _open([path for path, _ in self.files], keys)
        self._left_out: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, by the job's names."""
        names = {in_file: name for name, in_file in self.config.columns.items()}
        return tuple(names.get(each, each) for each in self._dataset.schema.names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the files and the rules for reading them."""
        return fingerprint(self.files, self.config)

    def without(self, rows: Iterable[int]) -> "TableData":
        """The same, as if these rows (numbers) belonged to no split."""
        fewer = copy(self)
        fewer._left_out = tuple(rows)
        fewer.__dict__.pop("_rows", None)
        return fewer

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Numbers of a split's rows, rising; `BadInput` when there are none."""
        rows = self._rows[split]
        if not len(rows) and not (split == "test" and wants_no_test(self.config)):
            why, remedy = self._why_none(split), "check 'splits' in silo.yaml"
            raise BadInput(
                f"{self._first_file}: no {split} rows{why}; {remedy}", f"no {split} rows; {remedy}"
            )
        return rows

    def read(self, columns: Sequence[str], split: Split, reject: Reject | None = None) -> dict[str, Column]:
        """These columns of a split, in the order of `rows`. CSV gives text: `Column.numbers` converts. ``reject``: as
        in `Column`."""
        rows = self.rows(split)
        table = self._table({name: self._in_file(name) for name in columns})
        if len(rows) < table.num_rows:
            table = table.take(pa.array(rows))
        return {
            name: Column(name, table[name], self.config.codes(name), self._places(split), reject)
            for name in columns
        }

    def labels(self, split: Split, num_classes: int, classes: Sequence[str | int] = ()) -> NDArray[np.int64]:
        """Class numbers of a split's images (column ``label``); `BadInput` where one is missing."""
        numbers = self.read(["label"], split)["label"].labels(num_classes, classes or self.config.classes)
        if (numbers < 0).any():
            place = self._places(split)(int(np.argmin(numbers)))
            raise BadInput(f"{place}: no label; remove the row", "a row without a label")
        return numbers

    def groups(self, column: str) -> NDArray[np.int64]:
        """For each training row the number, from 0, of its value in a column; `BadInput` where one is missing."""
        values = self.read([column], "train")[column].text
        empty = np.flatnonzero(np.array(values.is_null()))
        if len(empty):
            what = f"column '{column}' is empty; every training row must name its patient"
            raise BadInput(f"{self._places('train')(int(empty[0]))}: {what}", what)
        return np.unique(np.array(values.to_pylist()), return_inverse=True)[1].astype(np.int64)

    def images(self, split: Split) -> TableImages:
        """The encoded images of a split (column ``image``: bytes, or a struct with ``bytes``)."""
        return TableImages(self, self._in_file("image"), self.rows(split))

    def place(self, row: int) -> str:
        """File and row (from 1) of a row number, for people."""
        number = self.block_of(row)
        block = self.blocks[number]
        return f"{block.fragment.path}, row {row - self.starts[number] + block.in_file + 1}"

    def block_of(self, row: int) -> int:
        """The block that holds a row."""
        return bisect_right(self.starts, row) - 1

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What is read together, in row order."""
        return tuple(block for fragment in self._dataset.get_fragments() for block in _blocks(fragment))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Row number at which each block begins."""
        return tuple(accumulate((block.num_rows for block in self.blocks[:-1]), initial=0))

    def fragments(self) -> dict[str, list[ds.Fragment]]:
        """By file, as `pyarrow.dataset` has them."""
        found: dict[str, list[ds.Fragment]] = {}
        for fragment in self._dataset.get_fragments():
            found.setdefault(fragment.path, []).append(fragment)
        return found

    @property
    def is_text(self) -> bool:
        """Whether every value is text in the files (CSV)."""
        return TABLES[self._first_file.suffix.lower()] == "csv"

    @property
    def schema(self) -> pa.Schema:
        """Columns and types as in the files."""
        return self._dataset.schema

    @property
    def _first_file(self) -> Path:
        return self.files[0].path

    def _places(self, split: Split) -> Callable[[int], str]:
        return lambda i: self.place(int(self.rows(split)[i]))

    def _in_file(self, column: str) -> str:
        """The name in the files of a column of the job, once every file is known to have it."""
        name, public = self.config.in_file(column), f"no column '{column}'"
        self._check_there(name, public)
        return name

    def _check_there(self, name: str, public: str) -> None:
        for path, known in self._known.items():
            if name not in known:
                hint = "a column of another name is given under 'columns' in silo.yaml"
                raise BadInput(f"{path}: no column '{name}'{nearest(name, known)} ({hint})", public)

    def _table(self, columns: dict[str, str]) -> pa.Table:
        try:
            return self._dataset.to_table(
                columns={name: ds.field(in_file) for name, in_file in columns.items()}
            )
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{self._first_file}: cannot be read: {reason(error)}", UNREADABLE) from None

    @cached_property
    def _rows(self) -> dict[Split, NDArray[np.int64]]:
        tags = self._tags()
        tags[list(self._left_out)] = ""
        return {"train": np.flatnonzero(tags == "train"), "test": np.flatnonzero(tags == "test")}

    def _tags(self) -> Tags:
        splits = self.config.splits
        if self.files[0].split:
            split_of = {str(path): split for path, split in self.files}
            tags = [split_of[block.fragment.path] for block in self.blocks]
            return np.repeat(tags, [block.num_rows for block in self.blocks])
        if isinstance(splits, ColumnSplit):
            return column_tags(self._split_column(splits), splits)
        num_rows = sum(block.num_rows for block in self.blocks)
        return share_tags(np.arange(num_rows, dtype=np.uint64), splits)

    def _why_none(self, split: Split) -> str:
        splits = self.config.splits
        if self.files[0].split or not isinstance(splits, ColumnSplit):
            return f" among {sum(block.num_rows for block in self.blocks)}"
        found = shortened(self._split_column(splits).values.unique().to_pylist())
        return f": no row has '{getattr(splits, split)}' in column '{splits.column}' (it holds: {found})"

    def _split_column(self, splits: ColumnSplit) -> Column:
        self._check_there(splits.column, "no column that says which rows train and which test")
        values = self._table({splits.column: splits.column})[splits.column]
        return Column(splits.column, values, (), self.place)


def _open(files: Sequence[Path], keys: "ParquetKeys | None") -> tuple[ds.Dataset, dict[str, list[str]]]:
    """One dataset over all files, differing widths (int, float) widened; and each file's columns."""
    form, names = TABLES[files[0].suffix.lower()], [str(file) for file in files]
    mapped = fs.LocalFileSystem(use_mmap=True)
    try:
        read_as = _format(form, files, keys)
        found = ds.dataset(names, format=read_as, filesystem=mapped)
        schemas = {fragment.path: fragment.physical_schema for fragment in found.get_fragments()}
        schema = (_as_text if form == "csv" else _widened)(list(schemas.values()))
        dataset = ds.dataset(names, schema=schema, format=read_as, filesystem=mapped)
        return dataset, {path: each.names for path, each in schemas.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"{_broken(files, error)}: cannot be read as {form}: {reason(error)}"
        raise BadInput(what, UNREADABLE) from None


def _format(form: str, files: Sequence[Path], keys: "ParquetKeys | None") -> Any:
    """As `ds.dataset` takes it. Raises `BadInput` for a file that is not encrypted, and should be."""
    if keys is None:
        return _csv(files[0]) if form == "csv" else form
    if form != "parquet":
        raise BadInput(
            f"{files[0]}: 'encryption' is for Parquet files; 'siloray silo encrypt' makes an encrypted copy"
        )
    for file in files:
        keys.check(file)
    return keys.reading()


def _csv(file: Path) -> ds.CsvFileFormat:
    """CSV with the delimiter that the first line holds most of."""
    with file.open(encoding="utf-8-sig") as lines:
        header = lines.readline()
    return ds.CsvFileFormat(csv.ParseOptions(delimiter=max(",;\t|", key=header.count)))


def _as_text(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """CSV as text throughout: guessed types differ from file to file, and hide the value that is wrong."""
    return pa.schema(
        [(name, pa.string()) for name in dict.fromkeys(n for each in schemas for n in each.names)]
    )


def _widened(schemas: Sequence[pa.Schema]) -> pa.Schema:
    return pa.unify_schemas([each.remove_metadata() for each in schemas], promote_options="permissive")


def _broken(files: Sequence[Path], error: Exception) -> Path:
    return next((file for file in files if str(file) in str(error)), files[0])


def _blocks(fragment: ds.Fragment) -> Iterator[Block]:
    """A Parquet file's row groups; another file as a whole."""
    if not isinstance(fragment, ds.ParquetFileFragment):
        yield Block(fragment, 0, fragment.count_rows())
        return
    start = 0
    for piece in fragment.split_by_row_group():
        num_rows = piece.row_groups[0].num_rows  # count_rows() would be the whole file's
        yield Block(piece, start, num_rows)
        start += num_rows
