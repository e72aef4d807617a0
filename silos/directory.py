"""The ``silo.yaml`` files in a folder: silos that are to run on this machine."""

from collections.abc import Iterable
from pathlib import Path

from orchestrator.core.errors import BadInput
from silos.config import SiloConfig, load_silo


def find_silos(folder: Path) -> dict[str, Path]:
    """Silo names and their documents: ``<folder>/<any>.yaml`` or ``<folder>/<any>/silo.yaml``."""
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*/silo.yaml")]):
        name = load_silo(path).name
        if name in found:
            raise BadInput(f"{path}: the silo '{name}' is already in {found[name]}")
        found[name] = path
    return found


def check_silos(folder: Path, names: Iterable[str], datasets: Iterable[str]) -> dict[str, Path]:
    """The documents of these silos; `BadInput` for one that is not there or does not name the data sets."""
    found = find_silos(folder)
    for name in names:
        if name not in found:
            known = ", ".join(found) or "none"
            raise BadInput(f"{folder}: no silo.yaml here for the job's silo '{name}'; there are: {known}")
        for dataset in datasets:
            _has(load_silo(found[name]), dataset, found[name])
    return {name: found[name] for name in names}


def _has(config: SiloConfig, dataset: str, path: Path) -> None:
    if dataset not in config.datasets:
        known = ", ".join(config.datasets)
        raise BadInput(f"{path}: the job's data set '{dataset}' is not among its datasets ({known})")
