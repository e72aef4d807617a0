"""How each kind of failure ends the command: one line on standard error, and the exit code."""

import os
import sys
import tempfile
import traceback

from orchestrator.cli.words import one_line
from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.core.printable import printable

DONE, UNEXPECTED, BAD_INPUT, STOPPED, CANNOT_GO_ON = 0, 1, 2, 3, 4

_RUN_DIRECTORY = {"DiskFull", "JournalDamaged", "LeaseHeld", "LeaseLost", "NothingUsable", "StoreAway"}
"""The store's errors, by name: importing the store for them would slow every command down."""


def exit_code(error: Exception) -> int | None:
    """The code for an error that a person can act on; None for one that is a mistake of ours."""
    if isinstance(error, BadInput):
        return BAD_INPUT
    if isinstance(error, CannotGoOn) or type(error).__name__ in _RUN_DIRECTORY:
        return CANNOT_GO_ON
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) and error.filename is not None:
        return BAD_INPUT
    return None


def sentence(error: Exception) -> str:
    """What to say about it, without the class names and numbers of Python."""
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{error.filename}: {error.strerror}")
    return one_line(error)


def say(text: str) -> None:
    """One line on standard error."""
    print(f"siloray: {printable(text)}", file=sys.stderr, flush=True)


def unexpected(error: Exception) -> int:
    """A mistake of ours: the traceback goes to a file, which the line names."""
    handle, path = tempfile.mkstemp(prefix="siloray-", suffix=".traceback.txt", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    say(f"unexpected {type(error).__name__}: {one_line(error)[:200]}; the traceback is in {path}")
    return UNEXPECTED


def close_quietly() -> None:
    """Flush what was printed; whoever read it may have gone (``siloray list | head -1``)."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
