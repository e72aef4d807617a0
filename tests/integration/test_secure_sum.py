"""Jobs whose updates nobody sees: real drivers and silos, silos that are lost at each step, and a driver that lies."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import (
    Answer,
    Ask,
    Fetch,
    Join,
    Joined,
    Piece,
    Refused,
    Reply,
    Request,
    Train,
    Update,
)
from orchestrator.privacy.masking import add_masks
from orchestrator.privacy.sealing import Answers, Fields, Gather, Member, SumHeader
from orchestrator.transport.local import LocalChannel
from silos.silo import Silo
from tests.support.federation import Absent, Ended, Makers, federate
from tests.support.guarded import Clock, guarded, lines
from tests.support.quadratic import PlainSite, job_of, problems, silo_makers, sites

NAMES = tuple(f"s{i}" for i in range(6))
PLAIN, SECURE = {"name": "fixed_point_sum"}, {"name": "secure_sum"}

Losses = Mapping[tuple[str, str, int], str]
"""(silo, step or kind of request, which one from 1) -> ``before`` or ``after``."""


class LosingSteps(LocalChannel):
    """Ends a silo's process at a step of a sum, before or after it worked; another one starts."""

    def __init__(self, start: Makers, losses: Losses) -> None:
        super().__init__(start)
        self.losses, self.asked = losses, Counter[tuple[str, str]]()

    async def call(self, silo: str, request: Request) -> Reply:
        step = request.step if isinstance(request, Ask) else type(request).__name__
        self.asked[silo, step] += 1
        how = self.losses.get((silo, step, self.asked[silo, step]))
        if how is None:
            return await super().call(silo, request)
        if how == "after":
            await super().call(silo, request)
        await self.restart(silo)
        raise SiloLost(silo, f"planted: {how} {step}")


def run(folder: Path, losses: Losses | None = None, total: int = 4, **sections: Any) -> Ended:
    job = job_of(NAMES, total, report={"silos": False}, **{"rounds": {"min_updates": 3}, **sections})
    makers = silo_makers(sites(problems(6), folder / "silos"))
    return federate(job, makers, folder, channel=lambda given: LosingSteps(given, losses or {}))


def run_of(folder: Path, contributors: list[list[str]], **sections: Any) -> Ended:
    """With these silos in the rounds, and the others away: who is back in time after a loss depends on the machine."""
    job = job_of(NAMES, len(contributors), report={"silos": False}, rounds={"min_updates": 3}, **sections)
    makers = silo_makers(sites(problems(6), folder / "silos"))
    away = {
        silo: frozenset(version for version, there in enumerate(contributors) if silo not in there)
        for silo in NAMES
    }
    return federate(
        job, {silo: lambda silo=silo: Absent(makers[silo](), away[silo], silo) for silo in NAMES}, folder
    )


@pytest.mark.parametrize(
    "combine",
    [
        SECURE,
        {**SECURE, "order": "textbook"},
        {**SECURE, "mode": "active"},
        {**SECURE, "ring": "uint16"},
        {**SECURE, "weights": "examples", "max_examples": 550, "weight_levels": 11},
    ],
    ids=["single", "textbook", "active", "uint16", "examples"],
)
def test_the_same_bits_as_the_plain_sum_of_whole_numbers(tmp_path: Path, combine: dict[str, Any]) -> None:
    plain = {name: value for name, value in combine.items() if name not in ("order", "mode")} | PLAIN
    seen = [run(tmp_path / each["name"], combine=each) for each in (plain, combine)]
    assert [ended.outcome.exit_code for ended in seen] == [0, 0]
    assert seen[0].digest == seen[1].digest
    assert [each.sealed.digest for each in seen[0].rounds] == [each.sealed.digest for each in seen[1].rounds]
    assert all(len(closed.contributors) == 6 for closed in seen[1].rounds)
    assert all(each.norm is None for closed in seen[1].rounds for each in closed.contributors)


@pytest.mark.parametrize("order", ["single", "textbook"])
def test_silos_that_are_lost_before_and_after_they_seal(tmp_path: Path, order: str) -> None:
    """One sum loses a silo before it seals; the next one another whose sealed vector cannot be fetched, and in the last
    one a third silo tells no shares, though its vector is in the sum."""
    lost: Losses = {
        ("s2", "seal", 2): "before",
        ("s4", "Fetch", 3): "before",
        ("s1", "unmask", 4): "after",
    }
    secure = run(tmp_path / "secure", lost, combine={**SECURE, "order": order})
    assert secure.outcome.exit_code == 0
    assert [list(each.sealed.left_out) for each in secure.rounds] == [[], ["s2"], ["s4"], []]
    plain = run_of(tmp_path / "plain", secure.contributors, combine=PLAIN)
    assert secure.contributors == plain.contributors
    assert secure.digest == plain.digest


def test_a_sum_that_cannot_be_opened_is_begun_anew(tmp_path: Path) -> None:
    """Two of six silos tell no shares, and five are needed. The four others have told theirs, so that they sum their
    updates again only with those two: the round waits until these are back."""
    plain = run(tmp_path / "plain", combine=PLAIN)
    lost: Losses = {("s1", "unmask", 2): "before", ("s3", "unmask", 2): "before"}
    secure = run(tmp_path / "secure", lost, combine=SECURE)
    assert secure.outcome.exit_code == 0 and secure.digest == plain.digest
    assert all(len(closed.contributors) == 6 for closed in secure.rounds)
    tags = [closed.sealed.tag for closed in secure.rounds]
    assert len(set(tags)) == len(tags)


def test_silos_of_other_speed(tmp_path: Path) -> None:
    """Late-binding cohorts: silos mask among those who are ready, and the others' late updates come in a later sum."""
    rounds = {"mode": "async", "buffer": 4, "max_staleness": 3, "min_updates": 4}
    ended = run(tmp_path, total=6, combine=SECURE, rounds=rounds)
    assert ended.outcome.exit_code == 0
    assert all(len({each.silo for each in closed.contributors}) >= 3 for closed in ended.rounds)
    assert np.isfinite(ended.params).all()


def test_jobs_that_would_hide_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="of fewer than 3 silos hides nothing"):
        job_of(NAMES[:2], combine=SECURE)
    with pytest.raises(ValidationError, match="a round of this job may close with 2 silos"):
        job_of(NAMES, combine=SECURE, rounds={"min_updates": 2})
    for greedy in ({"threshold": 5}, {"colluders": 4}):
        with pytest.raises(ValidationError, match="may close with 4 silos, of whom 5 would have to be left"):
            job_of(NAMES, combine={**SECURE, **greedy}, rounds={"min_updates": 4})
        job_of(NAMES, combine={**SECURE, **greedy}, rounds={"min_updates": 6})


def test_jobs_in_whose_sums_one_silo_is_nearly_alone_are_refused() -> None:
    few = {"s0": 1.0, "s1": 1.0, "s2": 1.0}
    with pytest.raises(ValidationError, match="s3 counts for more than 75% of all"):
        job_of(NAMES[:4], combine={**SECURE, "weights": {**few, "s3": 9.5}}, rounds={"min_updates": 3})
    job_of(NAMES[:4], combine={**SECURE, "weights": {**few, "s3": 9.0}}, rounds={"min_updates": 3})
    job_of(NAMES[:4], combine={**PLAIN, "weights": {**few, "s3": 9.5}})
    late = {"mode": "async", "buffer": 4, "max_staleness": 3, "min_updates": 4}
    with pytest.raises(ValidationError, match=r"3 versions late counts 0\.016 as much as a new one"):
        job_of(NAMES, combine=SECURE, rounds={**late, "staleness_exponent": 3})
    job_of(NAMES, combine=SECURE, rounds={**late, "staleness_exponent": 2})


# a driver that lies, and silos whose owners read what was refused


class Hospitals:
    """Silos under a policy that have trained version 0, and a driver that asks them by hand."""

    def __init__(self, folder: Path, **combine: Any) -> None:
        self.names = NAMES[:4]
        self.job = job_of(self.names, combine={**SECURE, "range": 4.0, **combine}, rounds={"min_updates": 3})
        self.sites = {silo: PlainSite(silo, problem, folder / silo) for silo, problem in problems(4).items()}
        self.silos: dict[str, Silo] = {}
        self.packets: dict[str, Any] = {}
        self.updates: dict[str, Update] = {}
        for silo in self.names:
            self.start(silo)
            self.train(silo)

    def start(self, silo: str) -> None:
        self.silos[silo] = guarded(self.sites[silo], Clock())
        join = Join(run_id="run", epoch=1, job=self.job.model_dump_json(), job_digest=self.job.digest)
        assert isinstance(self.silos[silo].handle(join), Joined)

    def train(self, silo: str, model: float = 0.0, version: int = 0) -> None:
        received = {"params": np.full(5, model, np.float32)}
        update = self.silos[silo].handle(
            Train(
                run_id="run", epoch=1, version=version, attempt=1, model=received, model_digest=f"{version} {model}",
                counted=-1, inline=0,
            )
        )  # fmt: skip
        assert isinstance(update, Update), update
        self.updates[silo] = update

    def header(self, attempt: int = 1, **changes: Any) -> SumHeader:
        point = self.job.combine.fixed_point(self.job.max_in_sum)  # type: ignore[union-attr]
        members = tuple(
            Member(silo, (0,), (update.received,), (1.0,)) for silo, update in sorted(self.updates.items())
        )
        values: dict[str, Any] = dict(
            run_id="run", job_digest=self.job.digest, epoch=1, version=1, attempt=attempt, setup=1, members=members,
            size=5, shapes=(), ring=point.ring, value_bits=point.value_bits, range=point.range,
        )  # fmt: skip
        return SumHeader(**(values | changes))

    def ask(
        self, silo: str, step: str, header: SumHeader | None, attempt: int | None = None, **fields: Any
    ) -> Reply:
        sent = fields if header is None else {"header": header.fields(), **fields}
        number = attempt or (header.attempt if header is not None else 1)
        ask = Ask(
            run_id="run", epoch=1, version=1, attempt=number, step=step, fields=json.loads(json.dumps(sent))
        )
        return self.silos[silo].handle(ask)

    def told(self, silo: str, step: str, header: SumHeader | None, **fields: Any) -> Fields:
        answer = self.ask(silo, step, header, **fields)
        assert isinstance(answer, Answer), answer
        return answer.fields

    def set_up(self) -> None:
        keys = {silo: self.told(silo, "keys", None, setup=1) for silo in self.names}
        for silo in self.names:
            assert self.told(silo, "peers", None, setup=1, keys=keys) == {}

    def sealed(self, header: SumHeader) -> dict[str, Fields]:
        return {silo: self.told(silo, "seal", header) for silo in header.silos}

    def refusals(self, silo: str) -> list[str]:
        return [line["reason"] for line in lines(self.sites[silo], "refused")]

    def refused(self, silo: str, sentence: str, step: str, header: SumHeader | None, **fields: Any) -> None:
        """With this sentence, which the silo's owner can read as well."""
        answer = self.ask(silo, step, header, **fields)
        assert isinstance(answer, Refused) and sentence in answer.reason, answer
        assert answer.code == ("bound" if "was opened in another sum" in answer.reason else "policy")
        assert any(sentence in reason for reason in self.refusals(silo))


@pytest.fixture
def hospitals(tmp_path: Path) -> Hospitals:
    made = Hospitals(tmp_path)
    made.set_up()
    return made


def boxes(sealed: dict[str, Fields], silo: str, among: Any) -> Fields:
    return {each: sealed[each]["boxes"][silo] for each in among if each != silo}


def test_the_hospitals_open_an_honest_sum(hospitals: Hospitals) -> None:
    """The protocol by hand, so that what is refused below is refused for its own reason."""
    header, flow, answers = hospitals.header(), None, None
    flow = hospitals.job.combine.open(header)  # type: ignore[union-attr]
    while True:
        try:
            step = next(flow) if answers is None else flow.send(answers)
        except StopIteration as ended:
            opened = ended.value
            break
        answers = Answers()
        if isinstance(step, Gather):
            rows = [hospitals.silos[silo].handle(_fetch(header)) for silo in step.silos]
            assert all(isinstance(row, Piece) for row in rows)
            answers.total = np.sum([row.packet["values"] for row in rows], axis=0, dtype=np.uint32)  # type: ignore[union-attr]
            continue
        for silo, fields in step.fields.items():
            rest = {name: value for name, value in fields.items() if name != "header"}
            answers.fields[silo] = hospitals.told(silo, step.step, header, **rest)
    point = hospitals.job.combine.fixed_point(hospitals.job.max_in_sum)  # type: ignore[union-attr]
    mean = np.empty(5, np.float32)
    assert point.decode(opened.total, 5, mean).weight == 4
    assert np.abs(mean).max() > 0.01
    hospitals.refused("s0", "was opened, or given up", "unmask", header, survivors=list(NAMES[:4]), boxes={})


def _fetch(header: SumHeader) -> Fetch:
    return Fetch(run_id="run", epoch=1, version=1, start=0, stop=header.length, tag=header.tag.hex())


def test_what_a_header_must_not_say(hospitals: Hospitals) -> None:
    header = hospitals.header()
    own, *others = header.members
    strange = (*header.members, Member("zoe", (0,), own.received, (1.0,)))
    twice = Member("s0", (0, 0), own.received * 2, (1.0, 1.0))
    for sentence, changes in {
        "another model of version 0": {
            "members": tuple(Member(silo, (0,), ("0" * 64,), (1.0,)) for silo in header.silos)
        },
        "different models of version 0": {
            "members": (own, Member("s1", (0,), ("0" * 64,), (1.0,)), *others[1:])
        },
        "zoe: no silo of the job": {"members": strange},
        "not in order": {"members": tuple(reversed(header.members))},
        "this silo is not in the sum": {"members": tuple(others)},
        "a sum of 2 silos": {"members": header.members[:2]},
        "another ring than the job's": {"ring": "uint16"},
        "another run, job, driver": {"job_digest": "0" * 64},
        "no work on version 3 is ready": {"members": (Member("s0", (3,), own.received, (1.0,)), *others)},
        "factor 2": {"members": (Member("s0", (0,), own.received, (2.0,)), *others)},
        "no header of a sum": {"range": "wide"},
        "of the ring": {"range": 1e9},
        "more updates than the ring": {"members": (twice, *others)},
        "what s0 is to bring is not said, or said twice": {"members": (twice, *others[:2])},
        "what s1 is to bring is not said": {"members": (own, Member("s1", (0,), (), (1.0,)), *others[1:])},
        "what s2 is to bring is not said": {"members": (own, others[0], Member("s2", (), (), ()), others[2])},
        "metrics of an absurd size": {"shapes": (("loss", "mean", 1 << 40),)},
        "no keys were exchanged with this silo for set-up 2": {"setup": 2},
    }.items():
        hospitals.refused("s0", sentence, "seal", hospitals.header(**changes))
    hospitals.refused("s0", "another ring than the job's", "seal", hospitals.header(value_bits=8))
    for shapes in ((("loss", "mean", -2),), (("loss" * 10**5, "mean", 2),)):
        hospitals.refused("s0", "metrics of an absurd size", "seal", hospitals.header(shapes=shapes))
    hospitals.refused("s0", "version or attempt than the request", "seal", header, attempt=2)
    assert isinstance(hospitals.silos["s0"].handle(_fetch(header)), Refused), "nothing was sealed"


def test_another_model_for_one_silo(tmp_path: Path) -> None:
    """Told openly, it is refused by all; hidden from each of them, masks do not cancel, and boxes do not open."""
    hospitals = Hospitals(tmp_path)
    hospitals.train("s3", model=0.5, version=0)
    hospitals.set_up()
    for silo in hospitals.names:
        hospitals.refused(silo, "different models of version 0", "seal", hospitals.header())
    honest = tuple(
        Member(silo, (0,), (hospitals.updates["s0"].received,), (1.0,)) for silo in hospitals.names
    )
    other = tuple(Member(silo, (0,), (hospitals.updates["s3"].received,), (1.0,)) for silo in hospitals.names)
    stories = {
        silo: hospitals.header(2, members=other if silo == "s3" else honest) for silo in hospitals.names
    }
    sealed = {silo: hospitals.told(silo, "seal", story) for silo, story in stories.items()}
    for silo in hospitals.names[:3]:
        hospitals.refused(
            silo, "was altered on its way, or belongs to another sum", "unmask", stories[silo],
            survivors=list(hospitals.names), boxes=boxes(sealed, silo, hospitals.names),
        )  # fmt: skip


def test_lists_and_repeats_that_a_real_silo_refuses(hospitals: Hospitals) -> None:
    header = hospitals.header()
    sealed = hospitals.sealed(header)
    names = list(hospitals.names)
    hospitals.refused("s0", "was begun before", "seal", header)

    def unmask(survivors: list[str]) -> Fields:
        return {"survivors": survivors, "boxes": boxes(sealed, "s0", survivors)}

    for sentence, survivors in {
        "would show a sum of 2": names[:2],
        "leaves out this silo": names[1:],
    }.items():
        hospitals.refused("s0", sentence, "unmask", header, **unmask(survivors))
    hospitals.refused("s0", "zoe: not in this sum", "unmask", header, survivors=[*names, "zoe"], boxes={})
    hospitals.told("s0", "unmask", header, **unmask(names))
    for survivors in (names, names[:3]):
        hospitals.refused("s0", "was opened, or given up", "unmask", header, **unmask(survivors))


def test_sums_of_one_update_that_differ_by_one_silo_also_after_a_restart(hospitals: Hospitals) -> None:
    header, names = hospitals.header(), list(hospitals.names)
    sealed = hospitals.sealed(header)
    hospitals.told("s0", "unmask", header, survivors=names, boxes=boxes(sealed, "s0", names))
    hospitals.start("s0")
    hospitals.train("s0")
    hospitals.set_up()
    again = hospitals.header(2)
    sealed = hospitals.sealed(again)
    fewer = names[:3]
    hospitals.refused(
        "s0",
        "opened in another sum, which differs from this one by s3",
        "unmask",
        again,
        survivors=fewer,
        boxes=boxes(sealed, "s0", fewer),
    )


def test_a_driver_that_was_replaced_opens_nothing(hospitals: Hospitals) -> None:
    header = hospitals.header()
    sealed, names = hospitals.sealed(header), list(hospitals.names)
    hospitals.silos["s0"].handle(
        Ask(run_id="run", epoch=2, version=1, attempt=9, step="keys", fields={"setup": 9})
    )
    answer = hospitals.ask("s0", "unmask", header, survivors=names, boxes=boxes(sealed, "s0", names))
    assert isinstance(answer, Refused) and answer.code == "fenced"


def test_a_packet_that_is_fetched_before_its_sum_is_opened_says_nothing(hospitals: Hospitals) -> None:
    """The masked vector is not the silo's own, and the masks of one key alone do not make it so."""
    header = hospitals.header()
    hospitals.sealed(header)
    piece = hospitals.silos["s0"].handle(_fetch(header))
    assert isinstance(piece, Piece)
    half = hospitals.silos["s0"]._sums._half[1]  # type: ignore[index]
    begun = half._sums[header.tag]
    masked = np.array(piece.packet["values"])
    add_masks(masked, [mask.undone for mask in begun.secrets.masks(begun.among)])
    assert masked[5] == 1, "the weight, once all masks are off"
    for one_left in range(4):
        masked = np.array(piece.packet["values"])
        masks = [mask.undone for mask in begun.secrets.masks(begun.among)]
        add_masks(masked, masks[:one_left] + masks[one_left + 1 :])
        assert masked[5] != 1
