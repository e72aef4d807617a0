"""What tests of several folders share: one Ray on this machine, as starting it takes longer than most tests."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]

# A shell leaves Ctrl-C ignored for what runs in the background; commands under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    """A local Ray with token authentication, a folder and ports of its own, whose workers can import ``tests``."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryDirectory(prefix="sr", dir="/tmp") as folder,  # short: sockets allow 107 bytes
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_TMPDIR", folder)
        from orchestrator.transport import ray as transport

        transport.connect(None, 4)
        yield transport
        transport.shutdown()
