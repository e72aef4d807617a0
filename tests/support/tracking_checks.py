"""What MLflow holds against what the journal says."""

import sqlite3
from collections import Counter
from pathlib import Path

from orchestrator.core.events import parse
from orchestrator.journal import JOURNAL, read_journal
from tracking.mapping import Mapper, Superseded
from tracking.points import RUN

Row = tuple[str, str, int, int, float]
"""Silo (empty: the job's run), metric, step, time in milliseconds, value."""


def wanted(run_dir: Path) -> list[Row]:
    """Every point that the journal gives."""
    events = parse(read_journal(run_dir / JOURNAL)[0])
    superseded: set[int] = set()
    while True:
        mapper, rows = Mapper(superseded), list[Row]()
        try:
            for event in events:
                for run, each in mapper.posts(event).items():
                    rows += [(run, p.key, p.step, p.time_ms, p.value) for p in each.points]
            return sorted(rows)
        except Superseded as error:
            superseded |= error.seqs


def stored(database: Path, run_id: str) -> list[Row]:
    """Every point in MLflow's database of the runs that are not in its bin."""
    query = """
        select coalesce(s.value, ''), m.key, m.step, m.timestamp, m.value
        from metrics m join runs r using (run_uuid)
        join tags t on t.run_uuid = r.run_uuid and t.key = 'siloray.run_id' and t.value = ?
        left join tags s on s.run_uuid = r.run_uuid and s.key = 'siloray.silo'
        where r.lifecycle_stage = 'active'
    """
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20) as connection:
        return sorted(connection.execute(query, (run_id,)).fetchall())


def run_count(database: Path, run_id: str) -> Counter[str]:
    """How many active MLflow runs the job and each silo have."""
    query = """
        select coalesce(s.value, '') from runs r
        join tags t on t.run_uuid = r.run_uuid and t.key = 'siloray.run_id' and t.value = ?
        left join tags s on s.run_uuid = r.run_uuid and s.key = 'siloray.silo'
        where r.lifecycle_stage = 'active'
    """
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20) as connection:
        return Counter(name for (name,) in connection.execute(query, (run_id,)))


def check_complete(run_dir: Path, database: Path, run_id: str, silos: tuple[str, ...]) -> int:
    """Every point of the journal is in MLflow exactly once, in one run per silo; returns how many there are."""
    want, have = wanted(run_dir), stored(database, run_id)
    missing, extra = Counter(want) - Counter(have), Counter(have) - Counter(want)
    assert not missing, f"{missing.total()} missing, such as {next(iter(missing))}"
    assert not extra, f"{extra.total()} too many, such as {next(iter(extra))}"
    places = Counter((run, key, step) for run, key, step, _, _ in have)
    assert max(places.values()) == 1, places.most_common(3)
    assert run_count(database, run_id) == Counter((RUN, *silos))
    return len(have)
