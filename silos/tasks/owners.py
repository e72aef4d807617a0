"""Who owns which row: rules that cut one data set into silos, for trials. Each repeats with its seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.errors import BadInput
from orchestrator.core.random import rng_of

Owners = NDArray[np.int64]
"""The silo, from 0, of each row."""
_TRIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A rule and its numbers.

    ``iid``: equal parts at random. ``dirichlet``: each class's rows in Dirichlet(alpha) shares (Hsu et al.
    2019). ``labels``: every silo has ``labels_per_silo`` classes (Li et al. 2022). ``quantity``: silos of
    Dirichlet(alpha) sizes, classes mixed. ``file``: ``owner_file`` says it, as ``.npz`` with ``owner``, or as
    text with a number per row.
    """

    name: Literal["iid", "dirichlet", "labels", "quantity", "file"] = "iid"
    alpha: float = 0.5
    labels_per_silo: int = 2
    owner_file: Path | None = None
    min_rows: int = 10
    """Fewest rows of a silo; an uneven draw is repeated until every silo has them."""


def partition_dataset(
    labels: Sequence[int] | NDArray[np.int64], num_silos: int, scheme: Scheme, seed: int
) -> Owners:
    """The owner of each row, from the rows' labels; `BadInput` when a silo cannot get enough."""
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    if num_silos < 1 or len(classes) < num_silos * scheme.min_rows:
        raise BadInput(
            f"{len(classes)} rows are too few for {num_silos} silos of {scheme.min_rows} rows or more"
        )
    if scheme.name in ("dirichlet", "quantity") and scheme.alpha <= 0:
        raise BadInput(f"alpha: must be positive, got {scheme.alpha:g}")
    if scheme.name == "file":
        return from_file(scheme.owner_file, len(classes), num_silos)
    for attempt in range(_TRIES):
        owners = _draw(classes, num_silos, scheme, rng_of(seed, "partition", scheme.name, attempt))
        if np.bincount(owners, minlength=num_silos).min() >= scheme.min_rows:
            return owners
    raise BadInput(
        f"{scheme.name}: {_TRIES} draws left some silo with fewer than {scheme.min_rows} rows; use fewer "
        "silos, a larger alpha or a smaller minimum"
    )


def _draw(classes: NDArray[np.int64], num_silos: int, scheme: Scheme, rng: np.random.Generator) -> Owners:
    match scheme.name:
        case "dirichlet":
            return dirichlet(classes, num_silos, scheme.alpha, rng)
        case "labels":
            return by_labels(classes, num_silos, scheme.labels_per_silo, rng)
        case "quantity":
            return cut(len(classes), rng.dirichlet(np.full(num_silos, scheme.alpha)), rng)
        case _:
            return cut(len(classes), np.full(num_silos, 1 / num_silos), rng)


def cut(num_rows: int, shares: NDArray[np.float64], rng: np.random.Generator) -> Owners:
    """Rows in random order, cut at the cumulative shares."""
    ends = np.round(np.cumsum(shares / shares.sum()) * num_rows).astype(np.int64)
    owners = np.empty(num_rows, dtype=np.int64)
    owners[rng.permutation(num_rows)] = np.searchsorted(ends, np.arange(num_rows), side="right")
    return np.minimum(owners, len(shares) - 1)


def dirichlet(classes: NDArray[np.int64], num_silos: int, alpha: float, rng: np.random.Generator) -> Owners:
    """Every class cut by shares of its own."""
    owners = np.empty(len(classes), dtype=np.int64)
    for label in range(classes.max() + 1):
        rows = np.flatnonzero(classes == label)
        owners[rows] = cut(len(rows), rng.dirichlet(np.full(num_silos, alpha)), rng)
    return owners


def by_labels(classes: NDArray[np.int64], num_silos: int, k: int, rng: np.random.Generator) -> Owners:
    """Each silo takes the ``k`` classes that fewest have, ties at random; a class's owners share evenly."""
    num_classes = int(classes.max()) + 1
    if not 1 <= k <= num_classes or num_silos * k < num_classes:
        raise BadInput(f"labels: {num_silos} silos of {k} labels each cannot hold {num_classes} classes")
    takers: list[list[int]] = [[] for _ in range(num_classes)]
    for silo in range(num_silos):
        crowd = [len(each) for each in takers]
        for label in np.lexsort((rng.random(num_classes), crowd))[:k]:
            takers[label].append(silo)
    owners = np.empty(len(classes), dtype=np.int64)
    for label, silos in enumerate(takers):
        rows = np.flatnonzero(classes == label)
        owners[rows] = np.array(silos)[cut(len(rows), np.full(len(silos), 1 / len(silos)), rng)]
    return owners


def from_file(path: Path | None, num_rows: int, num_silos: int) -> Owners:
    """The owners that a file gives."""
    if path is None:
        raise BadInput("scheme 'file' needs an owner file")
    owners = _owners_in(path)
    if owners.shape != (num_rows,):
        raise BadInput(f"{path}: {owners.size} owners for {num_rows} rows")
    if owners.min() < 0 or owners.max() >= num_silos:
        raise BadInput(
            f"{path}: owners run from {owners.min()} to {owners.max()}, and there are {num_silos} silos"
        )
    missing = sorted(set(range(num_silos)) - set(owners.tolist()))
    if missing:
        raise BadInput(f"{path}: silo {missing[0]} owns no row")
    return owners


def _owners_in(path: Path) -> Owners:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["owner"].astype(np.int64)
        return np.loadtxt(path, dtype=np.int64, ndmin=1)
    except KeyError:
        raise BadInput(f"{path}: no array named 'owner'") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from None


def deal_alike(
    labels: NDArray[np.int64], like_labels: NDArray[np.int64], like_owners: Owners, num_silos: int, seed: int
) -> Owners:
    """Deal further rows (a test set) so that silos share every class as in the rows dealt before."""
    owners = np.empty(len(labels), dtype=np.int64)
    rng = rng_of(seed, "partition", "alike")
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        counts = np.bincount(like_owners[like_labels == label], minlength=num_silos).astype(np.float64)
        owners[rows] = cut(len(rows), counts if counts.any() else np.ones(num_silos), rng)
    return owners


def hold_out(owners: Owners, num_silos: int, test_share: float, seed: int) -> NDArray[np.bool_]:
    """For each row whether it tests: this share of every silo's rows, at least one."""
    test = np.zeros(len(owners), dtype=bool)
    rng = rng_of(seed, "partition", "test")
    for silo in range(num_silos):
        rows = rng.permutation(np.flatnonzero(owners == silo))
        test[rows[: max(1, round(test_share * len(rows)))]] = True
    return test
