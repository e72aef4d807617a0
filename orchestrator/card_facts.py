"""What a model card is made from: a run's journal and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.core.events import RoundClosed, parse
from orchestrator.history import History
from orchestrator.job import Job
from orchestrator.journal import JOURNAL, JournalDamaged, scan
from orchestrator.summary import summarise

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
    events = parse(line.event for line in lines)
    history = History.of(events)
    if history.opened is None:
        raise JournalDamaged(f"{path}: the run was never opened")
    job, driver_key = Job.model_validate(history.opened.job), history.opened.driver_key
    return Facts(summarise(events), job, history.rounds, lines[-1].digest, len(lines), driver_key)


def table_of(table: Table) -> str:
    head, *rows = table
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in line)} |" for line in lines
    )


def date_of(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d") if seconds else "–"
