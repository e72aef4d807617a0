"""What a silo signs: numbers that rise, and commitments that tell nothing until the silo opens them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.core.messages import Leave, Progress, Update
from orchestrator.core.vector import PacketDigest, digest_of, packet_digest
from orchestrator.receipts import contributors_digest, is_signed_by
from silos.silo import Silo
from silos.statements import Statements
from tests.support import guarded
from tests.support.guarded import MODEL, RUN, Clock, join, lines, train
from tests.support.quadratic import PlainSite, job_of, problems


@pytest.fixture
def site(tmp_path: Path) -> PlainSite:
    return PlainSite("s0", problems()["s0"], tmp_path)


def key_of(site: PlainSite) -> str:
    import base64

    return base64.b64encode(site.identity.public).decode()


def test_a_receipt_says_what_was_received_and_what_was_made(site: PlainSite) -> None:
    silo = guarded.guarded(site, Clock())
    silo.handle(join())
    asked = train(head="a" * 64, head_length=7, contributors=("s0", "s1"))
    made = silo.handle(asked)
    assert isinstance(made, Update) and made.receipt is not None and made.packet is not None
    receipt = made.receipt
    assert is_signed_by(receipt, key_of(site))
    assert receipt.received == digest_of(MODEL) == made.received
    assert receipt.update == packet_digest(made.packet) and not receipt.salted
    assert (receipt.head, receipt.head_length) == ("a" * 64, 7)
    assert receipt.contributors == contributors_digest(["s1", "s0"])
    assert receipt.policy == site.guard.policy_digest and len(receipt.policy) == 64
    [told] = lines(site, "update")
    assert (told["receipt"], told["sha256"], told["journal_lines"]) == (receipt.sequence, receipt.update, 7)


def test_numbers_rise_also_where_the_clock_goes_back(site: PlainSite) -> None:
    now = [100.0]
    statements = Statements(site, lambda: now[0])
    leave = Leave(**RUN, finished=True, head="a" * 64, head_length=1)
    first = statements.leave(leave, "job").sequence
    now[0] = 50.0
    assert statements.leave(leave, "job").sequence == first + 1
    now[0] = 200.0
    assert statements.leave(leave, "job").sequence == 200_000_000


def test_the_same_update_asked_for_again_has_a_receipt_of_its_own(site: PlainSite) -> None:
    silo = Silo(site)
    silo.handle(join())
    first, again = silo.handle(train()), silo.handle(train(attempt=2, head="b" * 64, head_length=3))
    assert isinstance(first, Update) and isinstance(again, Update)
    assert first.receipt is not None and again.receipt is not None
    assert again.receipt.update == first.receipt.update
    assert again.receipt.sequence > first.receipt.sequence and again.receipt.attempt == 2
    assert again.receipt.head_length == 3 and is_signed_by(again.receipt, key_of(site))


def test_of_a_sealed_update_the_receipt_tells_nothing_until_the_silo_shows_the_salt(site: PlainSite) -> None:
    job = job_of(["s0", "s1"], total=3, combine={"name": "fixed_point_sum"})
    silo = guarded.guarded(site, Clock())
    silo.handle(join(job))
    made = silo.handle(train())
    assert isinstance(made, Update) and made.receipt is not None
    stored = silo._outbox.get(0)
    assert stored is not None and made.receipt.salted
    digest = packet_digest(stored[1])
    assert made.receipt.update != digest
    [kept] = lines(site, "commitment")
    opened = hashlib.sha256(bytes.fromhex(kept["salt"]) + bytes.fromhex(digest)).hexdigest()
    assert kept["sha256"] == digest and opened == made.receipt.update


def test_who_leaves_signs_the_whole_history(site: PlainSite) -> None:
    silo = Silo(site)
    silo.handle(join())
    gone = silo.handle(Leave(**RUN, finished=True, head="c" * 64, head_length=9))
    assert isinstance(gone, Progress) and gone.receipt is not None
    assert (gone.receipt.kind, gone.receipt.head_length) == ("leave", 9)
    stranger = silo.handle(Leave(**RUN, finished=True, head="c" * 64, head_length=9))
    assert isinstance(stranger, Progress) and stranger.receipt is None, "it is in no run"


def test_a_packets_digest_does_not_depend_on_its_blocks() -> None:
    packet = {"values": np.arange(10, dtype=np.float32), "scale": np.arange(10, dtype=np.uint8)}
    whole = packet_digest(packet)
    pieces = PacketDigest()
    for low, high in ((0, 3), (3, 9), (9, 10)):
        pieces.add({name: array[low:high] for name, array in packet.items()})
    assert pieces.hexdigest() == whole
    for changed in (
        {"values": packet["values"]},
        {**packet, "values": packet["values"].view(np.int32)},
        {"scale": packet["values"], "values": packet["scale"]},
    ):
        assert packet_digest(changed) != whole
    known = [
        [name, array.dtype.str, 10, hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in sorted(packet.items())
    ]
    assert whole == hashlib.sha256(json.dumps(known).encode()).hexdigest()
