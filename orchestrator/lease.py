"""Whether a driver works on a run: for those who only look, from the lock that it holds."""

import json
import socket
from pathlib import Path


def has_driver(run_dir: Path) -> bool:
    """Whether a driver on this machine holds the run's lock.

    Read from the kernel's list: trying the lock, if only for a moment, could turn away a driver that starts.
    """
    try:
        lease = json.loads((run_dir / "lease.json").read_text(encoding="utf-8"))
        inode = (run_dir / "lock").stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return False
    mine = lease.get("host") == socket.gethostname()
    return mine and any(_holds(line.split(), lease.get("pid"), inode) for line in locks)


def _holds(lock: list[str], pid: int | None, inode: int) -> bool:
    """``1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF``."""
    if len(lock) < 6 or lock[1] != "FLOCK":
        return False
    return lock[4] == str(pid) and lock[5].split(":")[-1] == str(inode)
