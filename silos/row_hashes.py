"""One keyed hash for each row of a table: rows can be told apart and found again, and nobody without the secret can
try out whether a row that he guesses is among them."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HASH_BYTES = 16


def row_hashes(batch: pa.RecordBatch | pa.Table, secret: bytes) -> bytes:
    """`HASH_BYTES` for each row, one after the other: BLAKE2b of all its values with their lengths."""
    rows = _joined([_text(column) for column in batch.columns], batch.num_rows)
    keyed = hashlib.blake2b(key=secret, digest_size=HASH_BYTES)
    return b"".join(_hashed(keyed, each) for each in _bytes(rows))


def content_hash(chunks: Iterator[bytes], secret: bytes) -> bytes:
    """The same of a file."""
    digest = hashlib.blake2b(key=secret, digest_size=HASH_BYTES)
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def _hashed(keyed: "hashlib.blake2b", row: memoryview) -> bytes:
    digest = keyed.copy()
    digest.update(row)
    return digest.digest()


def _bytes(rows: pa.Array) -> Iterator[memoryview]:
    """Of each value of a large binary array without nulls."""
    if not len(rows):
        return
    _, offsets, data = rows.buffers()
    ends = np.frombuffer(offsets, np.int64)[rows.offset : rows.offset + len(rows) + 1]
    view = memoryview(data) if data is not None else memoryview(b"")
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield view[begin:end]


def _joined(columns: Sequence[pa.Array], num_rows: int) -> pa.Array:
    """``3:abc`` for each value, ``-`` for one that is missing, so that values cannot run into one another."""
    if not columns:
        return pa.array([b""] * num_rows, pa.large_binary())
    pieces = []
    for column in columns:
        length = pc.binary_length(column).cast(pa.string()).cast(pa.large_binary())
        piece = pc.binary_join_element_wise(length, column, pa.scalar(b":", pa.large_binary()))
        pieces.append(pc.fill_null(piece, pa.scalar(b"-", pa.large_binary())))
    return pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.large_binary()))


def _text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """As large binary; nulls stay."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _text(array.cast(kind.value_type))
    if pa.types.is_struct(kind):
        inner = _joined([_text(each) for each in array.flatten()], len(array))
        return pc.if_else(array.is_valid(), inner, pa.scalar(None, pa.large_binary()))
    if any(check(kind) for check in _BYTES):
        return array.cast(pa.large_binary())
    try:
        return array.cast(pa.large_string()).cast(pa.large_binary())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # lists and maps
        told = (None if each is None else repr(each).encode() for each in array.to_pylist())
        return pa.array(list(told), pa.large_binary())


_BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    *(pa.types.is_string, pa.types.is_large_string),
)
