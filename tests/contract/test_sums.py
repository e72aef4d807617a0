"""Sums that nobody can look into, over every channel: their questions, their keys and their packets arrive whole."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.job import Job
from orchestrator.privacy.encrypted_sum import CHUNKS_AT_A_TIME
from orchestrator.privacy.encrypted_terms import SUM_CHUNK_BYTES
from orchestrator.transport.wire import MAX_HEADER
from tests.contract.conftest import Documents, Open
from tests.contract.test_contract import expected, job_of, run

SEALED: list[dict[str, Any]] = [
    {"name": "secure_sum", "mode": "active"},
    {"name": "two_aggregator_sum", "second": "hungarian"},
    {"name": "encrypted_sum"},
]


def summed(combine: dict[str, Any]) -> Job:
    return job_of(total=2, rounds={"min_updates": 3}, combine={"value_bits": 14, **combine})


@pytest.mark.parametrize("combine", SEALED, ids=[each["name"] for each in SEALED])
def test_every_sum_is_the_plain_sum_over_every_channel(
    channel: Open, documents: Documents, tmp_path: Path, combine: dict[str, Any]
) -> None:
    seen = run(channel, summed(combine), documents, tmp_path)
    assert seen.outcome.status == "done" and not seen.losses and not seen.refusals
    assert seen.digest == expected(summed({"name": "fixed_point_sum"}))[0]


def test_the_longest_question_fits_a_message() -> None:
    """Of a sum's ciphertexts, as text in JSON in JSON: a frame's header is signed, and has its bounds."""
    longest = CHUNKS_AT_A_TIME * SUM_CHUNK_BYTES * 4 / 3
    assert longest < 0.75 * MAX_HEADER
