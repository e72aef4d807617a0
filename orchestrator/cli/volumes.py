"""Whether what is written to a folder lies on its disk in the clear, as far as the system tells."""

import os
from pathlib import Path

BLOCK = Path("/sys/dev/block")
_MEMORY = {"tmpfs", "ramfs"}
_ENCRYPTED = {"ecryptfs", "fuse.gocryptfs", "fuse.encfs"}


def in_the_clear(folder: Path, block: Path = BLOCK, mounts: Path = Path("/proc/mounts")) -> bool:
    """False for memory, and for a volume that the system encrypts (dm-crypt, also below LVM)."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if _kind(there.resolve(), mounts) in _MEMORY | _ENCRYPTED:
        return False
    device = there.stat().st_dev
    return not _is_crypt(block / f"{os.major(device)}:{os.minor(device)}")


def _kind(folder: Path, mounts: Path) -> str:
    """Of the file system that it is on; empty where that is not known."""
    if not mounts.is_file():
        return ""
    found = [line.split()[1:3] for line in mounts.read_text(errors="replace").splitlines()]
    holding = [(len(point), kind) for point, kind in found if folder.is_relative_to(point)]
    return max(holding, default=(0, ""))[1]


def _is_crypt(device: Path) -> bool:
    """A device that encrypts, or that lies on nothing but such."""
    uuid = device / "dm" / "uuid"
    if uuid.is_file() and uuid.read_text().startswith("CRYPT-"):
        return True
    below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    return bool(below) and all(_is_crypt(each) for each in below)
