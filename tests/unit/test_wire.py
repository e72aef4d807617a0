"""Frames and messages: what goes in comes out, and whatever is not exactly right is refused with a stable code."""

import json
import math
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.core import messages as m
from orchestrator.core.metrics import Sums
from orchestrator.core.receipts import Receipt
from orchestrator.transport import wire
from orchestrator.transport.wire import DTYPES, MAX_BODY, MAX_COLUMNS, MAX_HEADER, WireError, decode, encode
from orchestrator.transport.wire_messages import context_of, kind_of, reply_of, request_of, text_of
from tests.support import frames
from tests.support.frames import Signer, column, flipped, header, holding, regions, seal, stream, vector

SILO = Signer(1)
FIVE = np.array([1.0, -2.5, math.nan, math.inf, 0.0], np.float32)


def code_of(data: Any, signer: Signer = SILO) -> str:
    with pytest.raises(WireError) as refused:
        decode(data, signer.verify)
    assert str(refused.value).startswith(refused.value.code) and "\n" not in refused.value.reason
    return refused.value.code


def encoded(arrays: Any = None, **given: Any) -> bytes:
    return bytes(encode("reply", "spiffe://siloray/silo/a", "ab" * 16, 7, "{}", SILO.sign, arrays, given))


# What goes in comes out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 3, 8, 1001])
def test_vectors_of_every_type_come_out_bit_for_bit(dtype: str, size: int) -> None:
    array = vector(dtype, size)
    found = decode(encoded({"values": array}), SILO.verify).arrays["values"]
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert not found.flags.writeable


def test_bf16_travels_as_the_16_bits_that_it_is() -> None:
    bits = np.array([0x3F80, 0x7F80, 0xFFC1, 0x0001], np.uint16)
    assert decode(encoded({"bf16": bits}), SILO.verify).arrays["bf16"].tolist() == bits.tolist()


def test_several_vectors_keep_their_names_and_order() -> None:
    arrays = {"b": FIVE, "a": np.arange(3, dtype=np.int32), "c": np.zeros(0, np.uint8)}
    frame = decode(encoded(arrays, run_id="r", epoch=3, version=2, attempt=4, model_digest="d"), SILO.verify)
    assert [(name, value.tobytes()) for name, value in frame.arrays.items()] == [
        (name, value.tobytes()) for name, value in arrays.items()
    ]
    found = frame.header
    assert (found.kind, found.sender, found.session, found.seq) == (
        "reply",
        "spiffe://siloray/silo/a",
        "ab" * 16,
        7,
    )
    assert (found.run_id, found.epoch, found.version, found.attempt, found.model_digest) == (
        "r",
        3,
        2,
        4,
        "d",
    )


def test_a_head_that_is_longer_than_usual_comes_out() -> None:
    content = json.dumps({"job": "x" * 100_000})
    data = bytes(encode("next", "a", "", 0, content, SILO.sign, {"values": FIVE}))
    frame = decode(data, SILO.verify)
    assert frame.header.content == content and frame.arrays["values"].tobytes() == FIVE.tobytes()


@pytest.mark.parametrize("content", ["[" * 150_000, "[]", "7", "{", ""])
def test_a_content_that_is_no_table(content: str) -> None:
    frame = decode(encode("next", "a", "", 0, content, SILO.sign), SILO.verify)
    with pytest.raises(WireError, match="no JSON object"):
        _ = frame.content


def test_frames_can_be_read_from_any_buffer() -> None:
    data = encoded({"values": FIVE})
    for buffer in (data, bytearray(data), memoryview(data), pa.py_buffer(data)):
        assert decode(buffer, SILO.verify).arrays["values"].tobytes() == FIVE.tobytes()


def test_a_frame_made_by_hand_is_a_frame() -> None:
    """Else the refusals below would say nothing."""
    found = decode(holding(stream(FIVE), SILO.sign, size=5), SILO.verify)
    assert found.arrays["values"].tobytes() == FIVE.tobytes()


# What is not exactly right is refused, each with its code


def test_too_short_to_be_a_frame() -> None:
    data = encoded({"values": FIVE})
    assert {code_of(data[:length]) for length in range(len(data))} == {"length"}


def test_more_bytes_than_announced() -> None:
    assert code_of(encoded({"values": FIVE}) + b"\0") == "length"


def test_another_magic_or_format() -> None:
    data = encoded()
    assert code_of(b"SLRX" + data[4:]) == "format"
    assert code_of(data[:4] + b"\0\2" + data[6:]) == "format"


def test_a_header_longer_than_allowed_is_not_looked_at() -> None:
    def untouched(*_: Any) -> bool:
        raise AssertionError("its signature was computed")

    long = frames.PREFIX.pack(wire.MAGIC, wire.FORMAT, MAX_HEADER + 1) + b" " * (MAX_HEADER + 100)
    body = frames.PREFIX.pack(wire.MAGIC, wire.FORMAT, 2) + b"{}" + bytes(frames.SIGNATURE + MAX_BODY + 1)
    huge = frames.PREFIX.pack(wire.MAGIC, wire.FORMAT, 0xFFFFFFFF) + bytes(100)
    for data in (long, body, huge):
        with pytest.raises(WireError, match="length"):
            decode(data, untouched)


@pytest.mark.parametrize("region", ["magic", "format", "length", "header", "signature", "body"])
def test_any_flipped_bit_is_found(region: str) -> None:
    data = encoded({"values": FIVE})
    codes = {code_of(flipped(data, at, bit)) for at in regions(data)[region] for bit in (0, 7)}
    expected = {
        "magic": {"format"},
        "format": {"format"},
        "length": {"length", "signature"},
        "header": {"signature"},
        "signature": {"signature"},
        "body": {"digest"},
    }
    assert codes == expected[region]


def test_somebody_elses_signature() -> None:
    assert code_of(encoded({"values": FIVE}), Signer(2)) == "signature"


def test_another_body_under_the_same_header() -> None:
    one, other = encoded({"values": FIVE}), encoded({"values": FIVE + 1})
    head, _ = one[: regions(one)["body"].start], None
    assert code_of(head + other[regions(other)["body"].start :]) == "digest"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"kind": NaN}',
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b'"\\ud800"',
    ],
)
def test_a_header_that_is_no_header(head: bytes) -> None:
    assert code_of(seal(head, b"", SILO.sign)) == "header"


WRONG: dict[str, Any] = {
    "kind": ["", "a" * 65, "a b", "\u00e9", 7, None, "reply\n"],
    "sender": ["x" * 301, 7, None],
    "session": ["xyz", "AB", "0" * 65, 1, None],
    "seq": [-1, 1.5, "1", True, None, math.nan, math.inf],
    "run_id": ["x" * 201, 7, None],
    "epoch": [1.5, "1", True, None, math.nan],
    "version": ["0", 0.5, None],
    "attempt": [[], "1", None],
    "model_digest": ["x" * 201, 7],
    "schema_digest": ["Z" * 64, 7, None],
    "payload_sha256": ["Z" * 64, 7, None],
    "payload_bytes": [-1, MAX_BODY + 1, "0", 0.0, None, True],
    "columns": [None, {}, "", [1], [{}], [[]]],
    "content": [7, None, {}, ["x"]],
    "surprise": [1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_header_with_a_field_of_another_type(name: str, value: Any) -> None:
    head = {**header([], b""), name: value}
    assert code_of(seal(head, b"", SILO.sign)) == "header"


@pytest.mark.parametrize(
    "name", header([], b"").keys() - {"run_id", "epoch", "version", "attempt", "model_digest"}
)
def test_a_header_without_a_field(name: str) -> None:
    head = {key: value for key, value in header([], b"").items() if key != name}
    assert code_of(seal(head, b"", SILO.sign)) == "header"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../x"),
        ("name", ""),
        ("name", 3),
        ("size", -1),
        ("size", MAX_BODY + 1),
        ("size", 1.0),
        ("size", True),
        ("num_bytes", -1),
        ("num_bytes", MAX_BODY + 1),
        ("dtype", 4),
        ("more", 1),
    ],
)
def test_a_column_that_is_none(field: str, value: Any) -> None:
    data = stream(FIVE)
    head = header([column(data, size=5)], data)
    assert (
        code_of(seal({**head, "columns": [{**head["columns"][0], field: value}]}, data, SILO.sign))
        == "header"
    )


def test_columns_that_the_schema_digest_does_not_cover() -> None:
    data = stream(FIVE)
    assert code_of(holding(data, SILO.sign, size=5, schema_digest="0" * 64)) == "schema"
    head = header([column(data, size=5)], data)
    for changed in ({"name": "other"}, {"size": 4}, {"dtype": "int32"}):
        columns = [{**head["columns"][0], **changed}]
        assert code_of(seal({**head, "columns": columns}, data, SILO.sign)) == "schema"


def test_two_columns_of_one_name() -> None:
    data = stream(FIVE)
    assert code_of(seal(header([column(data, size=5)] * 2, data * 2), data * 2, SILO.sign)) == "schema"


def test_too_many_columns() -> None:
    data = stream(FIVE)
    columns = [column(data, size=5, name=f"c{at}") for at in range(MAX_COLUMNS + 1)]
    body = data * len(columns)
    assert code_of(seal(header(columns, body), body, SILO.sign)) == "header"


@pytest.mark.parametrize(
    "dtype", ["object", "str", "complex64", "bool", "uint64", "int64", "float128", "O", ""]
)
def test_columns_of_a_type_that_does_not_travel(dtype: str) -> None:
    assert code_of(holding(stream(FIVE), SILO.sign, dtype=dtype, size=5)) == "schema"


def test_columns_that_are_longer_or_shorter_than_the_body() -> None:
    data = stream(FIVE)
    for wrong in (len(data) - 8, len(data) + 8):
        columns = [{**column(data, size=5), "num_bytes": wrong}]
        assert code_of(seal(header(columns, data), data, SILO.sign)) == "schema"


@pytest.mark.parametrize("size", [0, 1, 4, 6, 8, MAX_BODY])
def test_another_number_of_values_than_announced(size: int) -> None:
    """Up to the padding to 8 bytes, which 5 and 6 numbers of 4 bytes share, and whose bits are signed, too."""
    data = holding(stream(FIVE), SILO.sign, size=size)
    if size == 6:
        assert decode(data, SILO.verify).arrays["values"].tobytes() == FIVE.tobytes() + bytes(4)
    else:
        assert code_of(data) == "schema"


def _schema(**given: Any) -> pa.Schema:
    return pa.schema([pa.field("values", pa.float32(), **{"nullable": False, **given})])


def _batch(schema: pa.Schema | None = None, values: Any = FIVE) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values)], schema=schema or _schema())


STREAMS: dict[str, bytes] = {
    "nothing": b"",
    "zeros": bytes(256),
    "end only": b"\xff\xff\xff\xff\0\0\0\0",
    "no batch": frames.stream_of(_schema(), []),
    "two batches": frames.stream_of(_schema(), [_batch(), _batch()]),
    "another name": stream(FIVE, "other"),
    "another type": stream(FIVE.view(np.int32)),
    "nullable": stream(FIVE, schema=_schema(nullable=True)),
    "nulls": stream(pa.array([1.0, None, 2.0, 3.0, 4.0], pa.float32()), schema=_schema(nullable=True)),
    "metadata of the field": stream(FIVE, schema=_schema(metadata={"a": "b"})),
    "metadata of the schema": stream(FIVE, schema=_schema().with_metadata({"a": "b"})),
    "dictionary": stream(pa.array(FIVE).dictionary_encode()),
    "lz4": stream(np.zeros(5, np.float32), compression="lz4"),
    "zstd": stream(np.zeros(5, np.float32), compression="zstd"),
    "big-endian": frames.big_endian(stream(FIVE)),
    **{f"first message of kind {kind}": frames.of_kind(stream(FIVE), kind) for kind in (0, 2, 3, 4, 5, 255)},
    "list": stream(pa.array([[1.0]] * 5, pa.list_(pa.float32()))),
    "text": stream(pa.array(["x"] * 5)),
    "fixed-size binary": stream(pa.array([b"abcd"] * 5, pa.binary(4))),
    "date": stream(pa.array([1] * 5, pa.date32())),
    "two columns": frames.stream_of(
        pa.schema([*_schema(), pa.field("more", pa.float32(), nullable=False)]),
        [
            pa.record_batch(
                [pa.array(FIVE)] * 2,
                schema=pa.schema([*_schema(), _schema(nullable=False).field(0).with_name("more")]),
            )
        ],
    ),
    "extension": stream(
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [1]), pa.FixedSizeListArray.from_arrays(pa.array(FIVE), 1)
        )
    ),
    "file instead of stream": b"ARROW1\0\0" + stream(FIVE),
    "batch before schema": stream(FIVE)[len(_schema().serialize()) :],
    "twice the schema": _schema().serialize().to_pybytes() * 2,
    "cut off": stream(FIVE)[:-16],
}


@pytest.mark.parametrize("what", STREAMS)
def test_a_body_that_is_another_stream(what: str) -> None:
    assert code_of(holding(STREAMS[what], SILO.sign, size=5)) == "schema"


def test_a_compressed_batch_is_not_unpacked() -> None:
    """Some kilobytes can stand for gigabytes."""
    data = stream(np.zeros(50_000_000, np.float32), compression="zstd")
    before = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(before)
    pa.set_memory_pool(watched)
    try:
        for size in (5, 50_000_000):
            assert len(data) < 10_000 and code_of(holding(data, SILO.sign, size=size)) == "schema"
    finally:
        pa.set_memory_pool(before)
    assert watched.max_memory() < 1 << 20


def test_a_batch_that_claims_more_rows_or_compression_gives_the_bytes_that_were_signed() -> None:
    """Nothing that a batch says of itself is believed: the bytes that the header describes are the numbers."""
    right = stream(FIVE)
    start = right.index(FIVE.tobytes())
    for at in range(len(_schema().serialize()), start):
        data = flipped(right, at, 2)
        try:
            values = decode(holding(data, SILO.sign, size=5), SILO.verify).arrays["values"]
        except WireError:
            continue
        assert values.tobytes() in data


def test_arrow_sees_no_byte_before_all_else_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("Arrow was called")

    whole = encoded({"values": FIVE})
    data = stream(FIVE)
    for name in ("open_stream", "read_schema", "read_message", "read_record_batch"):
        monkeypatch.setattr(pa.ipc, name, called)
    monkeypatch.setattr(pa.ipc, "MessageReader", SimpleNamespace(open_stream=called))
    monkeypatch.setattr(pa, "py_buffer", called)
    with pytest.raises(AssertionError, match="Arrow was called"):
        decode(whole, SILO.verify)
    spans = regions(whole)
    for span in spans.values():
        code_of(flipped(whole, span.start))
    code_of(whole[:-1])
    code_of(whole + b"\0")
    code_of(whole, Signer(2))
    code_of(holding(data, SILO.sign, size=5, payload_sha256="0" * 64))
    code_of(holding(data, SILO.sign, size=5, schema_digest="0" * 64))
    code_of(holding(data, SILO.sign, size=5, dtype="object"))
    code_of(seal(header([column(data, size=5)] * 2, data * 2), data * 2, SILO.sign))


def test_a_reason_is_always_text_that_can_be_written_down() -> None:
    WireError("header", "\ud800").reason.encode()
    str(WireError("header", "\ud800")).encode()


# Messages


HEAD: dict[str, Any] = {"run_id": "run", "epoch": 3}
REQUESTS: tuple[m.Request, ...] = (
    m.Join(**HEAD, job='{"name": "\u00e9"}', job_digest="d"),
    m.Initial(**HEAD),
    m.Train(**HEAD, version=4, attempt=1, model=None, model_digest="m", counted=-1, inline=5, keep=(1, 2)),
    m.Train(**HEAD, version=4, attempt=1, model=None, model_digest="m", counted=-1, inline=5, num_steps=9),
    m.Evaluate(**HEAD, version=4, model=None, counted=2),
    m.Assess(**HEAD, version=4, model=None, model_digest="m", counted=2, trainings=3, num_steps=30),
    m.Attack(**HEAD, version=4, model=None, model_digest="m", counted=2, trainings=3, num_steps=30),
    m.Load(**HEAD, layout=(("w", (2, 3)), ("b", ())), model=None),
    m.Fetch(**HEAD, version=1, start=0, stop=9),
    m.Ask(**HEAD, version=4, attempt=1, step="seal", fields={"header": {"members": ["a", 1, None]}}),
    m.Ping(**HEAD),
    m.Stop(**HEAD),
    m.Stop(**HEAD, hand_in=4),
    m.Leave(**HEAD, finished=True),
    m.Join(**HEAD, job="{}", job_digest="d", ledger=m.LedgerHead(3, "ab", "a2V5", "c2ln")),
)
SUMS = {"loss": Sums("mean", (math.nan, 2.0)), "auc": Sums("auc", (1.0, math.inf, 0.0, -math.inf))}
UPDATE = m.Update(
    silo="a",
    run_id="run",
    epoch=3,
    version=4,
    attempt=1,
    model_digest="m",
    job_digest="j",
    layout=(("delta", 5), ("control", 0)),
    weight=0.1 + 0.2,
    num_examples=7,
    num_steps=2,
    scalars={"tau": math.inf, "nan": math.nan, "small": 5e-324, "minus": -0.0},
    metrics=SUMS,
    train_metrics={},
    seconds={"load": 1e-9},
    packet_bytes=20,
)
RECEIPT = Receipt(kind="update", silo="a", run_id="run", job_digest="j", epoch=3, version=4, sequence=1 << 50)
REPLIES: tuple[m.Reply, ...] = (
    m.Joined(
        silo="a",
        incarnation="i",
        schema_digest="s",
        num_parameters=5,
        num_shared=5,
        num_examples={"train": 3},
        fingerprint="f",
        device="cpu",
        node="n",
        model={"entries": [{"name": "w", "shape": [2, 3]}], "input_shape": [1], "input_dtype": "float32"},
        versions={"torch": "2"},
    ),
    UPDATE,
    m.Evaluated(silo="a", version=1, metrics=SUMS, seconds=0.5),
    m.Progress(silo="a", incarnation="i", phase="training", version=1, num_steps=1, total_steps=2, marks=9),
    m.Piece(packet={}),
    m.Assessed(
        silo="a",
        version=1,
        model_digest="m",
        models={"global": m.Judged(SUMS, {"auc": (0.25, math.inf)}, {"auc": (-0.1, 0.1)}, {"auc": "same"})},
        curve=((0, SUMS), (5, {})),
        accepted=5,
        num_steps=30,
        seconds={"alone": 1.5},
    ),
    m.Answer(silo="a", version=4, attempt=1, step="seal", fields={"share": "AAECAw=="}),
    m.Attacked(
        silo="a",
        version=1,
        model_digest="m",
        vote="fail",
        verdicts={"membership": "fail", "inversion": "unable"},
        scores={"auc": 0.75},
        why="inversion: no way in",
        seconds=0.5,
    ),
    replace(UPDATE, ledger=m.LedgerHead(3, "ab"), privacy={"epsilon": 1.5}),
    replace(UPDATE, receipt=RECEIPT),
    *(
        m.Refused(silo="a", code=code, reason="because\n\x1b[31m \u20ac")  # type: ignore[arg-type]
        for code in ("policy", "data", "fenced", "unknown", "cancelled", "job", "busy", "failed")
    ),
    m.Refused(silo="a", code="policy", reason="the key of b", of="b"),
)


def _same(one: Any, other: Any) -> bool:
    """Field by field; NaN is NaN, and 0.0 is not -0.0."""
    return type(one) is type(other) and all(
        repr(getattr(one, each.name)) == repr(getattr(other, each.name)) for each in fields(one)
    )


@pytest.mark.parametrize("request_", REQUESTS, ids=kind_of)
def test_every_request_comes_out_as_it_went_in(request_: m.Request) -> None:
    assert _same(request_of(kind_of(request_), text_of(request_)), request_)


@pytest.mark.parametrize("reply", REPLIES, ids=kind_of)
def test_every_reply_comes_out_as_it_went_in(reply: m.Reply) -> None:
    assert _same(reply_of(kind_of(reply), text_of(reply)), reply)


def test_every_message_there_is_is_tested_here() -> None:
    classes = {each for each in vars(m).values() if isinstance(each, type) and each.__module__ == m.__name__}
    assert {type(each) for each in (*REQUESTS, *REPLIES)} == classes - {
        m.Request,
        m.CohortInfo,
        m.Judged,
        m.LedgerHead,
    }


def test_vectors_travel_beside_the_message() -> None:
    packet = {"values": FIVE}
    whole = replace(UPDATE, packet=packet)
    assert "packet" not in json.loads(text_of(whole))
    assert reply_of("Update", text_of(whole), packet).packet is packet
    assert reply_of("Piece", text_of(m.Piece(packet=packet)), packet).packet is packet
    layout = [["params", 5]]
    assert request_of("Train", text_of(REQUESTS[2]), model=layout).model is layout


def test_the_context_of_a_message_is_what_its_header_repeats() -> None:
    assert context_of(REQUESTS[2]) == {
        "run_id": "run",
        "epoch": 3,
        "version": 4,
        "attempt": 1,
        "model_digest": "m",
    }
    assert context_of(m.Ping(**HEAD)) == HEAD


def _refused(code: str, of: Any, *given: Any) -> None:
    with pytest.raises(WireError) as refused:
        of(*given)
    assert refused.value.code == code


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63), 10**4000])
def test_whole_numbers_have_bounds(number: int) -> None:
    """The journal cannot hold those of some thousand digits, and their sums."""
    right = json.loads(text_of(UPDATE))
    for name in ("packet_bytes", "num_steps", "num_examples", "epoch"):
        _refused("header", reply_of, "Update", json.dumps({**right, name: number}))
    _refused("header", reply_of, "Update", json.dumps({**right, "layout": [["delta", number]]}))
    receipt = json.loads(text_of(replace(UPDATE, receipt=RECEIPT)))["receipt"]
    for name in ("sequence", "epoch", "head_length"):
        _refused("header", reply_of, "Update", json.dumps({**right, "receipt": {**receipt, name: number}}))
    less = {name: value for name, value in receipt.items() if name != "ledger"}
    for wrong in (less, {**receipt, "more": 1}, {**receipt, "head": "x" * 301}):
        _refused("header", reply_of, "Update", json.dumps({**right, "receipt": wrong}))
    joined = json.loads(text_of(REPLIES[0]))
    _refused("header", reply_of, "Joined", json.dumps({**joined, "num_examples": {"train": number}}))


def test_vectors_with_a_message_that_has_none() -> None:
    _refused("schema", reply_of, "Progress", text_of(REPLIES[3]), {"values": FIVE})
    _refused("schema", request_of, "Ping", text_of(m.Ping(**HEAD)), [["params", 5]])


@pytest.mark.parametrize(
    "kind", ["", "Update", "Request", "CohortInfo", "__init__", "dataclass", "x" * 9999, "\ud800"]
)
def test_only_requests_are_requests(kind: str) -> None:
    _refused("unknown", request_of, kind, "{}")


@pytest.mark.parametrize("kind", ["", "Train", "Reply", "CohortInfo", "SiloId", "Any", "Ping"])
def test_only_replies_are_replies(kind: str) -> None:
    _refused("unknown", reply_of, kind, "{}")


@pytest.mark.parametrize("message", [*REQUESTS, *REPLIES[:6]], ids=kind_of)
def test_a_message_with_a_field_too_many_too_few_or_of_another_type(message: Any) -> None:
    kind, right = kind_of(message), json.loads(text_of(message))
    of = reply_of if message in REPLIES else request_of
    _refused("header", of, kind, json.dumps({**right, "surprise": 1}))
    _refused("header", of, kind, json.dumps({**right, "__class__": "x"}))
    for name in right:
        _refused("header", of, kind, json.dumps({key: value for key, value in right.items() if key != name}))
        for wrong in (None, {"a": []}, [[[]]], 7 if isinstance(right[name], str) else "x"):
            fits = isinstance(right[name], dict) and wrong == {"a": []} and name in {"model", "fields"}
            may_lack = name in {"ledger", "receipt"} or (kind, name) in {
                ("Train", "num_steps"),
                ("Stop", "hand_in"),
            }
            fits = fits or (may_lack and wrong is None)
            if not fits:
                _refused("header", of, kind, json.dumps({**right, name: wrong}))
    for text in ("", "null", "[]", "7", "{", '"\\ud800"', "[" * 100_000):
        _refused("header", of, kind, text)
