"""Whether a model may be released, from the silos' votes. Pure.

A silo that is lost, refuses, or could make none of the attacks has not voted: it neither helps the quorum nor vetoes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core.events import ReleaseVoted, SiloAttacked
from orchestrator.release import ReleaseSettings


def counted(
    votes: Mapping[str, SiloAttacked],
    missing: Mapping[str, str],
    silos: Sequence[str],
    settings: ReleaseSettings,
    version: int,
    lineage: str,
) -> ReleaseVoted:
    """``silos``: those that may vote; ``missing``: why some did not."""
    said = {silo: votes[silo].vote for silo in silos if silo in votes}
    absent = {silo: missing.get(silo, "not asked") for silo in silos if silo not in said}
    absent |= {silo: votes[silo].why or "no attack was possible" for silo in said if said[silo] == "none"}
    passed = [silo for silo, vote in said.items() if vote == "pass"]
    failed = [silo for silo, vote in said.items() if vote == "fail"]
    vetoed = [silo for silo in failed if silo in settings.veto]
    needed = settings.needed(len(silos))
    return ReleaseVoted(
        version=version,
        lineage=lineage,
        votes={silo: vote for silo, vote in said.items() if vote != "none"},
        missing=absent,
        needed=needed,
        vetoed=vetoed,
        passed=len(passed) >= needed and not vetoed,
    )


def miscounted(
    voted: ReleaseVoted, votes: Mapping[str, SiloAttacked], settings: ReleaseSettings, silos: Sequence[str]
) -> bool:
    """Whether these votes come to something else than was written down, but for why silos did not vote."""
    model = voted.version, voted.lineage
    on_it = {silo: each for silo, each in votes.items() if (each.version, each.lineage) == model}
    again = counted(on_it, voted.missing, silos, settings, voted.version, voted.lineage)
    said = {"missing": voted.missing, "seq": voted.seq, "time": voted.time}
    return again.missing.keys() != voted.missing.keys() or again.model_copy(update=said) != voted


def told(voted: Mapping[str, Any]) -> str:
    """A `ReleaseVoted` in words."""
    votes, missing, vetoed = voted["votes"], voted["missing"], voted["vetoed"]
    yes = sum(vote == "pass" for vote in votes.values())
    failed = [silo for silo, vote in votes.items() if vote == "fail"]
    parts = [f"{yes} of {len(votes) + len(missing)} silos voted pass, {voted['needed']} are needed"]
    parts += [f"fail: {', '.join(failed)}"] if failed else []
    parts += [f"veto: {', '.join(vetoed)}"] if vetoed else []
    parts += [f"no vote: {', '.join(sorted(missing))}"] if missing else []
    return f"{'passed' if voted['passed'] else 'held back'} ({'; '.join(parts)})"
