"""Real silos of encrypted sums and of sums with two aggregators, and a driver that lies: each silo's owner can read
what was refused. What the protocols refuse in detail stands in the unit tests."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core.messages import Fetch, Piece
from orchestrator.privacy.sealing import Fields, SumHeader, as_text, packet_tag
from tests.integration.test_sealed_sums import run
from tests.integration.test_secure_sum import Hospitals


def fetched(hospitals: Hospitals, silo: str, header: SumHeader, step: str = "seal") -> Any:
    combine = hospitals.job.sums
    assert combine is not None
    tag = packet_tag(header.tag, step)
    fetch = Fetch(run_id="run", epoch=1, version=1, start=0, stop=combine.sealed_size(header), tag=tag)
    piece = hospitals.silos[silo].handle(fetch)
    assert isinstance(piece, Piece), piece
    return piece.packet["values"]


@pytest.fixture
def encrypted(tmp_path: Path) -> Hospitals:
    made = Hospitals(tmp_path, name="encrypted_sum")
    made.set_up()
    key = made.told("s0", "make_key", None, setup=1)
    for silo in made.names[1:]:
        box = key["boxes"][silo]
        assert made.told(silo, "take_key", None, setup=1, maker="s0", key=key["key"], box=box) == {}
    return made


def test_one_silos_ciphertext_is_not_decrypted(encrypted: Hospitals) -> None:
    header, names = encrypted.header(), list(encrypted.names)
    combine = encrypted.job.sums
    assert combine is not None
    encrypted.sealed(header)
    packets = {silo: fetched(encrypted, silo, header) for silo in names}
    consents = {silo: encrypted.told(silo, "agree", header, survivors=names)["consent"] for silo in names}

    def decrypt(rows: list[Any]) -> Fields:
        chunks = as_text(combine.add(rows).tobytes())
        return {"consents": consents, "first": 0, "chunks": chunks}

    for silo, rows in (
        ("s0", [packets["s2"]]),
        ("s1", [packets["s2"]] * 4),
        ("s2", [packets[each] for each in names[:3]]),
    ):
        encrypted.refused(
            silo, "it is not the sum of what these silos sealed", "decrypt", header, **decrypt(rows)
        )
        encrypted.refused(silo, "was given up", "decrypt", header, **decrypt(list(packets.values())))
    encrypted.refused("s3", "agreed to another list", "agree", header, survivors=names[1:])
    encrypted.refused("s3", "an encrypted sum has no step 'reveal'", "reveal", header)
    opened = encrypted.told("s3", "decrypt", header, **decrypt(list(packets.values())))
    assert opened["sum"]
    again = encrypted.header(2)
    encrypted.sealed(again)
    encrypted.refused("s0", "a sum of 2 silos", "agree", again, survivors=names[:2])
    encrypted.refused("s0", "the difference would show", "agree", again, survivors=names[:3])


def test_a_silo_that_starts_anew_remembers_what_it_agreed_to(encrypted: Hospitals) -> None:
    header, names = encrypted.header(), list(encrypted.names)
    encrypted.sealed(header)
    encrypted.told("s0", "agree", header, survivors=names)
    encrypted.start("s0")
    encrypted.train("s0")
    encrypted.set_up()
    key = encrypted.told("s0", "make_key", None, setup=1)
    assert key["boxes"].keys() == set(names[1:])
    encrypted.told("s0", "seal", header)
    encrypted.refused("s0", "has been opened already", "agree", header, survivors=names)


def test_the_second_aggregator_answers_once(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, name="two_aggregator_sum", second="s1")
    hospitals.set_up()
    header, names = hospitals.header(), list(hospitals.names)
    boxes = {silo: fields.get("box") for silo, fields in hospitals.sealed(header).items()}
    masked = {silo: fetched(hospitals, silo, header) for silo in names}
    hospitals.refused("s1", "a sum of 2 silos", "reveal", header, survivors=names[:2], boxes=boxes)
    hospitals.refused("s0", "no step 'reveal'", "reveal", header, survivors=names, boxes=boxes)
    hospitals.refused(
        "s1", "altered on its way", "reveal", header, survivors=names, boxes={**boxes, "s0": boxes["s2"]}
    )
    hospitals.told("s1", "reveal", header, survivors=names, boxes=boxes)
    total = np.sum(list(masked.values()), axis=0, dtype=np.uint32) - fetched(
        hospitals, "s1", header, "reveal"
    )
    assert total[5] == 4, "the sum of four weights of one"
    hospitals.refused("s1", "this sum was opened, or", "reveal", header, survivors=names[1:], boxes=boxes)
    others = ["s0", "s2", "s3"]
    hospitals.refused("s1", "has been opened already", "reveal", header, survivors=others, boxes=boxes)
    again = hospitals.header(2)
    boxes = {silo: fields.get("box") for silo, fields in hospitals.sealed(again).items()}
    hospitals.refused("s1", "the difference would show", "reveal", again, survivors=names[:3], boxes=boxes)


def test_without_tenseal_the_run_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.privacy.bfv import self_test

    self_test.cache_clear()
    monkeypatch.setitem(sys.modules, "tenseal", None)
    ended = run(tmp_path, "encrypted_sum")
    assert ended.outcome.exit_code != 0
    assert "siloray[encrypted]" in ended.outcome.reason
