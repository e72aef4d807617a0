"""A driver that gets at single silos by more than one sum, or by what it asks besides sums: real silos refuse, also in
another run, after a restart, and when they were told to forget. Each attack succeeds where its check is taken out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core.messages import Answer, Fetch, Refused
from orchestrator.job import Job
from orchestrator.privacy.sealing import SumFailed
from silos import sums
from tests.support.asked_sums import AskedSums
from tests.support.guarded import Clock, guarded
from tests.support.quadratic import job_of

SECURE: dict[str, Any] = {"name": "secure_sum", "colluders": 0}
KINDS = [SECURE, {"name": "two_aggregator_sum", "second": "s1"}, {"name": "encrypted_sum", "value_bits": 14}]
NAMES = tuple(f"s{i}" for i in range(6))
SHAPES = (("loss", "mean", 2),)


def anew(asked: AskedSums) -> None:
    asked.train()
    asked.set_up()


def as_another_run(asked: AskedSums) -> None:
    asked.leave(finished=False)
    asked.run_id = "another"
    for silo in asked.names:
        asked.join(silo)
    anew(asked)


def as_the_same_run_that_was_over(asked: AskedSums) -> None:
    """The silos were told to remove what they had of it."""
    asked.leave(finished=True)
    for silo in asked.names:
        asked.join(silo)
    anew(asked)


def as_another_job(asked: AskedSums) -> None:
    """That trains alike."""
    asked.job = Job.model_validate({**asked.job.model_dump(mode="json"), "name": "another"})
    as_another_run(asked)


def by_new_processes(asked: AskedSums) -> None:
    for silo in asked.names:
        asked.silos[silo] = guarded(asked.sites[silo], Clock())
        asked.join(silo)
    anew(asked)


def as_another_version(asked: AskedSums) -> None:
    """The same model: where all rows are in one batch, the update is the same."""
    asked.train(version=1)


@pytest.mark.parametrize("combine", KINDS, ids=lambda combine: combine["name"])
@pytest.mark.parametrize(
    "again",
    [as_another_run, as_the_same_run_that_was_over, as_another_job, by_new_processes, as_another_version],
)
def test_the_same_updates_without_one_silo(
    tmp_path: Path, combine: dict[str, Any], again: Callable[[AskedSums], None]
) -> None:
    asked = AskedSums(tmp_path, {**combine, "range": 4.0})
    anew(asked)
    asked.opened(asked.header())
    again(asked)
    version = 1 if again is as_another_version else 0
    members = [asked.member(silo, version) for silo in NAMES]
    header = asked.header(members, version=version + 1)
    with pytest.raises(SumFailed, match=r"which differs from this one by .*s5 0"):
        asked.opened(header, without=["s5"])


def test_the_same_silos_may_try_other_kinds_of_sums(tmp_path: Path) -> None:
    """One after the other, of the same updates."""
    for number, combine in enumerate([*KINDS, {**SECURE, "ring": "uint16"}]):
        asked = AskedSums(tmp_path, combine)
        asked.leave(finished=False)
        asked.run_id = f"run-{number}"
        for silo in NAMES:
            asked.join(silo)
        anew(asked)
        header = asked.header()
        assert asked.opened(header)[asked.updates["s0", 0].size] == 6


def test_the_same_sum_again_is_opened_in_another_run(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0})
    anew(asked)
    first = asked.opened(asked.header())
    as_another_run(asked)
    assert np.array_equal(asked.opened(asked.header()), first)


def test_other_updates_may_be_summed_without_one_silo(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0})
    anew(asked)
    asked.opened(asked.header())
    asked.train(version=1, model=0.1)
    header = asked.header([asked.member(silo, 1) for silo in NAMES], version=2)
    asked.opened(header, without=["s5"])


def test_what_another_run_left_behind_is_in_no_sum(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0})
    anew(asked)
    header = asked.header()
    sealed = asked.told("s0", "seal", header, {"header": header.fields()})
    assert isinstance(sealed, Answer)
    found = asked.evaluate(0)
    asked.leave(finished=False)
    for silo in NAMES:
        asked.join(silo)
    asked.set_up()
    fetch = Fetch(run_id="run", epoch=1, version=1, start=0, stop=1, tag=header.tag.hex())
    assert isinstance(asked.silos["s0"].handle(fetch), Refused)
    told = [type(each)(each.silo, (0,), (found[each.silo].received,), (1.0,)) for each in header.members]
    for other in (asked.header(), asked.header(told, size=0)):
        reply = asked.told("s0", "seal", other, {"header": other.fields()})
        assert isinstance(reply, Refused) and reply.reason == "no work on version 0 is ready here"


def test_a_job_without_sums_has_no_steps_of_them(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {"name": "mean"})
    asked.train()
    for step in ("keys", "seal"):
        reply = asked.told("s0", step, None, {"setup": 1})
        assert (
            isinstance(reply, Refused) and reply.reason == f"the job's combiner 'mean' has no step '{step}'"
        )


# what makes the part of others small


def test_versions_so_far_apart_that_the_others_count_for_nothing(tmp_path: Path) -> None:
    """Versions are the driver's numbers: of an update from before ten billion versions nothing is left."""
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0})
    anew(asked)
    late = 10**10
    asked.train(version=late, model=0.1, silos=["s5"])
    factor = asked.job.policy.discount(late)
    members = [*(asked.member(silo, 0, factor) for silo in NAMES[:5]), asked.member("s5", late)]
    with pytest.raises(
        SumFailed, match="s0: an update that is 10000000000 versions late, where the job allows 0"
    ):
        asked.opened(asked.header(members, version=late + 1))


ADAPTIVE = [{"name": "adaptive_clip", "initial_norm": 1.0, "max_norm": 10.0}]


def test_another_bound_for_the_others(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0}, privacy=ADAPTIVE)
    asked.train(settings={"clip_norm": 1e-9}, silos=NAMES[:5])
    asked.train(settings={"clip_norm": 1.0}, silos=NAMES[5:])
    asked.set_up()
    with pytest.raises(SumFailed, match="different settings of version 0"):
        asked.opened(asked.header(size=6))
    honest = asked.updates["s5", 0].settings
    told = [asked.member(silo) for silo in NAMES]
    hidden = [type(each)(each.silo, each.versions, each.received, each.factors, (honest,)) for each in told]
    with pytest.raises(SumFailed, match="s0: this silo had other settings of version 0"):
        asked.opened(asked.header(hidden, size=6))


def test_a_training_that_is_cut_short_where_the_job_foresees_none(tmp_path: Path) -> None:
    """All but one silo told to hand in after a step: their part of the sum is small."""
    sum_, scaffold = {**SECURE, "range": 4.0}, {"name": "scaffold"}
    whole = AskedSums(tmp_path / "whole", sum_, strategy=scaffold)
    whole.train()
    for name, rounds, cut in (("no", {}, False), ("foreseen", {"deadline_s": 60.0, "partial": True}, True)):
        asked = AskedSums(tmp_path / name, sum_, strategy=scaffold, rounds={"min_updates": 3, **rounds})
        for silo in NAMES[:5]:
            asked.stop(silo, hand_in=0)
        asked.train()
        for silo in NAMES[:5]:
            assert np.array_equal(asked.own(silo)[0], whole.own(silo)[0]) is not cut


# figures that leave in sums only


def test_figures_of_one_model_in_two_sums(tmp_path: Path) -> None:
    """Evaluated as two versions, or in a training and in an evaluation: what the sums differ by is one silo's."""
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0}, summed=NAMES)
    anew(asked)
    members = {silo: asked.member(silo) for silo in NAMES}
    whole = asked.figures(asked.header(shapes=SHAPES))
    assert np.allclose(whole, sum(asked.own(silo)[1] for silo in NAMES), atol=1e-3)
    for version in (0, 1):
        found = asked.evaluate(version)
        told = [
            type(each)(silo, (version,), (found[silo].received,), (1.0,), (), found[silo].hidden)
            for silo, each in members.items()
        ]
        header = asked.header(told, version=version, size=0, shapes=SHAPES)
        with pytest.raises(SumFailed, match="was opened in another sum"):
            asked.figures(header, without=["s5"])


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 6])
def test_figures_that_few_hide_are_in_no_sum(tmp_path: Path, num: int) -> None:
    """Of six silos some tell their figures openly: these are no cover. Two of the others may be lost on the way."""
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0}, summed=NAMES[:num])
    anew(asked)
    found = asked.figures(asked.header(shapes=SHAPES))
    openly = sum(asked.own(silo)[1] for silo in NAMES[num:])
    lost = 6 - max(3, asked.job.combine.enough(6))  # type: ignore[union-attr]
    hidden = sum(asked.own(silo)[1] for silo in NAMES[:num]) if num - lost >= 3 else 0
    assert np.allclose(found, openly + hidden, atol=1e-3)


def test_who_hides_figures_is_not_for_the_driver_to_say(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0}, summed=["s0"])
    anew(asked)
    told = [asked.member(silo) for silo in NAMES]
    all_hide = [type(m)(m.silo, m.versions, m.received, m.factors, m.settings, ("loss",)) for m in told]
    with pytest.raises(SumFailed, match="s1: this silo tells other figures in no other way"):
        asked.figures(asked.header(all_hide, shapes=SHAPES))


def test_a_plain_sum_shows_no_figures_that_are_told_in_no_other_way(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {"name": "fixed_point_sum", "range": 4.0}, summed=NAMES)
    anew(asked)
    assert not asked.figures(asked.header(shapes=SHAPES)).any()


# the job and the rules that count are those of now


def test_another_job_under_the_same_name_of_a_run(tmp_path: Path) -> None:
    """Its sums are those of its own terms: signed lists, which the first one did without."""
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0})
    anew(asked)
    asked.job = job_of(NAMES, combine={**SECURE, "range": 4.0, "mode": "active"}, rounds={"min_updates": 4})
    for silo in NAMES:
        asked.join(silo)
    anew(asked)
    header = asked.header()
    fields = {"header": header.fields(), "survivors": list(NAMES), "boxes": {}, "signatures": {}}
    assert not isinstance(asked.told("s0", "seal", header, fields), Refused)
    reply = asked.told("s0", "unmask", header, fields)
    assert isinstance(reply, Refused) and "has not signed this list" in reply.reason
    assert asked.opened(asked.header())[5] == 6


def test_the_organisations_rules_may_change_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0})
    anew(asked)
    header = asked.header()
    assert not isinstance(asked.told("s0", "seal", header, {"header": header.fields()}), Refused)
    now = sums.Rules(least=6)
    monkeypatch.setattr(type(asked.sites["s0"]), "sum_rules", property(lambda site: now))
    fields = {"header": header.fields(), "survivors": list(NAMES[:5]), "boxes": {}}
    reply = asked.told("s0", "unmask", header, fields)
    assert isinstance(reply, Refused) and "opens no sum of fewer than 6" in reply.reason


def test_keys_of_others_than_the_jobs_silos(tmp_path: Path) -> None:
    """The first key that a silo sees of a name is the one that counts later: it takes none of names that it has no
    business with."""
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0})
    keys = {}
    for silo in NAMES:
        keys[silo] = asked.told(silo, "keys", None, {"setup": 1}).fields
    for named in ({**keys, "zoe": keys["s1"]}, {**keys, "zoe": {}}):
        reply = asked.told("s0", "peers", None, {"setup": 1, "keys": named})
        assert isinstance(reply, Refused) and reply.reason == "zoe: no silo of the job that trains"
    assert not isinstance(asked.told("s0", "peers", None, {"setup": 1, "keys": keys}), Refused)
