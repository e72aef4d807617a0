"""Whole runs in which one silo does its part in sums wrongly: it is left out, and the others' run goes on."""

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestrator.core.events import SiloDown, UpdateRefused, VersionEvaluated
from orchestrator.core.messages import Answer, Ask, Refused, Reply, Request
from orchestrator.transport.local import LocalChannel
from silos.identity import KEY
from silos.metrics_rule import MetricsRule
from tests.integration.test_sealed_sums import KINDS, SEALED, SUM
from tests.support.federation import Ended, Makers, federate
from tests.support.quadratic import Drawing, PlainSite, job_of, problems, silo_makers

NAMES = [f"s{i}" for i in range(5)]
Bend = Callable[[str, Ask, Reply], Reply]


def run(
    folder: Path,
    kind: str,
    bend: Bend,
    *,
    total: int = 2,
    run_id: str = "run",
    lr: float = 0.05,
    metrics: Literal["open", "summed"] = "open",
    **sections: Any,
) -> Ended:
    """``bend`` changes answers to the steps of sums on their way to the driver."""

    class Bending(LocalChannel):
        async def call(self, silo: str, request: Request) -> Reply:
            reply = await super().call(silo, request)
            return bend(silo, request, reply) if isinstance(request, Ask) else reply

    combine = {"name": kind, **SUM, **KINDS[kind], **sections.pop("combine", {})}
    rounds = {"min_updates": 3, **sections.pop("rounds", {})}
    job = job_of(NAMES, total, report={"silos": False}, rounds=rounds, combine=combine, **sections)
    made = problems(len(NAMES), lr=lr)
    makers: Makers = silo_makers(
        {
            name: PlainSite(name, made[name], folder / "silos", Drawing, metrics_rule=MetricsRule(metrics))
            for name in NAMES
        }
    )
    return federate(job, makers, folder, run_id=run_id, channel=Bending, limit_s=60.0)


def bent(silo: str, step: str, **fields: Any) -> Bend:
    """One silo's answer to one step, always."""

    def bend(answering: str, request: Ask, reply: Reply) -> Reply:
        if (answering, request.step) != (silo, step) or not isinstance(reply, Answer):
            return reply
        changed = {name: change(reply.fields.get(name)) for name, change in fields.items()}
        return replace(reply, fields={**reply.fields, **changed})

    return bend


def flipped(text: str) -> str:
    """Another one, as long."""
    data = bytearray(base64.b64decode(text))
    data[0] ^= 1
    return base64.b64encode(data).decode()


def zeros(text: str) -> str:
    return base64.b64encode(bytes(len(base64.b64decode(text)))).decode()


def all_flipped(boxes: dict[str, str]) -> dict[str, str]:
    return {silo: flipped(box) for silo, box in boxes.items()}


def left_out(ended: Ended, silo: str, why: str) -> bool:
    """In every version, and nobody else."""
    assert ended.outcome.exit_code == 0, ended.outcome.reason
    others = [name for name in NAMES if name != silo]
    assert ended.contributors == [others] * len(ended.rounds) and ended.rounds
    told = ended.of(UpdateRefused)
    assert {(each.silo, each.code) for each in told} == {(silo, "sum")}
    return all(why in each.reason for each in told)


@pytest.mark.parametrize(
    "kind, field, change, why",
    [
        ("secure_sum", "key", flipped, "not signed by s3"),
        ("two_aggregator_sum", "signature", flipped, "not signed by s3"),
        ("encrypted_sum", "key", lambda _: 7, "no base64 text"),
        ("secure_sum", "identity", lambda _: None, "no base64 text"),
    ],
)
def test_a_silo_that_shows_a_bad_key(
    tmp_path: Path, kind: str, field: str, change: Callable[[Any], Any], why: str
) -> None:
    assert left_out(run(tmp_path, kind, bent("s3", "keys", **{field: change})), "s3", why)


@pytest.mark.parametrize("kind", SEALED)
def test_a_silo_that_was_installed_anew_and_has_another_key(tmp_path: Path, kind: str) -> None:
    """The others know it by its old one, until somebody tells them."""
    first = run(tmp_path, kind, lambda silo, request, reply: reply, total=1, run_id="first")
    assert first.outcome.exit_code == 0 and first.contributors == [NAMES]
    (tmp_path / "silos" / "keys" / "s3" / KEY).unlink()
    ended = run(tmp_path, kind, lambda silo, request, reply: reply, run_id="next", lr=0.04)
    assert left_out(ended, "s3", "s3 shows another key than when this silo met it first")


@pytest.mark.parametrize("order", ["single", "textbook"])
@pytest.mark.parametrize("change", [all_flipped, lambda boxes: dict.fromkeys(boxes, 7)])
def test_a_silo_whose_boxes_do_not_open(tmp_path: Path, order: str, change: Callable[[Any], Any]) -> None:
    step = "shares" if order == "textbook" else "seal"
    ended = run(tmp_path, "secure_sum", bent("s3", step, boxes=change), combine={"order": order})
    assert left_out(ended, "s3", "the box from s3" if change is all_flipped else "no base64 text")


@pytest.mark.parametrize("order", ["single", "textbook"])
@pytest.mark.parametrize("change", [lambda _: {}, lambda _: "none", lambda boxes: {"s0": boxes["s0"]}])
def test_a_silo_that_sends_too_few_boxes(tmp_path: Path, order: str, change: Callable[[Any], Any]) -> None:
    """As one that is lost before its vector comes."""
    step = "shares" if order == "textbook" else "seal"
    ended = run(tmp_path, "secure_sum", bent("s3", step, boxes=change), combine={"order": order})
    assert ended.outcome.exit_code == 0 and ended.contributors == [["s0", "s1", "s2", "s4"]] * 2
    told = {"s3": "sent no box for each of the others"}
    assert [closed.sealed.left_out for closed in ended.rounds] == [told] * 2


def test_a_silo_whose_masks_do_not_follow_from_its_shares(tmp_path: Path) -> None:
    """Found when others have told theirs: they sum no such updates again without it, and all but it train anew."""
    ended = run(tmp_path, "secure_sum", bent("s3", "seal", checks=zeros))
    assert left_out(ended, "s3", "its keys do not follow from their shares")


def test_a_silo_whose_seed_the_second_aggregator_cannot_read(tmp_path: Path) -> None:
    assert left_out(
        run(tmp_path, "two_aggregator_sum", bent("s3", "seal", box=flipped)), "s3", "the box from s3"
    )


@pytest.mark.parametrize("field, change", [("key", flipped), ("boxes", all_flipped), ("boxes", lambda _: {})])
def test_a_silo_that_hands_out_a_bad_key_of_ciphertexts(
    tmp_path: Path, field: str, change: Callable[[Any], Any]
) -> None:
    """It is the first of the names: the next one makes the key."""
    ended = run(tmp_path, "encrypted_sum", bent("s0", "make_key", **{field: change}))
    assert left_out(ended, "s0", "the key from s0 was altered")


@pytest.mark.parametrize("kind", SEALED)
def test_figures_in_sums_do_without_it_too(tmp_path: Path, kind: str) -> None:
    """The last version's, of which every silo is asked."""
    bend = bent("s3", "keys", signature=flipped)
    ended = run(tmp_path, kind, bend, total=1, metrics="summed")
    assert left_out(ended, "s3", "not signed")
    (last,) = ended.of(VersionEvaluated)
    assert "loss" in last.evaluated.overall
    assert [each.silo for each in ended.of(SiloDown)] == ["s3"]


def accused(of: str, step: str, by: set[str]) -> Bend:
    def bend(silo: str, request: Ask, reply: Reply) -> Reply:
        if silo not in by or request.step != step:
            return reply
        return Refused(silo=silo, code="policy", reason=f"because of {of}", of=of)

    return bend


@pytest.mark.parametrize("of", ["s2", "s3", "nobody", ""])
def test_a_silo_that_names_another_one_alone_is_left_out_itself(tmp_path: Path, of: str) -> None:
    ended = run(tmp_path, "secure_sum", accused(of, "peers", {"s3"}))
    assert ended.outcome.exit_code == 0 and ended.contributors == [["s0", "s1", "s2", "s4"]] * 2
    assert {(silo, code) for silo, _, code in ended.refusals} == {("s3", "policy")}


def test_a_silo_of_no_sum_is_not_at_fault(tmp_path: Path) -> None:
    """However many name it; the run ends instead of asking for ever."""
    ended = run(tmp_path, "secure_sum", accused("nobody", "peers", set(NAMES)))
    assert ended.outcome.exit_code == 4 and "because of nobody" in ended.outcome.reason


def test_one_whom_the_job_requires_is_not_left_out(tmp_path: Path) -> None:
    ended = run(tmp_path, "secure_sum", bent("s3", "keys", signature=flipped), required_silos=["s3"])
    assert ended.outcome.exit_code == 4 and "s3" in ended.outcome.reason
