"""Errors that come from another machine are what they were there."""

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

from orchestrator import checkpoints, disk, journal, store
from orchestrator.cli.failures import exit_code, sentence
from orchestrator.core import errors

WITH: dict[str, tuple[Any, ...]] = {
    "BadInput": ("a line", "what others may read"),
    "SiloLost": ("va", "no answer"),
    "DiskFull": (Path("/runs/a"), 1_000, 10),
    "StoreAway": ("s3://runs", "no route"),
}
"""What an error is made of; else one line."""


def ours() -> list[type[Exception]]:
    """All that the store and the documents may raise."""
    modules = (errors, disk, journal, checkpoints, store)
    found = {each for module in modules for _, each in inspect.getmembers(module, inspect.isclass)}
    return sorted(
        (each for each in found if issubclass(each, Exception) and "orchestrator" in each.__module__),
        key=lambda each: each.__name__,
    )


@pytest.mark.parametrize("kind", ours(), ids=lambda kind: kind.__name__)
def test_an_error_that_travelled_is_the_same(kind: type[Exception]) -> None:
    error = kind(*WITH.get(kind.__name__, ("a line",)))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is kind and vars(again) == vars(error)
    assert (str(again), again.args) == (str(error), error.args)
    assert (exit_code(again), sentence(again)) == (exit_code(error), sentence(error))


def test_the_table_names_errors_that_there_are() -> None:
    assert {kind.__name__ for kind in ours()} >= WITH.keys()
