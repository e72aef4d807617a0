"""What crosses the line between organisations: signed frames of a JSON header and fixed-width Arrow columns.

    magic, format | length of the header | header (JSON) | Ed25519 signature of all before | body

The body is one Arrow IPC stream per column. Nothing of a frame is believed, and Arrow parses no byte of it, before
its lengths, its signature, its digest and its columns were checked. Nothing here is ever unpickled.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

MAGIC = b"SLRY"
FORMAT = 1
_PREFIX = struct.Struct(">4sHI")
_SIGNATURE = 64

MAX_HEADER = 4 << 20
"""Bytes. The longest header carries a job document."""
MAX_BODY = 64 << 20
"""Bytes. Larger vectors travel in several frames."""
MAX_COLUMNS = 16
HEADROOM = 16 << 10
"""Bytes before a body that is being made, for a head of the usual length."""
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""With which an Arrow stream ends."""

CONTEXT = ("run_id", "epoch", "version", "attempt", "model_digest")
"""Fields of a message that its frame's header carries too: what the work is about."""

DTYPES = {
    name: pa.from_numpy_dtype(np.dtype(name))
    for name in ("float32", "float16", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32")
}
Arrays = dict[str, NDArray[np.generic]]

_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_DIGEST = r"^[0-9a-f]{0,64}$"


class WireError(Exception):
    """A frame that must be refused: a stable code and a sentence."""

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason.encode("utf-8", "backslashreplace").decode()
        super().__init__(f"{code}: {self.reason}")


class Column(BaseModel, frozen=True, extra="forbid", strict=True):
    """One vector of a body."""

    name: str = Field(pattern=_NAME)
    dtype: str
    size: int = Field(ge=0, le=MAX_BODY)
    num_bytes: int = Field(ge=0, le=MAX_BODY)
    """Length of its Arrow stream."""


class Header(BaseModel, frozen=True, extra="forbid", strict=True):
    """Who says what about which work, and what the body must be."""

    kind: str = Field(pattern=_NAME)
    sender: str = Field(max_length=300)
    """The identity that stands in the sender's certificate and in the roster."""
    session: str = Field(pattern=_DIGEST)
    seq: int = Field(ge=0)
    """A number that this session has not seen; in an answer that of the question."""
    run_id: str = Field(default="", max_length=200)
    epoch: int = 0
    version: int = -1
    attempt: int = 0
    model_digest: str = Field(default="", max_length=200)
    schema_digest: str = Field(pattern=_DIGEST)
    """Of the columns: names, types, sizes."""
    payload_sha256: str = Field(pattern=_DIGEST)
    payload_bytes: int = Field(ge=0, le=MAX_BODY)
    columns: tuple[Column, ...] = Field(max_length=MAX_COLUMNS)
    content: str
    """The message as JSON text, in the form that its kind has."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that was checked: its header, and its vectors (read-only, in the frame's own memory)."""

    header: Header
    arrays: Arrays

    @property
    def content(self) -> dict[str, Any]:
        """The content of kinds that have a JSON object. Raises `WireError`."""
        try:
            content = json.loads(self.header.content)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise WireError("header", "the content is no JSON object")
        return content


def sha256_of(body: memoryview) -> str:
    return hashlib.sha256(body).hexdigest()


def encode(
    kind: str,
    sender: str,
    session: str,
    seq: int,
    content: str,
    sign: Callable[[bytes], bytes],
    arrays: Mapping[str, NDArray[np.generic]] | None = None,
    context: Mapping[str, Any] | None = None,
    digest: Callable[[memoryview], str] = sha256_of,
) -> memoryview:
    """A frame. ``context``: the fields named in `CONTEXT`, as far as there are any. ``digest`` may know the SHA-256
    of the body already."""
    columns, room = _with_body(arrays or {})
    body = room[HEADROOM:]
    header = Header(
        kind=kind,
        sender=sender,
        session=session,
        seq=seq,
        schema_digest=schema_digest(columns),
        payload_sha256=digest(body),
        payload_bytes=len(body),
        columns=columns,
        content=content,
        **(context or {}),
    )
    text = header.model_dump_json().encode()
    head = _PREFIX.pack(MAGIC, FORMAT, len(text)) + text
    head += sign(head)
    if len(head) > HEADROOM:
        return memoryview(head + bytes(body))
    start = HEADROOM - len(head)
    room[start:HEADROOM] = head
    return room[start:]


def decode(data: Any, verify: Callable[[bytes, bytes], bool]) -> Frame:
    """The frame in a buffer. ``verify(signed, signature)`` knows whose it must be. Raises `WireError`."""
    view = memoryview(data)
    header, body = _head(view, verify)
    if sha256_of(body) != header.payload_sha256:
        raise WireError("digest", "the body is not what the header's payload_sha256 says")
    return Frame(header, _arrays(header.columns, body))


def schema_digest(columns: tuple[Column, ...]) -> str:
    """SHA-256 of the columns' names, types and sizes."""
    text = json.dumps([[column.name, column.dtype, column.size] for column in columns])
    return hashlib.sha256(text.encode()).hexdigest()


def _head(view: memoryview, verify: Callable[[bytes, bytes], bool]) -> tuple[Header, memoryview]:
    if len(view) < _PREFIX.size:
        raise WireError("length", f"{len(view)} bytes are no frame")
    magic, version, length = _PREFIX.unpack(view[: _PREFIX.size])
    if magic != MAGIC or version != FORMAT:
        raise WireError("format", f"no frame of format {FORMAT}: do both sides run the same Siloray?")
    signed, start = _PREFIX.size + length, _PREFIX.size + length + _SIGNATURE
    if length > MAX_HEADER or len(view) < start or len(view) - start > MAX_BODY:
        raise WireError("length", f"a header of {length} bytes in a frame of {len(view)}")
    if not verify(bytes(view[:signed]), bytes(view[signed:start])):
        raise WireError("signature", "not signed by whom it says")
    header = _parsed(bytes(view[_PREFIX.size : signed]))
    if len(view) - start != header.payload_bytes:
        raise WireError("length", f"{len(view) - start} bytes of body, {header.payload_bytes} announced")
    return header, view[start:]


def _parsed(text: bytes) -> Header:
    try:
        header = Header.model_validate_json(text)
    except ValidationError as error:
        raise WireError("header", first_flaw(error)) from None
    names = {column.name for column in header.columns}
    sizes = sum(column.num_bytes for column in header.columns)
    if header.schema_digest != schema_digest(header.columns) or len(names) != len(header.columns):
        raise WireError("schema", "the columns are not what the header's schema_digest says")
    if sizes != header.payload_bytes or any(column.dtype not in DTYPES for column in header.columns):
        raise WireError("schema", "columns of unknown type, or of another length than the body")
    return header


def _with_body(arrays: Mapping[str, NDArray[np.generic]]) -> tuple[tuple[Column, ...], memoryview]:
    """The columns, and memory that holds the body behind room for the head: large vectors are copied once."""
    batches = {
        name: pa.record_batch([pa.array(array)], schema=_schema(name, str(array.dtype)))
        for name, array in arrays.items()
    }
    columns = tuple(
        Column(
            name=name, dtype=str(arrays[name].dtype), size=arrays[name].size, num_bytes=_stream_size(batch)
        )
        for name, batch in batches.items()
    )
    room = memoryview(pa.allocate_buffer(HEADROOM + sum(column.num_bytes for column in columns))).cast("B")
    start = HEADROOM
    for column, batch in zip(columns, batches.values(), strict=True):
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(room[start : start + column.num_bytes]))
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        start += column.num_bytes
    return columns, room


def _stream_size(batch: pa.RecordBatch) -> int:
    """Bytes of the Arrow stream of one batch: schema, batch, end."""
    return int(batch.schema.serialize().size + pa.ipc.get_record_batch_size(batch) + len(_END))


def _schema(name: str, dtype: str) -> pa.Schema:
    return pa.schema([pa.field(name, DTYPES[dtype], nullable=False)])


def _arrays(columns: tuple[Column, ...], body: memoryview) -> Arrays:
    found, start = {}, 0
    for column in columns:
        found[column.name] = _array(column, body[start : start + column.num_bytes])
        start += column.num_bytes
    return found


def _array(column: Column, stream: memoryview) -> NDArray[np.generic]:
    """Every way in which Arrow can dislike a buffer ends here (notes: reliability, section 5.4).

    The numbers are read from the batch's bytes by ourselves: Arrow would unpack a compressed batch, of any size.
    """
    try:
        schema, batch = pa.ipc.MessageReader.open_stream(pa.py_buffer(stream))
        if (schema.type, batch.type) != ("schema", "record batch"):  # as which Arrow reads them, unasked
            raise WireError("schema", f"column '{column.name}' is not one batch")
        if not pa.ipc.read_schema(schema).equals(_schema(column.name, column.dtype), check_metadata=True):
            raise WireError("schema", f"column '{column.name}' is not what the header says")
        values: NDArray[np.generic] = np.frombuffer(batch.body, column.dtype, column.size)
    except (pa.ArrowException, OSError, TypeError, ValueError, StopIteration, UnicodeDecodeError) as error:
        raise WireError("schema", f"column '{column.name}' cannot be read: {type(error).__name__}") from None
    if batch.body.size != -(-values.nbytes // 8) * 8:
        raise WireError("schema", f"column '{column.name}' does not hold {column.size} values")
    return values


def first_flaw(error: ValidationError) -> str:
    """The first thing that pydantic found, in a few words."""
    flaw = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, flaw['loc'])) or 'document'}: {flaw['msg']}"[:200]
