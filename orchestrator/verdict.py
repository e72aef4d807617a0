"""What a check of a run came to, in words for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Check:
    """One question, and what the directory says to it."""

    what: str
    found: str = ""
    """What there is, where all is well."""
    wrong: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return not self.wrong


@dataclass
class Report:
    """All that was checked."""

    run_id: str = ""
    checks: list[Check] = field(default_factory=list)
    contributors: dict[str, int] = field(default_factory=dict)
    """Updates in the versions that count, by silo."""
    versions: int = 0
    countersigned: dict[str, int] = field(default_factory=dict)
    """Lines of the journal that each silo has signed."""
    num_lines: int = 0

    @property
    def fine(self) -> bool:
        return all(check.fine for check in self.checks)

    @property
    def verdict(self) -> str:
        """In one line."""
        if not self.fine:
            first = next(check for check in self.checks if not check.fine)
            return f"NOT VERIFIED: {first.what}: {first.wrong[0]}"
        return f"VERIFIED: {self.versions} rounds, {self.num_lines} lines, {self._seen}"

    @property
    def _seen(self) -> str:
        if not self.countersigned:
            return "which no silo has signed: only the driver stands for them"
        lengths = sorted(self.countersigned.values())
        least, most, silos = lengths[0], lengths[-1], len(lengths)
        told = f"{least} of them signed by {silos} silos"
        if most > least:
            told += f", {most} by {lengths.count(most)}"
        return told if most == self.num_lines else f"{told}; for the others only the driver stands"


@dataclass(frozen=True, slots=True)
class Outside:
    """What somebody knows besides the run directory."""

    driver_key: str = ""
    silos: Mapping[str, str] = field(default_factory=dict)
    """Public keys by silo, in base64, as in ``roster.yaml``."""
    audits: Sequence[Path] = ()
    """Silos' own records."""
    revoked: frozenset[str] = frozenset()
    """Keys, of silos or drivers, that count no longer: nobody can tell whether a line was signed before."""
