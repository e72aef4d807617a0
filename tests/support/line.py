"""A line between two processes that a test can cut, slow down and make silent: a TCP proxy on loopback."""

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

PIECE = 1 << 16


class Line:
    """Carries whatever connects to ``port`` on to ``target``."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.rate: float | None = None
        """Bytes per second, each way; None: as fast as it goes."""
        self.silent = False
        """Nothing gets through, and nobody is told."""
        self.cut_after: list[int] = []
        """The line breaks whenever so many bytes have gone up."""
        self.up = self.down = 0
        """Bytes that the silo sent, and got."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._paces = threading.Lock(), threading.Lock()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Line":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Both ends are told that the connection is gone."""
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._ends += [near, far]
                threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                while self.silent:
                    time.sleep(0.01)
                if self.rate is not None:
                    with self._paces[up]:  # one line, however many connections there are over it
                        time.sleep(len(piece) / self.rate)
                sink.sendall(piece)
                self._count(len(piece), up)
        self._hang_up(source, sink)

    def _count(self, num_bytes: int, up: bool) -> None:
        if not up:
            self.down += num_bytes
            return
        self.up += num_bytes
        if self.cut_after and self.up >= self.cut_after[0]:
            self.cut_after.pop(0)
            self.cut()

    @staticmethod
    def _hang_up(*ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
