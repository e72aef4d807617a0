"""Which rows train and which test."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from silos.columns import Column
from silos.config import ColumnSplit, DatasetConfig, ShareSplit

Tags = NDArray[np.str_]
"""The split of each row: ``train``, ``test``, or '' for neither."""


def share_tags(keys: NDArray[np.uint64], splits: ShareSplit) -> Tags:
    """A row tests when the hash of its key falls below the test share."""
    drawn = _hash(keys ^ np.uint64(splits.seed * 0x9E3779B97F4A7C15 % (1 << 64)))
    return np.where(drawn < splits.test_share * 2.0**64, "test", "train")


def _hash(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014): even over 64 bits, also for keys that count up."""
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def name_keys(names: Iterable[str]) -> NDArray[np.uint64]:
    """Keys for files: their names, so that a file keeps its split when others come or go."""
    digests = (hashlib.sha256(name.encode()).digest()[:8] for name in names)
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)


def column_tags(column: Column, splits: ColumnSplit) -> Tags:
    """The split that the column's value names."""
    text = np.array(column.text.fill_null("").to_pylist(), dtype=np.str_)
    return np.select([text == str(splits.train), text == str(splits.test)], ["train", "test"], "")


def wants_no_test(config: DatasetConfig) -> bool:
    """Whether the organisation keeps no test rows, on purpose."""
    return isinstance(config.splits, ShareSplit) and config.splits.test_share == 0
