"""A test that cannot fail is a defect: every planted bug is found, and without it the same check passes."""

import pytest

from orchestrator.core.faults import arm
from tests.property.planted_bugs import BUGS, caught


def test_planted_bugs_are_all_caught() -> None:
    assert len(BUGS) >= 9 and len({what for what, _, _ in BUGS}) == len(BUGS)
    found, missed = [], []
    for what, check, replaced in BUGS:
        with pytest.MonkeyPatch.context() as patch:
            assert caught(check, [], patch) is None, f"fails without the bug: {what}"
            how = caught(check, replaced, patch)
        arm(None)
        (missed if how is None else found).append(what)
        print(f"  {what}: {how}"[:140])
    print(f"planted bugs caught {len(found)}/{len(BUGS)}")
    assert not missed
