"""Identities of whole runs (notes/algorithms.md, section 9) that no other file shows: asynchronous modes with a silo
alone, silos without rows, and what of a private layer is ever said."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core.messages import Reply, Request
from orchestrator.transport.local import LocalChannel
from orchestrator.transport.wire_messages import text_of
from tests.support.blob_federation import blob_job, blob_sites
from tests.support.federation import absent, federate, run_quadratic
from tests.support.quadratic import Quadratic, job_of, problems, silo_makers, sites


@pytest.mark.parametrize("mode", ["fedasync", "async"])
def test_22_asynchronous_with_one_silo_is_local_sgd(tmp_path: Path, mode: str) -> None:
    """To the bit, on a grid of short binary numbers, where no sum is rounded: nothing is ever stale, and a single
    share is 1."""
    grid = {"s0": Quadratic(np.diag([1.0, 2.0, 0.5]), np.array([1.0, -3.0, 0.25]), steps=2, lr=0.5)}
    alone = np.zeros(3, np.float32)
    for _ in range(10):
        alone -= 0.5 * grid["s0"].gradient(alone)
    ended = run_quadratic(job_of(grid, total=5, rounds={"mode": mode}), grid, tmp_path)
    assert ended.params.tobytes() == alone.tobytes() and np.abs(alone).max() > 0.1
    assert {each.staleness for closed in ended.rounds for each in closed.contributors} == {0}


def test_13_a_silo_without_rows_is_an_absent_silo(tmp_path: Path) -> None:
    made = problems()
    made["s2"] = replace(made["s2"], num_rows=0)
    job = job_of(made, total=3, rounds={"min_updates": 3}, strategy={"name": "scaffold"})
    empty = run_quadratic(job, made, tmp_path / "empty")
    site_of = sites(problems(), tmp_path / "silos")
    without = federate(job, absent(site_of, "s2", frozenset(range(3))), tmp_path / "without")
    assert empty.refusals == {("s2", version, "weight") for version in range(3)}
    assert empty.contributors == without.contributors == [["s0", "s1", "s3"]] * 3
    assert empty.bits == without.bits


class Listening(LocalChannel):
    """Keeps the bytes of everything that silos say."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        super().__init__(start)
        self.said: list[bytes] = []

    async def call(self, silo: str, request: Request) -> Reply:
        reply = await super().call(silo, request)
        packet = getattr(reply, "packet", None) or {}
        self.said += [text_of(reply).encode(), *(part.tobytes() for part in packet.values())]
        return reply


def test_43_a_private_head_is_in_no_message_and_in_no_file_of_the_driver(tmp_path: Path) -> None:
    """Byte by byte: no two neighbouring numbers of any silo's head, as it was after any round."""
    job = blob_job(3, private=["head.*"])
    site_of, heads, shared = blob_sites(job, tmp_path / "silos"), [], []
    channels: list[Listening] = []

    def listening(start: Mapping[str, Any]) -> Listening:
        channels.append(Listening(start))
        return channels[-1]

    def during(driver: Any, channel: LocalChannel, event: Any) -> None:
        for site in site_of.values():
            for trainer in site.trainers:
                heads.append(trainer.flat.private.numpy().copy())
        if driver.model.version > 0:
            shared.append(driver.model.state["params"].copy())

    ended = federate(job, silo_makers(dict(site_of)), tmp_path, channel=listening, during=during, limit_s=120)
    assert ended.outcome.status == "done"
    stored = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    said = b"\0".join([*channels[0].said, *stored])
    assert len({head.tobytes() for head in heads}) > 6, "each silo's changes in each round"
    for head in heads:
        pairs = np.stack([head[:-1], head[1:]], axis=1)
        assert not any(pair.tobytes() in said for pair in pairs)
    assert any(part.tobytes() in said for part in shared), "the shared model is found in this way"
