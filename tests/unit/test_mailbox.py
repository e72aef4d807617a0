"""A silo's mailbox: requests wait until they are answered, replies are put together in whatever order they come."""

import asyncio
import json
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import (
    Fetch,
    Initial,
    Join,
    Joined,
    Piece,
    Ping,
    Progress,
    Refused,
    Train,
    Update,
)
from orchestrator.transport.mailbox import CHUNK, MAX_ELEMENTS, UNIT, Incoming, Mailbox, Pending
from orchestrator.transport.wire import MAX_COLUMNS, WireError
from orchestrator.transport.wire_messages import text_of

HEAD: dict[str, Any] = {"run_id": "run", "epoch": 1}
PIECE = text_of(Piece(packet={}))


def piece(sizes: dict[str, tuple[str, int]]) -> Incoming:
    return Incoming("Piece", PIECE, sizes)


def progress(silo: str = "a") -> Progress:
    return Progress(silo=silo, incarnation="i", phase="idle", version=0, num_steps=0, total_steps=0, marks=0)


def joined(num_shared: int) -> Joined:
    text = dict.fromkeys(("incarnation", "schema_digest", "fingerprint", "device", "node"), "")
    return Joined(
        silo="a", num_parameters=5, num_shared=num_shared, num_examples={}, model={}, versions={}, **text
    )


def train(inline: int) -> Train:
    return Train(**HEAD, version=0, attempt=1, model=None, model_digest="", counted=-1, inline=inline)


def with_box(work: Callable[[Mailbox], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(Mailbox("a")), 20))


def refused(code: str, of: Callable[..., Any], *given: Any) -> None:
    with pytest.raises(WireError) as error:
        of(*given)
    assert error.value.code == code, error.value


# A reply in pieces


def test_parts_in_any_order_make_the_reply_once() -> None:
    values = np.random.default_rng(0).normal(size=5 * UNIT + 17).astype(np.float32)
    starts = [*range(0, values.size, UNIT)]
    for seed in range(20):
        incoming = piece({"values": ("float32", values.size)})
        order = random.Random(seed).sample(starts, len(starts))
        done = [incoming.put("values", at, values[at : at + UNIT])[1] for at in order]
        assert done == [False] * (len(order) - 1) + [True]
        assert incoming.reply().packet["values"].tobytes() == values.tobytes()


def test_parts_that_come_twice_or_overlap_change_nothing() -> None:
    values = np.arange(4 * UNIT, dtype=np.float32)
    incoming = piece({"values": ("float32", values.size)})
    spans = [(1, 2), (1, 2), (0, 3), (2, 3), (0, 3)]
    put = [incoming.put("values", a * UNIT, values[a * UNIT : b * UNIT]) for a, b in spans]
    assert put == [(4 * UNIT, False), (0, False), (8 * UNIT, False), (0, False), (0, False)], "new bytes"
    assert incoming.put("values", 3 * UNIT, values[3 * UNIT :]) == (4 * UNIT, True)
    assert incoming.put("values", 3 * UNIT, values[3 * UNIT :]) == (0, False), "complete is said once"
    assert incoming.reply().packet["values"].tobytes() == values.tobytes()


def test_what_came_cannot_be_written_over() -> None:
    """Not before the reply is complete, and not when the driver has it."""
    values = np.arange(2 * UNIT + 5, dtype=np.float32)
    incoming, other = piece({"values": ("float32", values.size)}), np.full_like(values, np.nan)
    incoming.put("values", UNIT, values[UNIT : 2 * UNIT])
    assert incoming.put("values", 0, other[: 2 * UNIT])[0] == 4 * UNIT, "only the first unit is new"
    incoming.put("values", 2 * UNIT, values[2 * UNIT :])
    taken = incoming.reply().packet["values"]
    incoming.put("values", 0, other)
    assert np.isnan(taken[:UNIT]).all() and np.array_equal(taken[UNIT:], values[UNIT:])


def test_of_many_threads_one_completes_the_reply() -> None:
    values = np.arange(64 * UNIT, dtype=np.uint16)
    incoming, said = piece({"values": ("uint16", values.size)}), []

    def put(first: int) -> None:
        for at in range(first, 64, 4):
            said.append(incoming.put("values", at * UNIT, values[at * UNIT : (at + 1) * UNIT])[1])

    threads = [threading.Thread(target=put, args=(first % 4,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said.count(True) == 1 and incoming.reply().packet["values"].tobytes() == values.tobytes()


def test_a_reply_of_several_vectors_waits_for_all() -> None:
    incoming = piece({"values": ("uint16", 5), "scale": ("float32", 1)})
    assert incoming.put("values", 0, np.zeros(5, np.uint16)) == (10, False)
    assert incoming.put("scale", 0, np.ones(1, np.float32)) == (4, True)


@pytest.mark.parametrize(
    ("name", "start", "values"),
    [
        ("other", 0, np.zeros(UNIT, np.float32)),
        ("values", 0, np.zeros(UNIT, np.float64)),
        ("values", 0, np.zeros(UNIT, np.int32)),
        ("values", 0, np.zeros(UNIT, ">f4")),
        ("values", -UNIT, np.zeros(UNIT, np.float32)),
        ("values", 2 * UNIT, np.zeros(UNIT, np.float32)),
        ("values", 0, np.zeros(3 * UNIT, np.float32)),
        ("values", 1, np.zeros(UNIT, np.float32)),
        ("values", 0, np.zeros(UNIT - 1, np.float32)),
        ("values", 0, np.zeros(0, np.float32)),
        ("values", 1 << 70, np.zeros(UNIT, np.float32)),
        ("values", -(1 << 70), np.zeros(UNIT, np.float32)),
    ],
)
def test_parts_that_were_not_announced_so_are_refused(name: str, start: int, values: Any) -> None:
    incoming = piece({"values": ("float32", 2 * UNIT + 5)})
    refused("schema", incoming.put, name, start, values)
    assert incoming.put("values", 0, np.zeros(2 * UNIT + 5, np.float32))[1], "nothing of it counted"


# Announcements


def test_no_more_is_announced_than_was_asked_for() -> None:
    async def work(box: Mailbox) -> None:
        cases = [
            (Fetch(**HEAD, version=0, start=3, stop=8), 5),
            (train(7), 7),
            (train(0), 0),
            (Ping(**HEAD), 0),
            (Join(**HEAD, job="", job_digest=""), 0),
            (Initial(**HEAD), 0),
        ]
        for request, most in cases:
            pending = box.post(request)
            refused("oversize", box.expect, pending, "Piece", PIECE, {"values": ["float32", most + 1]})
            if most:
                found = box.expect(pending, "Piece", PIECE, {"values": ["float32", most]})
                assert found.arrays["values"].size == most

    with_box(work)


def test_the_initial_parameters_are_as_many_as_the_silo_said() -> None:
    async def work(box: Mailbox) -> None:
        box.answer(box.post(Join(**HEAD, job="", job_digest="")), joined(12))
        pending = box.post(Initial(**HEAD))
        refused("oversize", box.expect, pending, "Piece", PIECE, {"params": ["float32", 13]})
        assert box.expect(pending, "Piece", PIECE, {"params": ["float32", 12]})

    with_box(work)


def test_a_silo_that_claims_a_model_without_bounds_gets_no_memory_for_it() -> None:
    async def work(box: Mailbox) -> None:
        box.answer(box.post(Join(**HEAD, job="", job_digest="")), joined(1 << 62))
        pending = box.post(Initial(**HEAD))
        refused("oversize", box.expect, pending, "Piece", PIECE, {"params": ["float32", MAX_ELEMENTS + 1]})

    with_box(work)


@pytest.mark.parametrize(
    "announced",
    [
        {"values": ["object", 1]},
        {"values": ["int64", 1]},
        {"values": ["float32", 0]},
        {"values": ["float32", -1]},
        {"values": ["float32", 1.5]},
        {"values": ["float32", "1"]},
        {"values": ["float32", None]},
        {"values": ["float32"]},
        {"values": ["float32", 1, 1]},
        {"values": "f4"},
        {"values": None},
        {"values": {"0": "float32", "1": 1}},
        {"\ud800": ["float32", 99]},
        {f"v{at}": ["float32", 1] for at in range(MAX_COLUMNS + 1)},
        ["values"],
        "values",
        7,
    ],
    ids=lambda announced: ascii(announced)[:40],
)
def test_announcements_that_are_none_are_refused(announced: Any) -> None:
    async def work(box: Mailbox) -> None:
        pending = box.post(train(9))
        refused("oversize", box.expect, pending, "Update", "{}", announced)
        assert pending.incoming is None

    with_box(work)


def test_what_is_announced_again_goes_on_and_what_is_announced_otherwise_begins_anew() -> None:
    """A silo that was cut off says again what it said; one that was asked again has another answer."""

    async def work(box: Mailbox) -> None:
        pending = box.post(Fetch(**HEAD, version=0, start=0, stop=2 * UNIT))
        sizes = {"values": ["float32", 2 * UNIT]}
        first = box.expect(pending, "Piece", PIECE, sizes)
        first.put("values", 0, np.zeros(UNIT, np.float32))
        assert box.expect(pending, "Piece", PIECE, sizes) is first
        assert box.expect(pending, "Piece", "{ }", sizes) is not first

    with_box(work)


# Requests


def ids(found: tuple[list[Pending], bool]) -> list[str]:
    return [pending.id for pending in found[0]]


def test_requests_come_in_their_order_and_again_when_the_silo_does_not_hold_them() -> None:
    async def work(box: Mailbox) -> None:
        posted = [box.post(Ping(**HEAD)).id for _ in range(3)]
        assert ids(box.fetch([], 0)) == posted
        assert ids(box.fetch(posted, 0)) == [], "it has them"
        assert ids(box.fetch(posted[1:], 0)) == posted[:1], (
            "the answer that held this one was lost on the way"
        )
        assert ids(box.fetch([], 0)) == posted, "it lost all"
        assert ids(box.fetch(["never heard of", *posted], 0)) == []

    with_box(work)


def test_a_request_is_not_given_again_once_it_is_answered_or_no_longer_wanted() -> None:
    async def work(box: Mailbox) -> None:
        one, other = box.post(Ping(**HEAD)), box.post(Ping(**HEAD))
        box.answer(one, progress())
        box.drop(other)
        assert ids(box.fetch([], 0)) == [] and box.find(one.id) is None and box.find(other.id) is None
        assert await one.future == progress()

    with_box(work)


def test_who_waits_for_a_request_is_woken() -> None:
    async def work(box: Mailbox) -> None:
        waiting = asyncio.create_task(asyncio.to_thread(box.fetch, [], 15.0))
        await asyncio.sleep(0.05)
        posted = box.post(Ping(**HEAD))
        assert ids(await asyncio.wait_for(waiting, 5)) == [posted.id]
        waiting = asyncio.create_task(asyncio.to_thread(box.fetch, [posted.id], 15.0))
        await asyncio.sleep(0.05)
        box.close()
        assert ids(await asyncio.wait_for(waiting, 5)) == []

    with_box(work)


def test_an_answer_that_nobody_waits_for_disturbs_nobody() -> None:
    async def work(box: Mailbox) -> None:
        pending = box.post(Ping(**HEAD))
        box.answer(pending, progress())
        box.answer(pending, Refused(silo="a", code="failed", reason="the second answer"))
        box.drop(pending)
        box.drop(pending)
        assert await pending.future == progress(), "the first one counts"
        await asyncio.sleep(0)

    with_box(work)


def test_an_answer_in_the_name_of_another_silo_is_no_answer() -> None:
    async def work(box: Mailbox) -> None:
        pending = box.post(Ping(**HEAD))
        refused("identity", box.answer, pending, progress("b"))
        assert box.find(pending.id) is pending and not pending.future.done()

    with_box(work)


def test_another_incarnation_loses_what_was_asked() -> None:
    async def work(box: Mailbox) -> None:
        box.hello("one")
        pending = box.post(Ping(**HEAD))
        box.hello("one")
        assert box.find(pending.id) is pending, "the same one has only been cut off"
        box.hello("two")
        with pytest.raises(SiloLost, match="anew"):
            await pending.future
        assert box.find(pending.id) is None
        after = box.post(Ping(**HEAD))
        assert ids(box.fetch([pending.id], 0)) == [after.id]

    with_box(work)


def test_a_restart_is_told_once_and_loses_what_was_asked() -> None:
    async def work(box: Mailbox) -> None:
        pending = box.post(Ping(**HEAD))
        box.restart()
        with pytest.raises(SiloLost, match="restarted"):
            await pending.future
        assert box.fetch([], 0) == ([], True)
        assert box.fetch([], 0) == ([], False)

    with_box(work)


def test_a_silo_that_came_back_by_itself_is_not_told_to_restart() -> None:
    async def work(box: Mailbox) -> None:
        box.restart()
        box.hello("new")
        assert box.fetch([], 0) == ([], False)

    with_box(work)


def test_a_part_is_at_most_a_chunk_and_chunks_are_units() -> None:
    assert CHUNK % UNIT == 0


def test_an_update_put_together_is_the_update_that_was_sent() -> None:
    async def work(box: Mailbox) -> None:
        size = 3 * UNIT + 1
        pending = box.post(train(size))
        fields: dict[str, Any] = {
            **HEAD, "silo": "a", "version": 0, "attempt": 1, "model_digest": "", "job_digest": "",
            "weight": 1.0, "num_examples": 1, "num_steps": 1, "scalars": {}, "metrics": {},
            "train_metrics": {}, "seconds": {}, "packet_bytes": 4 * size,
        }  # fmt: skip
        values = np.arange(size, dtype=np.float32)
        text = text_of(Update(**fields, layout=(("delta", size),)))
        assert "packet" not in json.loads(text)
        incoming = box.expect(pending, "Update", text, {"values": ["float32", size]})
        for at in range(0, size, UNIT):
            incoming.put("values", at, values[at : at + UNIT])
        box.answer(pending, incoming.reply())
        update = await pending.future
        assert isinstance(update, Update) and update.packet is not None
        assert update.packet["values"].tobytes() == values.tobytes() and update.layout == (("delta", size),)

    with_box(work)
