"""Silos' own records, held against a run's journal."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.chain import Chain
from orchestrator.core.errors import BadInput
from orchestrator.verdict import Check

_FACTS = TypeAdapter(dict[str, Any])


def audit_check(path: Path, run_id: str, chain: Chain) -> Check:
    """Whether the silo of this ``audit.jsonl`` was told of these lines. Raises `BadInput`."""
    check, heads = Check(f"record {path}"), 0
    told = [(number, line) for number, line in _lines(path) if line.get("run") == run_id]
    if not told:
        check.wrong.append("the silo knows nothing of this run")
    for number, line in told:
        if "journal_head" not in line:
            continue
        heads += 1
        head, length = str(line["journal_head"]), line.get("journal_lines")
        if not isinstance(length, int) or not chain.has(head, length):
            check.wrong.append(f"line {number}: the silo was told of {length} other lines than these")
    check.found = f"{heads} heads of this journal"
    return check


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """By place; without those that a crash tore."""
    found: list[tuple[int, dict[str, Any]]] = []
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            with suppress(ValidationError):
                found.append((number, _FACTS.validate_json(line)))
    except OSError as error:
        raise BadInput(f"--audit {path}: {error.strerror}") from None
    if not found:
        raise BadInput(f"--audit {path}: not a silo's record (.siloray/NAME/audit.jsonl there)")
    return found
