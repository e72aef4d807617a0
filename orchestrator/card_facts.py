"""What a model card is made from: a run's journal and nothing else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.core.events import Event, Rewound, RoundClosed, RunOpened
from orchestrator.job import Job
from orchestrator.journal import JournalDamaged, scan
from orchestrator.summary import parse, summarise

JOURNAL = "journal.jsonl"

Table = list[list[str]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card says."""

    summary: Mapping[str, Any]
    job: Job
    rounds: Mapping[int, RoundClosed]
    head: str
    """Of the journal."""
    num_lines: int
    driver_key: str = ""
    """Public, of the last driver; empty where it signed nothing."""

    @property
    def version(self) -> int:
        """The best one, else the last."""
        best = self.summary["best"]
        return int(best["version"]) if best else max(self.rounds, default=0)


def facts_of(run_dir: Path) -> Facts:
    """As far as the run has come. Raises JournalDamaged."""
    path = run_dir / JOURNAL
    lines = scan(path.read_bytes(), path)
    events = list(parse(line.event for line in lines))
    opened = [event for event in events if isinstance(event, RunOpened)]
    if not opened:
        raise JournalDamaged(f"{path}: the run was never opened")
    job = Job.model_validate(opened[-1].job)
    return Facts(summarise(events), job, _rounds(events), lines[-1].digest, len(lines), opened[-1].driver_key)


def _rounds(events: Iterable[Event]) -> dict[int, RoundClosed]:
    """Those that count."""
    rounds: dict[int, RoundClosed] = {}
    for event in events:
        match event:
            case RunOpened():
                rounds = {
                    version: each for version, each in rounds.items() if version <= (event.resumed_from or 0)
                }
            case Rewound():
                rounds = {version: each for version, each in rounds.items() if version <= event.version}
            case RoundClosed():
                rounds[event.version] = event
    return rounds


def table_of(table: Table) -> str:
    head, *rows = table
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in line)} |" for line in lines
    )


def date_of(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d") if seconds else "–"
