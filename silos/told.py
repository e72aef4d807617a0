"""What a driver is told of an error at the silo."""

import traceback

from orchestrator.core.errors import BadInput


def whole(error: Exception) -> str:
    """All of it, in one line: for the silo's own people, and for a driver of the same organisation."""
    text = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def public(error: Exception) -> str:
    """What may leave the organisation: no value, no row's content, no local path."""
    if isinstance(error, BadInput):
        return error.public
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    where = f" in {frames[-1].f_globals.get('__name__', '?')}" if frames else ""
    return f"{type(error).__name__}{where}; the silo's own record has the rest"
