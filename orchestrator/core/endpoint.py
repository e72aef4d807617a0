"""Where a process listens or is dialled: ``HOST:PORT``."""

import re

_HOST = re.compile(r"[^\s/:\[\]]+|\[[0-9A-Fa-f:.%]+\]")
"""A name, an IPv4 address, or an IPv6 address in brackets."""


def endpoint(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("expected HOST:PORT, the port from 1 to 65535")
    return host, int(port)
