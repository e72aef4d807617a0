"""What the driver has asked one silo over a line that the silo opens: requests wait here until it fetches them, and
stay until it has answered, however often the line breaks meanwhile."""

import asyncio
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Fetch, Initial, Reply, Request, SiloId, Train
from orchestrator.transport.wire import DTYPES, MAX_COLUMNS, Arrays, WireError
from orchestrator.transport.wire_messages import reply_of

CHUNK = 1 << 20
"""Most elements of a vector in one frame."""
UNIT = 1 << 12
"""Chunks start at multiples of it: a slow line makes them smaller, down to this."""
FREE_BLOCKS = 3
"""Blocks of memory that wait for the next piece of an update."""
MAX_ELEMENTS = 1 << 33
"""No model is larger."""
BYTES_AN_ELEMENT = 8
"""Most that a codec makes of one: its place and its value."""


class Memory:
    """Blocks for vectors that come, used again when nobody has a view of them any more: fresh pages cost more than
    the copy into them."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=FREE_BLOCKS)

    def take(self, dtype: str, size: int) -> NDArray[np.generic]:
        num_bytes = size * np.dtype(dtype).itemsize
        raw = self._pop() if num_bytes >= UNIT else None
        if raw is None or raw.size != num_bytes:
            raw = np.empty(num_bytes, np.uint8)
        array: NDArray[np.generic] = np.frombuffer(raw.data, dtype)  # what its slices keep alive
        weakref.finalize(array, self._free.append, raw)
        return array

    def _pop(self) -> NDArray[np.uint8] | None:
        try:
            return self._free.popleft()
        except IndexError:
            return None


class Incoming:
    """A reply of which the vectors arrive in pieces, in any order, some twice."""

    def __init__(
        self, kind: str, text: str, sizes: Mapping[str, tuple[str, int]], memory: Memory | None = None
    ) -> None:
        self.kind, self.text = kind, text
        take = (memory or Memory()).take
        self.arrays: Arrays = {name: take(dtype, size) for name, (dtype, size) in sizes.items()}
        self._expected = {name: np.ones(-(-size // UNIT), bool) for name, (_, size) in sizes.items()}
        """Units that no frame has brought yet."""
        self._unwritten = sum(expected.size for expected in self._expected.values())
        self._lock = threading.Lock()

    def put(self, name: str, start: int, values: NDArray[np.generic]) -> tuple[int, bool]:
        """Bytes that are new, and whether the reply is complete now, which is said once. What came before stays as
        it is: once complete, the vectors belong to whoever asked for them. Raises `WireError`."""
        array = self.arrays.get(name)
        if array is None or values.dtype != array.dtype:
            raise WireError("schema", f"'{name}' of type {values.dtype} was not announced")
        stop = start + values.size
        whole = start % UNIT == 0 and (stop % UNIT == 0 or stop == array.size)
        if start < 0 or stop > array.size or not values.size or not whole:
            raise WireError("schema", f"elements {start} to {stop} of '{name}', which has {array.size}")
        new, written = self._claimed(name, start // UNIT, -(-stop // UNIT)), 0
        for low, high in _runs(new):
            end = min(high * UNIT, stop)
            array[low * UNIT : end] = values[low * UNIT - start : end - start]
            written += end - low * UNIT
        with self._lock:
            self._unwritten -= new.size
            complete = bool(new.size) and not self._unwritten
        return written * values.itemsize, complete

    def _claimed(self, name: str, first: int, end: int) -> NDArray[np.intp]:
        """Units of a range that no other frame has brought, for this one to write."""
        with self._lock:
            expected = self._expected[name][first:end]
            new = first + np.flatnonzero(expected)
            expected[:] = False
            return new

    def reply(self) -> Reply:
        return reply_of(self.kind, self.text, packet=self.arrays or None)


def _runs(units: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Where consecutive units begin and end."""
    if not units.size:
        return []
    runs = np.split(units, np.flatnonzero(np.diff(units) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


@dataclass(eq=False)
class Pending:
    """One request on its way."""

    request: Request
    future: "asyncio.Future[Reply]"
    loop: asyncio.AbstractEventLoop
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    fetched: bool = False
    incoming: Incoming | None = None

    def settle(self, reply: Reply | SiloLost) -> None:
        """From any thread."""

        def set_result() -> None:
            if self.future.done():
                return
            if isinstance(reply, SiloLost):
                self.future.set_exception(reply)
            else:
                self.future.set_result(reply)

        self.loop.call_soon_threadsafe(set_result)


class Mailbox:
    """One silo's. The driver's event loop posts; the threads of the door fetch and answer."""

    def __init__(self, silo: SiloId) -> None:
        self.silo = silo
        self.moved = 0
        """Bytes of vectors that came and went."""
        self._memory = Memory()
        self._num_shared = 0
        self._incarnation = ""
        self._seen_at: float | None = None
        self._restart = self._closed = False
        self._pending: dict[str, Pending] = {}
        self._changed = threading.Condition()

    @property
    def absent_s(self) -> float | None:
        """How long the silo has not been heard of; None: never heard of."""
        return None if self._seen_at is None else monotonic() - self._seen_at

    def post(self, request: Request) -> Pending:
        loop = asyncio.get_running_loop()
        pending = Pending(request, loop.create_future(), loop)
        with self._changed:
            self._pending[pending.id] = pending
            self._changed.notify_all()
        return pending

    def drop(self, pending: Pending) -> None:
        """Its answer is no longer wanted."""
        with self._changed:
            self._pending.pop(pending.id, None)

    def restart(self) -> None:
        """The silo is to start its work anew; what it was asked is lost. One that has to dial in anew first is left
        alone (`hello`): it may be well, and was only cut off."""
        with self._changed:
            self._restart = True
            self._changed.notify_all()
        self._lose("its process was restarted")

    def close(self) -> None:
        """Nothing more will be asked."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # called by the door

    def seen(self) -> None:
        self._seen_at = monotonic()

    def hello(self, incarnation: str) -> None:
        """The silo has dialled in. Another incarnation knows nothing of what the one before was asked."""
        with self._changed:
            anew, self._incarnation = self._incarnation not in ("", incarnation), incarnation
            self._restart = False
        if anew:
            self._lose("its process was started anew")

    def fetch(self, held: Iterable[str], wait_s: float) -> tuple[list[Pending], bool]:
        """Requests that the silo does not hold, and whether it is to restart; waits for the first."""
        held = set(held)
        with self._changed:
            for pending in self._pending.values():
                pending.fetched = pending.id in held
            self._changed.wait_for(lambda: self._closed or self._restart or self._unfetched(), wait_s)
            requests = self._unfetched()
            for pending in requests:
                pending.fetched = True
            restart, self._restart = self._restart, False
            return requests, restart

    def _unfetched(self) -> list[Pending]:
        return [pending for pending in self._pending.values() if not pending.fetched]

    def find(self, id: str) -> Pending | None:
        """None where the driver no longer waits for it."""
        return self._pending.get(id)

    def answer(self, pending: Pending, reply: Reply) -> None:
        if getattr(reply, "silo", self.silo) != self.silo:
            raise WireError("identity", f"answers under the name of {getattr(reply, 'silo', '')[:100]}")
        self._num_shared = getattr(reply, "num_shared", self._num_shared)
        self.drop(pending)
        pending.settle(reply)

    def expect(self, pending: Pending, kind: str, text: str, sizes: Mapping[str, Any]) -> Incoming:
        """Room for the vectors of a reply; no more than the request asked for. Raises `WireError`."""
        announced = self.admit(pending, sizes)
        with self._changed:
            if pending.incoming is None or pending.incoming.text != text:
                pending.incoming = _room(kind, text, announced, self._memory)
            return pending.incoming

    def admit(self, pending: Pending, sizes: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
        """Types and sizes of a reply's vectors, if the request asked for so much. Raises `WireError`."""
        announced: dict[str, tuple[str, int]] = {}
        if not isinstance(sizes, Mapping):
            raise WireError("oversize", "what is announced is no table of vectors")
        for name, each in sizes.items():
            dtype, size = each if isinstance(each, list) and len(each) == 2 else ("", -1)
            if (
                dtype not in DTYPES
                or not isinstance(size, int)
                or not 0 < size <= self._most(pending.request)
            ):
                raise WireError(
                    "oversize", f"'{str(name)[:40]}': {size} of {str(dtype)[:20]} were not asked for"
                )
            announced[str(name)] = str(dtype), size
        num_bytes = sum(np.dtype(dtype).itemsize * size for dtype, size in announced.values())
        if len(announced) > MAX_COLUMNS or num_bytes > BYTES_AN_ELEMENT * self._most(pending.request):
            raise WireError("oversize", f"{len(announced)} vectors of {num_bytes} bytes were not asked for")
        return announced

    def _most(self, request: Request) -> int:
        """Elements of a vector that may come in reply."""
        match request:
            case Fetch():
                return request.stop - request.start
            case Train():
                return request.inline
            case Initial():
                return min(self._num_shared, MAX_ELEMENTS)
        return 0

    def _lose(self, why: str) -> None:
        with self._changed:
            lost, self._pending = list(self._pending.values()), {}
        for pending in lost:
            pending.settle(SiloLost(self.silo, why))


def _room(kind: str, text: str, sizes: Mapping[str, tuple[str, int]], memory: Memory) -> Incoming:
    try:
        return Incoming(kind, text, sizes, memory)
    except MemoryError:
        raise WireError("oversize", "there is no memory for these vectors") from None
