"""With which key the files of a past run are read."""

from pathlib import Path

from orchestrator.at_rest import Key, store_key
from orchestrator.journal import JOURNAL, JournalDamaged, read_journal


def run_key(run_dir: Path) -> Key | None:
    """This machine's key; None where there is none, and for a run whose journal says of every opening that its files
    are in the clear. In any other run a file in the clear is refused: it may be anybody's. Raises `BadInput`."""
    key = store_key()
    return None if key is None or _is_clear(run_dir) else key


def _is_clear(run_dir: Path) -> bool:
    try:
        events = read_journal(run_dir / JOURNAL)[0]
    except (OSError, JournalDamaged):
        return False
    told = [event.get("store_key") for event in events if event.get("type") == "run_opened"]
    return bool(told) and all(each == "" for each in told)
