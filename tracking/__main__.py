"""``python -m tracking RUN_DIR --uri URI``: carry one run to MLflow."""

import argparse
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event as Flag

from tracking.follower import Follower, Until, follow
from tracking.server import absolute

LOWEST_PRIORITY = 19


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 where something could not be posted for good."""
    options = _parser().parse_args(arguments)
    if not options.run_dir.is_dir():
        _parser().error(f"no run directory: {options.run_dir}")
    stop = Flag()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run; its end is still to be posted
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    if options.nice:
        _be_nice()
    until: Until = "now" if options.drain else "closed" if options.until_closed else "left"
    with _alone(options.run_dir, stop):
        return follow(Follower(options.run_dir, absolute(options.uri)), until, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tracking", description="Carry a run's journal to MLflow."
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--uri", required=True, help="MLflow server or database, such as sqlite:///mlflow.db")
    parser.add_argument(
        "--until-closed", action="store_true", help="do not end because the run's driver is gone"
    )
    parser.add_argument("--drain", action="store_true", help="post what the journal holds now, and end")
    parser.add_argument("--nice", action="store_true", help="leave the processors to everybody else")
    return parser


def _be_nice() -> None:
    os.nice(LOWEST_PRIORITY)
    if (
        os.getsid(0) == os.getpid()
    ):  # Linux may schedule whole sessions, and then looks at this number instead
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(LOWEST_PRIORITY))


@contextmanager
def _alone(run_dir: Path, stop: Flag) -> Iterator[None]:
    """Waits until no other follower works on this run."""
    with (run_dir / "tracking.lock").open("w") as lock:
        while not stop.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stop.wait(1)
        yield


if __name__ == "__main__":
    sys.exit(main())
