"""Frames of the wire made by hand, so that a test can make each part of one wrong while the rest stays right."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.transport.wire import DTYPES, FORMAT, MAGIC, Column, schema_digest

PREFIX = struct.Struct(">4sHI")
SIGNATURE = 64
Sign = Callable[[bytes], bytes]


class Signer:
    """A signing key, and who believes it."""

    def __init__(self, seed: int = 1) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self._public = self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def verify(self, data: bytes, signature: bytes) -> bool:
        try:
            self._public.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def stream(array: Any, name: str = "values", schema: pa.Schema | None = None, **options: Any) -> bytes:
    """One vector as an Arrow stream. ``options``: of ``pyarrow.ipc.IpcWriteOptions``."""
    values = array if isinstance(array, pa.Array) else pa.array(array)
    schema = schema or pa.schema([pa.field(name, values.type, nullable=False)])
    return stream_of(schema, [pa.record_batch([values], schema=schema)], **options)


def stream_of(schema: pa.Schema, batches: list[pa.RecordBatch], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def column(data: bytes, dtype: str = "float32", size: int = 0, name: str = "values") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "size": size, "num_bytes": len(data)}


def header(columns: list[dict[str, Any]], body: bytes, **changes: Any) -> dict[str, Any]:
    """A header that fits the body, with ``changes``."""
    return {
        "kind": "reply",
        "sender": "spiffe://siloray/silo/a",
        "session": "00" * 16,
        "seq": 1,
        "run_id": "run",
        "epoch": 1,
        "version": 0,
        "attempt": 1,
        "model_digest": "",
        "schema_digest": schema_digest(tuple(Column.model_construct(**each) for each in columns)),
        "payload_sha256": hashlib.sha256(body).hexdigest(),
        "payload_bytes": len(body),
        "columns": columns,
        "content": "{}",
        **changes,
    }


def seal(head: Mapping[str, Any] | bytes, body: bytes, sign: Sign) -> bytes:
    """A frame of exactly this header and body, signed."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    signed = PREFIX.pack(MAGIC, FORMAT, len(text)) + text
    return signed + sign(signed) + body


def holding(data: bytes, sign: Sign, dtype: str = "float32", size: int = 0, **changes: Any) -> bytes:
    """A frame of one column, whose bytes are ``data``: all digests and the signature are right."""
    return seal(header([column(data, dtype, size)], data, **changes), data, sign)


def regions(frame: bytes) -> dict[str, range]:
    """Where the parts of a frame lie."""
    _, _, length = PREFIX.unpack(frame[: PREFIX.size])
    end = PREFIX.size + length
    return {
        "magic": range(4),
        "format": range(4, 6),
        "length": range(6, PREFIX.size),
        "header": range(PREFIX.size, end),
        "signature": range(end, end + SIGNATURE),
        "body": range(end + SIGNATURE, len(frame)),
    }


def flipped(frame: bytes, at: int, bit: int = 0) -> bytes:
    return frame[:at] + bytes([frame[at] ^ (1 << bit)]) + frame[at + 1 :]


def vector(dtype: str, size: int, seed: int = 0) -> np.ndarray:
    """Any bits that the type can have; NaN and infinity among the floats."""
    return np.frombuffer(
        np.random.default_rng(seed).bytes(size * np.dtype(dtype).itemsize), dtype=np.dtype(dtype)
    )


def big_endian(data: bytes) -> bytes:
    """The stream with a schema that says its numbers are big-endian, as another machine could write it."""
    metadata_at = 8
    (root,) = struct.unpack_from("<I", data, metadata_at)
    message = metadata_at + root
    schema = _child(data, message, 2)  # Message: version, header type, header, ...
    vtable = schema - struct.unpack_from("<i", data, schema)[0]
    for offset in range(4, 1 << 8, 2):
        if struct.unpack_from("<h", data, schema + offset) == (1,):
            changed = bytearray(data)
            struct.pack_into("<H", changed, vtable + 4, offset)  # Schema: endianness, fields, ...
            return bytes(changed)
    raise AssertionError("no 1 near the schema to point at")


def of_kind(data: bytes, kind: int) -> bytes:
    """The stream whose first message says to be of another kind; 5 is none that Arrow knows."""
    (root,) = struct.unpack_from("<I", data, 8)
    message = 8 + root
    vtable = message - struct.unpack_from("<i", data, message)[0]
    at = message + struct.unpack_from("<H", data, vtable + 6)[0]
    return data[:at] + bytes([kind]) + data[at + 1 :]


def _child(data: bytes, table: int, field: int) -> int:
    """Where the table lies that is a field of a flatbuffer table."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * field)
    assert offset, "the field is not there"
    return table + offset + struct.unpack_from("<I", data, table + offset)[0]


__all__ = ["DTYPES", "Signer", "big_endian", "column", "flipped", "header", "holding", "regions", "seal"]
