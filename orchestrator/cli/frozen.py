"""What a silo's data is, in a line for whoever approves or freezes it."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from silos.configured_site import ConfiguredSite
    from silos.manifest import Manifest


def described(site: "ConfiguredSite", dataset: str, manifest: "Manifest", before: str | None) -> str:
    """``heart: 303 rows in 1 file, 14 columns, manifest 0123456789ab``, and what changed since ``before``."""
    files, columns = len(manifest.entries), len(manifest.columns)
    what = f"{columns} columns" if columns else f"classes {', '.join(sorted(manifest.folders))}"
    many = "file" if files == 1 else "files"
    line = (
        f"{dataset}: {manifest.num_rows:,} rows in {files:,} {many}, {what}, manifest {manifest.digest[:12]}"
    )
    return line + _since(site, dataset, manifest, before)


def _since(site: "ConfiguredSite", dataset: str, manifest: "Manifest", before: str | None) -> str:
    if before is None or before == manifest.digest:
        return "" if before is None else "; as before"
    from silos.manifest import difference

    old = site.manifests.last(dataset, before)
    return f"; since then: {difference(old, manifest).sentence(counts=True)}" if old else "; not as before"


def whoami() -> str:
    """For the record."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
