"""The Flight shell of a silo: dials out to the driver, asks what there is to do, does it, answers. Opens no port.

What the driver asks is handled where the silo works (`Workplace`): in this process, or in an actor on the
organisation's own Ray. A line that breaks is dialled anew; work in hand goes on meanwhile, and its answer follows.
"""

import logging
import math
import threading
import traceback
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.messages import (
    AT_ONCE,
    Carrying,
    Join,
    Joined,
    Load,
    Piece,
    Progress,
    Refused,
    Reply,
    Request,
    Update,
)
from orchestrator.core.printable import printable
from orchestrator.core.vector import Packet, blocks
from orchestrator.core.versions import versions
from orchestrator.transport.certs import Credentials
from orchestrator.transport.flight_client import Closed, Line, Slow
from orchestrator.transport.mailbox import CHUNK
from orchestrator.transport.todo import Asked, todo_of
from orchestrator.transport.wire import MAX_COLUMNS, WireError
from orchestrator.transport.wire_messages import check_context, context_of, kind_of, request_of, text_of
from silos.pace import Pace
from silos.told import public
from silos.workplace import Workplace

THREADS = 4
"""For what is answered at once, and for vectors under way: this many frames at a time are in memory."""
POLL_S = 25.0
"""A poll that has no answer after so long has no line; the driver answers much sooner."""
REFUSED_S = 1.0
"""After a refusal, so that two sides that do not understand each other do not keep each other busy."""


class NotWanted(Exception):
    """The driver no longer waits for this work."""


class UnderWay:
    """Counts what is under way: ``with`` it, or wait until nothing is."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._count)


class Agent:
    """Serves one driver until closed. ``say`` is told what happens to the line, in a sentence."""

    def __init__(
        self,
        name: str,
        uri: str,
        credentials: Credentials,
        workplace: Workplace,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name, self.workplace, self._say_to_us = name, workplace, say
        self.incarnation = uuid.uuid4().hex
        self._line = Line(uri, credentials, self._hello, say)
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._pace = Pace()
        self._sending = UnderWay()
        self._work = ThreadPoolExecutor(1, f"silo-{name}")
        self._talk = ThreadPoolExecutor(THREADS, f"answer-{name}")
        self._move = ThreadPoolExecutor(THREADS, f"move-{name}")
        self._model: dict[str, NDArray[np.float32]] = {}
        self._joined: tuple[str, int, int] | None = None
        """The run in hand, and how many elements are shared in it and how many its model has: no part of a version is
        longer than the one, no weights to begin with than the other."""

    def run(self, once: bool = False) -> None:
        """Until `close`; with ``once``, until the run in hand has ended."""
        try:
            while not self._line.closed:
                if self._turn() and once:
                    return
        except Closed:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """From any thread: leave without an answer to what is in hand."""
        self._line.close()
        for threads in (self._work, self._talk, self._move):
            threads.shutdown(wait=False, cancel_futures=True)

    def _hello(self) -> dict[str, Any]:
        return {"incarnation": self.incarnation, "versions": versions()}

    def _turn(self) -> bool:
        """Ask once what there is to do; whether the run has ended."""
        try:
            _, frame = self._line.ask("next", {"held": sorted(self._held)}, timeout_s=POLL_S)
            todo = todo_of(frame.header.content)
        except Closed:
            raise
        except Exception as error:  # whatever the driver says, this silo goes on
            logging.getLogger(__name__).warning(
                "the driver did not say what to do: %s", printable(repr(error))
            )
            threading.Event().wait(REFUSED_S)
            return False
        if self._line.closed:
            raise Closed
        if todo.restart:
            self._restart()
        for asked in todo.requests:
            self._begin(asked)
        if todo.ended:
            threading.Event().wait(0.5)  # the driver's process is about to go
        return todo.ended

    def _restart(self) -> None:
        """Another incarnation from here on, also where the process stays."""
        self.workplace.restart()
        self.incarnation = uuid.uuid4().hex
        self._work.shutdown(wait=False, cancel_futures=True)
        self._work = ThreadPoolExecutor(1, f"silo-{self.name}")
        self._joined = None
        self._model = {}  # what is left of the old work may still read the one that it has
        with self._lock:
            self._held.clear()

    def _begin(self, asked: Asked) -> None:
        with self._lock:
            if asked.id in self._held:
                return
            self._held.add(asked.id)
        try:
            request = request_of(asked.kind, asked.text, asked.model)
        except WireError as error:
            reply = Refused(silo=self.name, code="unknown", reason=f"not understood: {error}")
            self._talk.submit(self._serve, asked, None, reply)
            return
        threads = self._talk if isinstance(request, AT_ONCE) else self._work
        threads.submit(self._serve, asked, request)

    def _serve(self, asked: Asked, request: Request | None, reply: Reply | None = None) -> None:
        id, context = asked.id, {"run_id": asked.run_id, "epoch": asked.epoch}
        context |= context_of(request) if request else {}
        try:
            if request is not None:
                reply = self._handled(id, request)
                self._tell(request, reply)
            assert reply is not None
            self._answer_somehow(id, context, reply)
        except (Closed, NotWanted):
            pass
        except WireError as error:
            logging.getLogger(__name__).warning("the driver refused the answer: %s", printable(str(error)))
            threading.Event().wait(REFUSED_S)  # it will ask again
        finally:
            with self._lock:
                self._held.discard(id)

    def _answer_somehow(self, id: str, context: Mapping[str, Any], reply: Reply) -> None:
        """A reply that cannot be written down (a user's task may put anything into it) is a failure of the silo's."""
        try:
            self._answer(id, context, reply)
        except (Closed, NotWanted, WireError):
            raise
        except Exception as error:
            logging.getLogger(__name__).error("%s", traceback.format_exc())
            reason = f"its reply is no message: {public(error)}"
            self._answer(id, context, Refused(silo=self.name, code="failed", reason=reason))

    def _tell(self, request: Request, reply: Reply) -> None:
        """The administrator of this silo reads along."""
        if isinstance(reply, Joined):
            self._say_to_us(f"joined {request.run_id}: {reply.num_parameters:,} parameters, {reply.device}")
        elif isinstance(reply, Refused) and reply.code != "cancelled":
            asked = f"{kind_of(request)} of {request.run_id}"
            self._say_to_us(f"refused {asked} ({reply.code}): {reply.reason}")

    def _handled(self, id: str, request: Request) -> Reply:
        """What goes wrong in the silo's own code is its answer, as on every channel."""
        try:
            if isinstance(request, Carrying):
                if self._joined is None or self._joined[0] != request.run_id:
                    return Refused(silo=self.name, code="job", reason="this agent has not joined the run")
                self._sending.wait()  # the trainer's memory is what is being sent
                request = replace(request, model=self._fetched(id, request))
            reply = self.workplace.handle(request)
            if isinstance(request, Join) and isinstance(reply, Joined):
                self._joined = request.run_id, reply.num_shared, _num_elements(reply.model)
        except (Closed, NotWanted, WireError):
            raise
        except Exception as error:
            logging.getLogger(__name__).error("%s", traceback.format_exc())
            return Refused(silo=self.name, code="failed", reason=public(error))
        if isinstance(reply, Progress):  # bytes under way are progress, too
            return replace(reply, marks=reply.marks + self._line.moved)
        return reply

    # the model comes

    def _fetched(self, id: str, request: Carrying) -> dict[str, NDArray[np.float32]]:
        """The model in this silo's memory, which is that of the one before: only one is worked on at a time."""
        layout, longest = request.model, self._longest(request)
        if len(layout) > MAX_COLUMNS or any(size > longest for _, size in layout):
            raise WireError("oversize", f"a model of {layout}, where {longest} elements are shared"[:200])
        for name, size in layout:
            if name not in self._model or self._model[name].size != size:
                self._model[name] = np.empty(size, np.float32)
        parts = {name: self._model[name] for name, _ in layout}
        ranges = [(name, *block) for name, size in layout for block in blocks(size, CHUNK)]
        for _ in self._move.map(lambda at: self._fetch(id, request, *at), ranges):
            pass
        if isinstance(request, Load):  # once in a run
            self._model.clear()
        return {name: _read_only(part) for name, part in parts.items()}

    def _longest(self, request: Carrying) -> int:
        _, num_shared, num_elements = self._joined or ("", 0, 0)
        return num_elements if isinstance(request, Load) else num_shared

    def _fetch(self, id: str, request: Request, name: str, start: int, stop: int) -> None:
        def move(low: int, high: int) -> None:
            content = {"request": id, "name": name, "start": low, "stop": high}
            answer, frame = self._line.ask("model", content, patient=False)
            if not answer.get("known"):
                raise NotWanted
            check_context(frame, request)
            values = frame.arrays.get("values")
            if values is None or values.dtype != np.float32 or values.size != high - low:
                raise WireError("schema", f"elements {low} to {high} of '{name}' did not come")
            self._model[name][low:high] = values

        self._pace.move(start, stop, move)

    # the answer goes

    def _answer(self, id: str, context: Mapping[str, Any], reply: Reply) -> None:
        content = {"request": id, "kind": kind_of(reply), "text": text_of(reply)}
        packet = (reply.packet or {}) if isinstance(reply, Update | Piece) else {}
        if sum(array.size for array in packet.values()) <= self._pace.chunk:
            try:
                self._say("reply", content, packet, context, patient=not packet)
                return
            except Slow:
                self._pace.slow()
        with self._sending:
            self._send_all(id, content, packet, context)

    def _send_all(self, id: str, content: Mapping[str, Any], packet: Packet, context: Any) -> None:
        announced = {name: [str(array.dtype), array.size] for name, array in packet.items()}
        self._say("reply", {**content, "announced": announced}, {}, context)
        ranges = [(name, *block) for name, array in packet.items() for block in blocks(array.size, CHUNK)]
        for _ in self._move.map(lambda at: self._send(id, packet, context, *at), ranges):
            pass

    def _send(self, id: str, packet: Packet, context: Any, name: str, start: int, stop: int) -> None:
        def move(low: int, high: int) -> None:
            self._say("part", {"request": id, "start": low}, {name: packet[name][low:high]}, context, False)

        self._pace.move(start, stop, move)

    def _say(
        self,
        kind: str,
        content: Mapping[str, Any],
        packet: Mapping[str, Any],
        context: Any,
        patient: bool = True,
    ) -> None:
        answer, _ = self._line.ask(kind, content, packet, context, patient=patient)
        if not answer.get("known"):
            raise NotWanted


def _num_elements(model: Mapping[str, Any]) -> int:
    """Of all tensors of a model, as its silo describes it."""
    return sum(math.prod(entry["shape"]) for entry in model.get("entries", ()))


def _read_only(array: NDArray[np.float32]) -> NDArray[np.float32]:
    view = array.view()
    view.flags.writeable = False
    return view
