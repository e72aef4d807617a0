"""An answer to the question for a vote, before anything of it is believed."""

import math
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.messages import Attack, Attacked, Refused
from orchestrator.releasing import flaw

ASKED = Attack(
    run_id="r", epoch=1, version=3, model=None, model_digest="m", counted=3, trainings=3, num_steps=9
)
VOTE = Attacked(
    silo="a",
    version=3,
    model_digest="m",
    vote="pass",
    verdicts={"membership": "pass", "canary": "unable", "inversion": "pass"},
    scores={"auc": 0.5},
    why="no room for canaries",
    seconds=0.1,
)


def test_a_vote_on_what_was_asked() -> None:
    assert flaw(VOTE, ASKED) is None
    assert flaw(replace(VOTE, verdicts={}, scores={}), ASKED) is None, "where only the vote may leave"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_digest": "another"}, "another model"),
        ({"version": 2}, "another model"),
        ({"verdicts": {"guessing": "pass"}}, "nobody asked for"),
        ({"scores": {"age of patient 7": 54.0}}, "nobody asked for"),
        ({"scores": {"auc": math.nan}}, "NaN or infinity"),
        ({"seconds": math.inf}, "NaN or infinity"),
    ],
)
def test_a_vote_that_does_not_count(changes: dict[str, Any], said: str) -> None:
    found = flaw(replace(VOTE, **changes), ASKED)
    assert found is not None and said in found


def test_something_else_than_a_vote() -> None:
    assert flaw(Refused(silo="a", code="policy", reason="no"), ASKED) == "answered with Refused"
