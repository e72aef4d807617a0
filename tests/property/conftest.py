"""Hundreds of runs, each with its own folder: in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scratch import scratch


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with scratch() as folder:
        yield folder
