"""An event loop whose time is virtual: when nothing is ready it jumps to the next timer, one at a time.

The same driver runs on it as on asyncio's own. Work for threads is done at once, in the loop, so that no result can
depend on which thread was faster.
"""

import asyncio
import contextvars
import heapq
import itertools
import logging
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualLoop(asyncio.AbstractEventLoop):
    """``asyncio.Runner(loop_factory=VirtualLoop)`` runs a coroutine in it. Nothing from outside can wake it: it has no
    sockets, no signals and no other threads."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        """By time, then in the order in which they were set."""
        self._number = itertools.count()
        self._closed = self._running = False

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._number), handle))
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        return asyncio.Task(coro, loop=self, **options)

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def run_until_complete(self, future: Any) -> Any:
        """Raises RuntimeError if the future waits for something that will never come."""
        task = asyncio.ensure_future(future, loop=self)
        events._set_running_loop(self)
        self._running = True
        try:
            while not task.done():
                self._turn()
        finally:
            self._running = False
            events._set_running_loop(None)
        return task.result()

    def _turn(self) -> None:
        """All that is ready, or else the next timer alone: what it sets going ends before the next one's turn."""
        if not self._ready:
            self._ready.append(self._next_timer())
        handle = self._ready.popleft()
        if not handle.cancelled():
            handle._run()

    def _next_timer(self) -> asyncio.TimerHandle:
        while self._timers:
            when, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                self._now = max(self._now, when)
                return handle
        raise RuntimeError("everything waits, and nothing will ever happen")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """It has no debug mode."""

    async def shutdown_asyncgens(self) -> None:
        """They end by themselves."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        logging.getLogger(__name__).error("%s", context.get("message"), exc_info=context.get("exception"))


def run(main: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, on a virtual clock that starts at zero."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    """Virtual seconds, within the loop."""
    return asyncio.get_running_loop().time()
