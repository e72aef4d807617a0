"""Sums that nobody can look into, over every channel: their questions, their keys and their packets arrive whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.events import RoundClosed
from orchestrator.core.messages import Reply, Request
from orchestrator.core.protocols import Channel
from orchestrator.job import Job
from orchestrator.privacy.encrypted_sum import CHUNKS_AT_A_TIME
from orchestrator.privacy.encrypted_terms import SUM_CHUNK_BYTES
from orchestrator.transport.wire import MAX_HEADER
from tests.contract.conftest import Documents, Open, local, vanish, write_documents
from tests.contract.test_contract import expected, job_of, run

SEALED: list[dict[str, Any]] = [
    {"name": "secure_sum", "mode": "active"},
    {"name": "two_aggregator_sum", "second": "hungarian"},
    {"name": "encrypted_sum"},
]


QUORUM = {"mode": "quorum", "deadline_s": 120, "patience_s": 4}


def summed(combine: dict[str, Any], **rounds: Any) -> Job:
    return job_of(total=2, rounds={"min_updates": 3, **rounds}, combine={"value_bits": 14, **combine})


def losing(open_: Open, silo: str, step: str) -> Open:
    """A channel on which the silo vanishes for good when it is asked for this step of a sum."""

    @contextmanager
    def opened(run_id: str, documents: Documents, patience_s: float) -> Iterator[Channel]:
        with open_(run_id, documents, patience_s) as silos:
            call, there = silos.call, {silo}

            async def lossy(to: str, request: Request) -> Reply:
                if to in there and getattr(request, "step", None) == step:
                    there.remove(to)
                    vanish(silos, to)
                return await call(to, request)

            silos.call = lossy  # type: ignore[method-assign]
            yield silos

    return opened


@pytest.mark.parametrize("combine", SEALED, ids=[each["name"] for each in SEALED])
def test_every_sum_is_the_plain_sum_over_every_channel(
    channel: Open, documents: Documents, tmp_path: Path, combine: dict[str, Any]
) -> None:
    seen = run(channel, summed(combine), documents, tmp_path)
    assert seen.outcome.status == "done" and not seen.losses and not seen.refusals
    assert seen.digest == expected(summed({"name": "fixed_point_sum"}))[0]


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["local", "flight"], indirect=True)
@pytest.mark.parametrize(
    ("combine", "step", "inside"),
    [(each, "seal", False) for each in SEALED] + [(SEALED[0], "unmask", True), (SEALED[2], "agree", True)],
    ids=lambda each: each["name"] if isinstance(each, dict) else str(each),
)
def test_who_vanishes_before_or_after_the_upload(
    channel: Open, documents: Documents, tmp_path: Path, combine: dict[str, Any], step: str, inside: bool
) -> None:
    """As in this process, where a plain sum that loses the silo as early is the same. Over channels on which all silos
    are there from the first round on: a quorum does not wait for an actor that is slow to start."""
    job = summed(combine, **QUORUM)
    seen = run(losing(channel, "va", step), job, documents, tmp_path / "this")
    here = run(losing(local, "va", step), job, write_documents(tmp_path / "a"), tmp_path / "here")
    assert seen.outcome.status == here.outcome.status == "done"
    there = [{each.silo for each in closed.contributors} for closed in seen.of(RoundClosed)]
    assert ["va" in silos for silos in there] == [inside, False]
    assert seen.digest == here.digest
    if not inside:
        plain = summed({"name": "fixed_point_sum"}, **QUORUM)
        fewer = run(losing(local, "va", step), plain, write_documents(tmp_path / "b"), tmp_path / "plain")
        assert seen.digest == fewer.digest


def test_the_longest_question_fits_a_message() -> None:
    """Of a sum's ciphertexts, as text in JSON in JSON: a frame's header is signed, and has its bounds."""
    longest = CHUNKS_AT_A_TIME * SUM_CHUNK_BYTES * 4 / 3
    assert longest < 0.75 * MAX_HEADER
