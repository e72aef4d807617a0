"""An encrypted copy of a table: Parquet with modular encryption, compared with its source before it has its name."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.at_rest import Key
from orchestrator.core.errors import BadInput
from silos.config import DatasetConfig
from silos.data import TableData
from silos.files import TABLES, Place, reason
from silos.parquet_keys import ParquetKeys
from silos.row_hashes import row_hashes

ROWS_AT_ONCE = 10_000
"""Of a source that is not cut into row groups."""
_ALL = DatasetConfig(path="")


def encrypted_copy(source: Path, target: Path, key: Key) -> int:
    """Writes ``target`` (``.parquet``, new) with the rows of a CSV, Arrow or Parquet file; how many there are. What is
    not equal to its source when it is read again does not stay. Raises `BadInput`."""
    if source.suffix.lower() not in TABLES:
        raise BadInput(f"{source}: unknown ending; a table ends in one of {', '.join(TABLES)}")
    if target.suffix.lower() != ".parquet":
        raise BadInput(f"{target}: an encrypted table is Parquet; give a name that ends in .parquet")
    if target.exists():
        raise BadInput(f"{target}: there is such a file already; remove it, or give another name")
    unfinished = target.with_name(f".{target.stem}.{os.getpid()}.parquet")
    try:
        num_rows = _write(source, unfinished, ParquetKeys(key))
        _compare(source, unfinished, key)
        unfinished.rename(target)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{target}: {getattr(error, 'strerror', None) or reason(error)}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return num_rows


def _write(source: Path, target: Path, keys: ParquetKeys) -> int:
    data, num_rows = TableData(_ALL, [Place(source, "")]), 0
    target.touch(mode=0o600)
    with pq.ParquetWriter(
        target, data.schema, compression="zstd", encryption_properties=keys.writing()
    ) as writer:
        for batch in _batches(data):
            if batch.num_rows:
                writer.write_batch(batch, row_group_size=batch.num_rows)
            num_rows += batch.num_rows
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return num_rows


def _compare(source: Path, target: Path, key: Key) -> None:
    keys = ParquetKeys(key)
    keys.check(target)
    plain, encrypted = TableData(_ALL, [Place(source, "")]), TableData(_ALL, [Place(target, "")], keys)
    same = plain.schema.equals(encrypted.schema) and _digests(plain) == _digests(encrypted)
    if not same:
        raise BadInput(f"{source}: its encrypted copy is not equal to it, and was removed")


def _digests(data: TableData) -> bytes:
    """Of all rows in their order."""
    return b"".join(row_hashes(batch, b"") for batch in _batches(data))


def _batches(data: TableData) -> Iterator[Any]:
    for block in data.blocks:
        yield from block.fragment.to_batches(schema=data.schema, batch_size=ROWS_AT_ONCE)
