"""The real ``siloray`` command as a process, in a session of its own: all that it started can be found by it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 120.0


class Command:
    """One command. Its Ray keeps its files in a folder of its own, with a short name: sockets allow 107 bytes."""

    def __init__(self, *arguments: str | Path, cwd: Path, environ: dict[str, str] | None = None) -> None:
        self.ray_folder = tempfile.mkdtemp(prefix="sr", dir="/tmp")
        known = {
            key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "SILORAY_FAULT")
        }
        own = {"RAY_TMPDIR": self.ray_folder, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(cwd)}
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *map(str, arguments)],
            cwd=cwd,
            env={**known, **own, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._readers = [
            _reader(self.process.stdout, self.lines),
            _reader(self.process.stderr, self.errors),
        ]

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, words: str, limit_s: float = LIMIT_S) -> str:
        """The first line of its standard output with these words."""
        end, seen = time.monotonic() + limit_s, 0
        while time.monotonic() < end:
            for line in self.lines[seen:]:
                seen += 1
                if words in line:
                    return line
            if self.process.poll() is not None and seen == len(self.lines) and not self._reading:
                break
            time.sleep(0.01)
        raise AssertionError(f"{words!r} did not come\n{self.told}")

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {limit_s:g} s\n{self.told}") from None
        for reader in self._readers:
            reader.join(5)
        return code

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """To the whole process group, as a terminal does for Ctrl-C."""
        os.killpg(self.pid, number)

    def close(self) -> None:
        """End whatever of it is left; its processes are its own, by their session."""
        for pid in session(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    @property
    def out(self) -> str:
        return "\n".join(self.lines)

    @property
    def err(self) -> str:
        return "\n".join(self.errors)

    @property
    def told(self) -> str:
        return f"--- standard output\n{self.out}\n--- standard error\n{self.err}"

    @property
    def _reading(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)


def _reader(stream: object, lines: list[str]) -> threading.Thread:
    def read() -> None:
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line.rstrip("\n"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def session(leader: int) -> dict[int, str]:
    """Process ids and names of a session, also of those whose parents have died."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            head, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, sid = rest.split()[:4]
        if int(sid) == leader and state != "Z":
            found[int(folder.name)] = head.partition("(")[2]
    return found


def gone(leader: int, limit_s: float, but: Callable[[str], bool] = lambda name: False) -> float:
    """Seconds until no process of the session is left, those aside that ``but`` names."""
    began = time.monotonic()
    while left := {pid: name for pid, name in session(leader).items() if not but(name)}:
        assert time.monotonic() - began < limit_s, f"still there after {limit_s:g} s: {left}"
        time.sleep(0.02)
    return time.monotonic() - began
