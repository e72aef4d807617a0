"""What a sum asks for is held against the silo's own work, and no more of it is kept than a driver may need."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.messages import Answer, Fetch, Piece, Refused
from orchestrator.privacy.sealing import SumHeader
from tests.support.asked_sums import SIZE, AskedSums

SECURE: dict[str, Any] = {"name": "secure_sum", "colluders": 0, "range": 4.0}


def seal(asked: AskedSums, silo: str, header: SumHeader) -> Any:
    return asked.told(silo, "seal", header, {"header": header.fields()})


@pytest.fixture
def asked(tmp_path: Path) -> AskedSums:
    made = AskedSums(tmp_path, SECURE)
    made.train()
    made.set_up()
    return made


def test_another_training_of_the_version_than_the_last(asked: AskedSums) -> None:
    first = [asked.member(silo) for silo in asked.names]
    asked.train(draw=1)
    reply = seal(asked, "s0", asked.header(first))
    assert isinstance(reply, Refused) and reply.reason == "training 1 of version 0 is ready here, not 0"
    assert isinstance(seal(asked, "s0", asked.header()), Answer)


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_another_size_than_the_updates(asked: AskedSums, size: int) -> None:
    reply = seal(asked, "s0", asked.header(size=size))
    assert isinstance(reply, Refused) and "elements" in reply.reason, reply


def test_an_update_that_is_no_longer_here(asked: AskedSums) -> None:
    members = [asked.member(silo) for silo in asked.names]
    asked.train(version=1, model=0.1)
    reply = seal(asked, "s0", asked.header(members))
    assert isinstance(reply, Refused) and reply.reason == "the update of version 0 is no longer here"


def test_a_second_aggregator_that_is_no_member_has_nothing_to_seal(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {"name": "two_aggregator_sum", "second": "s1"})
    asked.train()
    asked.set_up()
    reply = seal(asked, "s1", asked.header([asked.member(silo) for silo in asked.names if silo != "s1"]))
    assert isinstance(reply, Refused) and reply.reason == "this silo is not in the sum"


def test_old_packets_are_dropped(asked: AskedSums) -> None:
    headers = [asked.header() for _ in range(5)]
    for header in headers:
        assert isinstance(seal(asked, "s0", header), Answer)
    replies = [
        asked.silos["s0"].handle(
            Fetch(run_id="run", epoch=1, version=1, start=0, stop=header.length, tag=header.tag.hex())
        )
        for header in headers
    ]
    assert [type(each) for each in replies] == [Refused, Refused, Piece, Piece, Piece]
