"""Quorum and veto: arithmetic over all ways to vote."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.core.events import SiloAttacked
from orchestrator.release import ReleaseSettings
from orchestrator.voting import counted, told
from tests.support.torch_site import torch_job

SILOS = tuple("abcdefgh")


def votes_of(text: dict[str, str]) -> dict[str, SiloAttacked]:
    return {
        silo: SiloAttacked(silo=silo, version=3, lineage="l", vote=vote)  # type: ignore[arg-type]
        for silo, vote in text.items()
    }


@given(
    said=st.dictionaries(st.sampled_from(SILOS), st.sampled_from(["pass", "fail", "none"])),
    quorum=st.one_of(st.integers(1, 8), st.floats(0.01, 1.0)),
    veto=st.sets(st.sampled_from(SILOS)),
    size=st.integers(1, 8),
)
def test_enough_votes_and_no_veto(said: dict[str, str], quorum: float, veto: set[str], size: int) -> None:
    silos = SILOS[:size]
    settings = ReleaseSettings(quorum=quorum, veto=tuple(veto))
    voted = counted(votes_of(said), {}, silos, settings, 3, "l")
    passes = sum(said.get(silo) == "pass" for silo in silos)
    vetoed = any(said.get(silo) == "fail" and silo in veto for silo in silos)
    enough = passes >= quorum if isinstance(quorum, int) else passes / size >= quorum - 1e-9
    assert voted.passed == (enough and not vetoed)
    assert (
        voted.votes.keys() | voted.missing.keys() == set(silos)
        and not voted.votes.keys() & voted.missing.keys()
    )
    assert set(voted.missing) == {silo for silo in silos if said.get(silo, "none") == "none"}


@given(
    said=st.dictionaries(st.sampled_from(SILOS), st.sampled_from(["pass", "fail"])),
    silo=st.sampled_from(SILOS),
    veto=st.sets(st.sampled_from(SILOS)),
)
def test_silence_never_helps_and_never_vetoes(said: dict[str, str], silo: str, veto: set[str]) -> None:
    settings = ReleaseSettings(veto=tuple(veto))

    def passed(votes: dict[str, str]) -> bool:
        return counted(votes_of(votes), {}, SILOS, settings, 3, "l").passed

    silent = {each: vote for each, vote in said.items() if each != silo}
    assert passed({**said, silo: "pass"}) >= passed(silent) >= passed({**said, silo: "fail"})


def test_who_did_not_vote_and_why_is_told() -> None:
    votes = votes_of({"a": "pass", "b": "fail", "c": "none"})
    votes["c"] = votes["c"].model_copy(update={"why": "membership: too few rows"})
    voted = counted(votes, {"d": "lost: gone"}, "abcd", ReleaseSettings(quorum=0.5, veto=("b",)), 3, "l")
    assert voted.missing == {"c": "membership: too few rows", "d": "lost: gone"}
    assert voted.vetoed == ["b"] and not voted.passed and voted.needed == 2
    assert told(voted.model_dump()) == (
        "held back (1 of 4 silos voted pass, 2 are needed; fail: b; veto: b; no vote: c, d)"
    )


@pytest.mark.parametrize(
    ("share", "of", "needed"), [(0.75, 4, 3), (0.75, 5, 4), (1.0, 3, 3), (0.6, 5, 3), (2, 9, 2)]
)
def test_a_share_is_rounded_up(share: float, of: int, needed: int) -> None:
    assert ReleaseSettings(quorum=share).needed(of) == needed == math.ceil(needed)


def test_a_number_and_a_share_stay_apart_in_the_document() -> None:
    for quorum in (1, 1.0):
        job = torch_job("abc", release={"quorum": quorum})
        again = type(job).model_validate_json(job.model_dump_json())
        assert job.release is not None and again.release == job.release and again.digest == job.digest
        assert job.release.needed(3) == (1 if isinstance(quorum, int) else 3)


@pytest.mark.parametrize(
    ("release", "why"),
    [
        ({"attacks": ["canary"]}, "needs a number of 'canaries'"),
        ({"canaries": 5}, "needs a number of 'canaries'"),
        ({"shadows": 3}, "even number"),
        ({"attacks": ["inversion"], "shadows": 2}, "'shadows' are for"),
        ({"attacks": ["inversion", "inversion"]}, "stands twice"),
        ({"attacks": []}, "at least 1"),
        ({"quorum": 0}, "greater than"),
        ({"quorum": 4}, "cannot come from 3 silos"),
        ({"veto": ["z"]}, "z not among the job's silos"),
        ({"max_auc": 0.4}, "0.5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(release: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        torch_job("abc", release=release)
