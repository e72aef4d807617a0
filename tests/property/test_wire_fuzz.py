"""Hostile bytes for whoever reads frames. Each input is refused with a reason, or means what its sender signed.

All of it runs in a child process with little memory, so that a reader that crashes, hangs or swallows memory fails
the test and not the test runner. ``python -m tests.property.test_wire_fuzz SHARE`` is that child.
"""

import asyncio
import faulthandler
import json
import logging
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator.core.events import CallRefused
from orchestrator.core.messages import Evaluate, Fetch, Initial, Piece, Ping, Request, Train, Update
from orchestrator.core.versions import versions
from orchestrator.transport import flight
from orchestrator.transport.certs import verify
from orchestrator.transport.flight import FlightChannel
from orchestrator.transport.flight_server import ACTION
from orchestrator.transport.mailbox import Pending
from orchestrator.transport.wire import (
    DTYPES,
    FORMAT,
    MAGIC,
    Column,
    Frame,
    Header,
    WireError,
    decode,
    schema_digest,
)
from orchestrator.transport.wire_messages import kind_of, reply_of, request_of, text_of
from tests.support import frames
from tests.support.consortium import Consortium
from tests.support.frames import Signer, column, header, holding, seal, stream, vector
from tests.support.scratch import scratch
from tests.unit.test_wire import REPLIES, REQUESTS

REPOSITORY = Path(__file__).parents[2]
HANG_S = 1.0
ROOM = 2 << 30
"""Bytes of address space that the child may take beyond what its libraries have taken."""

SHARES = {"bytes": 0.1, "frames": 0.25, "headers": 0.2, "bodies": 0.3, "messages": 0.1, "door": 0.05}
"""Of the inputs, by part."""
QUICK, SLOW = 1_600, 24_000
TIMEOUT_S = 600
DEEP = {
    "bytes": {"length", "format", "signature"},
    "frames": {"length", "format", "signature", "digest"},
    "headers": {"header", "schema", "digest"},
    "bodies": {"schema"},
    "messages": {"header"},
    "door": {"header", "unknown"},
}
"""Codes that a part must have met."""

SILO = Signer(1)
AT_END = ExitStack()


@dataclass
class Tally:
    """What became of the inputs of one part."""

    inputs: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    meant: int = 0
    """Accepted, and exactly what the sender signed."""

    def told(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "refused": dict(self.refused), "meant": self.meant}


def judged(tally: Tally, read: Callable[[], Any], means: Callable[[Any], bool]) -> None:
    """One input: refused, or what was signed; and soon. A slow machine gets a second chance."""
    tally.inputs += 1
    for last in (False, True):
        began, found, code = time.perf_counter(), None, ""
        try:
            found = read()
        except WireError as error:
            code = error.code
            error.reason.encode()
        if time.perf_counter() - began < HANG_S:
            break
        assert not last, "took more than a second"
    if code:
        tally.refused[code] += 1
        return
    assert means(found), "accepted, and not what was signed"
    tally.meant += 1


# Ways to spoil bytes

HOSTILE = (
    b"\0",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x7f" * 8,
    bytes(8),
    b"\1\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
)
PIECES = st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from(HOSTILE))
PLACES = st.floats(0, 1, exclude_max=True)
"""Where in the region, as a share of its length."""
SPOIL = st.tuples(st.sampled_from(("flip", "write", "insert", "remove", "cut", "repeat")), PLACES, PIECES)
SAME_LENGTH = st.tuples(st.sampled_from(("flip", "write")), PLACES, st.binary(min_size=1, max_size=1))
SPOILS = st.one_of(
    st.lists(SPOIL, min_size=1, max_size=1),
    st.lists(SPOIL, min_size=2, max_size=4),
    st.lists(SAME_LENGTH, min_size=1, max_size=3),
)


def spoilt(data: bytes, spoils: list[tuple[str, float, bytes]]) -> bytes:
    for how, place, piece in spoils:
        at = int(place * len(data))
        size = len(piece)
        match how:
            case "flip" if data:
                data = frames.flipped(data, at, piece[0] % 8)
            case "write":
                data = data[:at] + piece + data[at + size :]
            case "insert":
                data = data[:at] + piece + data[at:]
            case "remove":
                data = data[:at] + data[at + size :]
            case "cut":
                data = data[:at]
            case "repeat":
                data = data[: at + 8 * size] + data[at:]
    return data


def whole_frames() -> list[bytes]:
    five, many = vector("float32", 5), vector("uint8", 300)
    two = [column(stream(five), "float32", 5), column(stream(many, "more"), "uint8", 300, "more")]
    body = stream(five) + stream(many, "more")
    return [
        seal(header([], b"", content='{"held": []}', kind="next"), b"", SILO.sign),
        holding(stream(five), SILO.sign, size=5),
        seal(header(two, body), body, SILO.sign),
    ]


WHOLE = whole_frames()
REGIONS = ("magic", "format", "length", "header", "signature", "body")


# The parts


def fuzz_bytes(tally: Tally) -> Callable[..., None]:
    """Random bytes, with and without a right beginning."""
    start = frames.PREFIX.pack(MAGIC, FORMAT, 40)
    starts = st.sampled_from((b"", MAGIC, start[:6], start, frames.PREFIX.pack(MAGIC, FORMAT, 0)))

    @given(starts, st.binary(max_size=400) | st.binary(min_size=110, max_size=400))
    def one(start: bytes, rest: bytes) -> None:
        judged(tally, lambda: decode(start + rest, SILO.verify), lambda _: False)

    return one


def fuzz_frames(tally: Tally) -> Callable[..., None]:
    """Right frames of which one region was spoilt on the way."""

    @given(st.sampled_from(WHOLE), st.sampled_from(REGIONS), SPOILS)
    def one(whole: bytes, region: str, spoils: Any) -> None:
        span = frames.regions(whole)[region]
        data = whole[: span.start] + spoilt(whole[span.start : span.stop], spoils) + whole[span.stop :]
        judged(tally, lambda: decode(data, SILO.verify), lambda _: data == whole)

    return one


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(("", "a" * 64, "0" * 64, "../x", *DTYPES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def fuzz_headers(tally: Tally) -> Callable[..., None]:
    """Headers that are wrong and signed all the same; the columns' digest is made to fit some of them."""
    array = vector("float32", 5)
    body = stream(array)
    right = header([column(body, "float32", 5)], body)
    names = [*right, "surprise"]
    inner = ["name", "dtype", "size", "num_bytes", "surprise"]
    digests, counts = st.sampled_from(("0" * 64, "", "ab")), st.integers(0, 600)
    good = {
        **dict.fromkeys(("schema_digest", "payload_sha256", "session"), digests),
        **dict.fromkeys(("payload_bytes", "size", "num_bytes", "seq", "epoch"), counts),
        "dtype": st.sampled_from(tuple(DTYPES)),
        **dict.fromkeys(
            ("name", "kind", "sender", "run_id", "content"), st.sampled_from(("values", "x", "a.b"))
        ),
    }

    def changes(of: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        """Of one field or two; most have at least the right type."""
        likely = [st.tuples(st.just(name), good[name]) for name in of if name in good]
        some = st.one_of(*likely, st.tuples(st.sampled_from(of), JSON))
        return st.lists(some, max_size=2).map(dict)

    removed = st.just([]) | st.just([]) | st.lists(st.sampled_from(names), max_size=1)

    def of(where: str, changed: dict[str, Any], gone: list[str], fit: bool) -> dict[str, Any]:
        head = json.loads(json.dumps(right))
        target = head if where == "header" else head["columns"][0]
        target.update(changed)
        for name in gone:
            target.pop(name, None)
        if fit:
            try:
                columns = tuple(Column.model_construct(**each) for each in head["columns"])
                head["schema_digest"] = schema_digest(columns)
            except (TypeError, AttributeError, KeyError, ValueError):
                pass
        return head

    def means(head: Any, found: Frame) -> bool:
        told = json.loads(found.header.model_dump_json())
        read = [(name, each.tobytes()) for name, each in found.arrays.items()]
        padded = (array.tobytes(), array.tobytes() + bytes(4))
        return {**told, **head} == told and (not read or (read[0][0] == "values" and read[0][1] in padded))

    dicts = st.one_of(
        st.builds(of, st.just("header"), changes(names), removed, st.booleans()),
        st.builds(of, st.just("column"), changes(inner), removed, st.booleans()),
    )

    @given(st.one_of(dicts, SPOILS))
    def one(changed: Any) -> None:
        if isinstance(changed, dict):
            data = seal(changed, body, SILO.sign)
            judged(tally, lambda: decode(data, SILO.verify), lambda found: means(changed, found))
        else:
            text = spoilt(json.dumps(right).encode(), changed)
            data = seal(text, body, SILO.sign)
            judged(tally, lambda: decode(data, SILO.verify), lambda found: means(json.loads(text), found))

    return one


def other_streams() -> list[bytes]:
    """Layouts that Arrow could misread, and compressed ones."""
    texts = pa.array(["ab", "c", "", "defg", "h"])
    lists = pa.array([[1.0, 2.0], [], [3.0], [4.0, 5.0], []], pa.list_(pa.float32()))
    return [
        stream(texts),
        stream(lists),
        stream(texts.dictionary_encode()),
        stream(pa.array([{"a": 1.0}] * 5)),
        stream(
            pa.array([1.0, None, 2.0, 3.0, 4.0], pa.float32()), schema=pa.schema([("values", pa.float32())])
        ),
        stream(np.zeros(500, np.float32), compression="lz4"),
        stream(np.zeros(500, np.float32), compression="zstd"),
        frames.big_endian(stream(vector("float32", 5))),
    ]


def fuzz_bodies(tally: Tally) -> Callable[..., None]:
    """Arrow streams that are spoilt, with digests and a signature that fit: Arrow reads them."""
    right = [(dtype, size, stream(vector(dtype, size))) for dtype in DTYPES for size in (1, 5, 40)]
    others = [("float32", 5, data) for data in other_streams()]

    @given(st.sampled_from(right + others), SPOILS, st.booleans())
    def one(chosen: tuple[str, int, bytes], spoils: Any, metadata_only: bool) -> None:
        dtype, size, data = chosen
        end = len(data) - size * np.dtype(dtype).itemsize - 8 if metadata_only else len(data)
        body = spoilt(data[:end], spoils) + data[end:]
        frame = holding(body, SILO.sign, dtype, size)

        def means(found: Frame) -> bool:
            values = found.arrays["values"]
            return (str(values.dtype), values.size) == (dtype, size) and values.tobytes() in body

        judged(tally, lambda: decode(frame, SILO.verify), means)

    return one


def fuzz_messages(tally: Tally) -> Callable[..., None]:
    """The text of each kind of message with something in it that does not belong there."""
    texts = [(kind_of(each), json.loads(text_of(each)), request_of) for each in REQUESTS]
    texts += [(kind_of(each), json.loads(text_of(each)), reply_of) for each in REPLIES[:6]]

    def plain(value: Any) -> Any:
        """1 and 1.0 are the same number, NaN is NaN."""
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @given(st.sampled_from(texts), st.data())
    def one(chosen: Any, data: Any) -> None:
        kind, right, of = chosen
        if data.draw(st.booleans()):
            text = spoilt(json.dumps(right).encode(), data.draw(SPOILS)).decode("utf-8", "surrogateescape")
        else:
            names = st.sampled_from([*right, "surprise", "model", "packet", "__class__"])
            text = json.dumps({**right, **data.draw(st.dictionaries(names, JSON, min_size=1, max_size=2))})

        def means(found: Any) -> bool:
            return plain(json.loads(text_of(found))) == plain(json.loads(text))

        judged(tally, lambda: of(kind, text), means)

    return one


class Door:
    """A driver's door without its TLS, and what silo a asks there in a session that is in order."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        consortium = Consortium(folder, ["a"])
        self.own, self.driver, self.loop = consortium.of("a"), consortium.of("driver"), loop
        self.channel = FlightChannel(("a",), self.driver, ("127.0.0.1", 0), 60.0, self._refused)
        self.box = self.channel._boxes["a"]

    def _refused(self, who: str, code: str, reason: str) -> None:
        CallRefused(who=who, code=code, reason=reason).model_dump_json().encode()

    async def posted(self, which: int) -> Pending:
        head: dict[str, Any] = {"run_id": "run", "epoch": 1}
        work = {"version": 0, "counted": -1, "model": flight.Published({"params": np.zeros(5, np.float32)})}
        asked: tuple[Request, ...] = (
            Ping(**head),
            Fetch(**head, version=0, start=0, stop=5),
            Initial(**head),
            Evaluate(**head, **work),
            Train(**head, **work, attempt=1, model_digest="", inline=5),
        )
        return self.box.post(asked[which])

    def says(self, kind: str, content: str, vectors: bytes, session: str, seq: int) -> Header:
        columns = [column(vectors, "float32", 5)] if vectors else []
        given = {
            "sender": self.own.identity,
            "session": session,
            "seq": seq,
            "content": content,
            "kind": kind,
        }
        frame = seal(header(columns, vectors, **given), vectors, self.own.sign)
        answer = self.channel._server._answer(self.own.identity, fl.Action(ACTION, frame))
        return decode(
            answer, lambda data, signature: verify(self.driver.roster.current().driver, data, signature)
        ).header


def fuzz_door(tally: Tally) -> Callable[..., None]:
    """What a member with a right key and session could say. It is answered each time, and the driver lives."""
    flight.POLL_S = 0.0
    loop = asyncio.new_event_loop()
    door = Door(AT_END.enter_context(scratch()) / "ca", loop)
    AT_END.callback(door.channel.close)
    kinds = st.sampled_from(
        ("reply", "reply", "part", "part", "model", "next", "hello", "challenge", "other")
    )
    shapes = st.tuples(st.sampled_from(tuple(DTYPES)), st.integers(-1, 6))
    good = {
        "held": st.lists(st.text(max_size=4), max_size=2),
        "request": st.text(max_size=4),
        "kind": st.sampled_from([*(kind_of(each) for each in REPLIES), "\ud800"]),
        "text": st.sampled_from([text_of(each) for each in REPLIES]),
        "announced": st.dictionaries(st.sampled_from(("values", "x", "\ud800")), shapes, max_size=2),
        "start": st.integers(-1, 6),
        "stop": st.integers(-1, 6),
        "name": st.just("params"),
        "incarnation": st.text(max_size=4),
    }
    contents = st.fixed_dictionaries({}, optional={name: good[name] | JSON for name in good})
    vectors = stream(vector("float32", 5))
    hello = json.dumps({"incarnation": "i", "versions": versions()})

    @given(kinds, contents, st.integers(0, 4), st.integers(0, 3))
    def one(kind: str, content: dict[str, Any], which: int, how: int) -> None:
        pending = loop.run_until_complete(door.posted(which))
        session = json.loads(door.says("challenge", "{}", b"", "", 0).content)["session"]
        assert door.says("hello", hello, b"", session, 0).kind == "answer"
        said = json.dumps({"request": pending.id, **content} if how else content)
        answer = door.says(kind, said, vectors if how > 1 else b"", session, 1)
        loop.run_until_complete(asyncio.sleep(0))
        door.box.drop(pending)

        def read() -> Header:
            if answer.kind == "refused":
                found = json.loads(answer.content)
                raise WireError(found["code"], found["reason"])
            return answer

        judged(tally, read, lambda found: (found.session, found.seq) == (session, 1))
        if pending.future.done() and pending.future.exception() is None:
            told = pending.future.result()
            assert not isinstance(told, Update | Piece) or how, "an answer that nobody gave"

    return one


PARTS = {
    "bytes": fuzz_bytes,
    "frames": fuzz_frames,
    "headers": fuzz_headers,
    "bodies": fuzz_bodies,
    "messages": fuzz_messages,
    "door": fuzz_door,
}


def _within(room: int) -> None:
    """From here on no more memory than this, and a dump of all stacks for who hangs."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
    faulthandler.enable()
    faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)


def child(inputs: int, random: bool) -> dict[str, Any]:
    """Runs all parts, in this process."""
    logging.disable(logging.ERROR)
    _within(ROOM)
    told = {}
    with AT_END:
        for name, make in PARTS.items():
            tally = Tally()
            chosen = settings(
                max_examples=int(inputs * SHARES[name]),
                database=None,
                deadline=None,  # ours is `HANG_S`
                derandomize=not random,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            chosen(make(tally))()
            told[name] = tally.told()
    return told


def in_a_child(inputs: int, random: bool) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.test_wire_fuzz", str(inputs), *(["random"] if random else [])],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S + 30,
    )
    assert done.returncode == 0, f"the reader ended with {done.returncode}:\n{done.stderr[-4000:]}"
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(told))
    return told


def check(told: dict[str, Any], inputs: int) -> None:
    assert sum(part["inputs"] for part in told.values()) >= inputs
    assert told["bytes"]["meant"] == 0
    for name, codes in DEEP.items():
        assert codes <= told[name]["refused"].keys(), f"{name}: the inputs do not get that deep any more"
        assert name == "bytes" or told[name]["meant"] > 0, f"{name}: nothing is accepted"


def test_a_sample_of_hostile_inputs_is_refused_or_means_what_was_signed() -> None:
    check(in_a_child(QUICK, random=False), int(0.9 * QUICK))


@pytest.mark.slow
def test_twenty_thousand_hostile_inputs_are_refused_or_mean_what_was_signed() -> None:
    """Other ones each time; hypothesis prints the input that is at fault."""
    check(in_a_child(SLOW, random=True), 20_000)


def test_a_reader_that_crashes_or_accepts_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test."""
    monkeypatch.setattr(sys.modules[__name__], "HANG_S", 0.05)
    tally = Tally()
    with pytest.raises(AssertionError, match="not what was signed"):
        judged(tally, lambda: 1, lambda _: False)
    with pytest.raises(AssertionError, match="more than a second"):
        judged(tally, lambda: time.sleep(1.1 * HANG_S), lambda _: True)
    with pytest.raises(KeyError):
        judged(tally, lambda: {}["x"], lambda _: True)


if __name__ == "__main__":
    print(json.dumps(child(int(sys.argv[1]), "random" in sys.argv)))
