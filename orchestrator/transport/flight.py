"""Silos that dial out: the channel of a federation whose organisations trust neither each other nor one Ray.

The driver listens, each silo connects over mutual TLS and asks what there is to do (a long poll). The driver's calls
wait in the silo's mailbox; a line that breaks and comes back within the patience changes nothing.
"""

import asyncio
import threading
import uuid
from collections.abc import Callable, Sequence, Set
from time import monotonic, sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from orchestrator.core.errors import BadInput, SiloLost
from orchestrator.core.messages import Carrying, Refused, Reply, Request, SiloId
from orchestrator.core.vector import Parts
from orchestrator.core.versions import versions
from orchestrator.transport.certs import Credentials, Member
from orchestrator.transport.flight_client import one_line
from orchestrator.transport.flight_server import Answer, FlightServer, Session
from orchestrator.transport.mailbox import CHUNK, Mailbox, Pending
from orchestrator.transport.todo import Asked, Todo
from orchestrator.transport.wire import Frame, WireError, sha256_of
from orchestrator.transport.wire_messages import check_context, context_of, kind_of, reply_of, text_of

POLL_S = 10.0
"""Longest wait of a silo for something to do; it then asks again, which also says that the line is there. Where the
patience is short, a quarter of it."""
MAX_DIGESTS = 1 << 16
"""Of a model's pieces: a silo chooses which pieces it asks for."""
LOOK_S = 0.5
"""How often a call looks whether its silo is still there."""
LEAVE_S = 2.0
"""Longest wait, at the end, for a silo that is amid two questions and has not heard that it is the end."""


class Published:
    """One model version; silos fetch it in pieces."""

    def __init__(self, parts: Parts) -> None:
        self.id = uuid.uuid4().hex
        self.parts = {name: np.array(part) for name, part in parts.items()}
        """Copies: the driver reuses its memory."""
        self._digests: dict[Any, str] = {}

    def digest_of(self, *piece: Any) -> Callable[[memoryview], str]:
        """Every silo gets the same bytes: their digest is computed once."""

        def digest(body: memoryview) -> str:
            found = self._digests.get(piece) or sha256_of(body)
            if len(self._digests) < MAX_DIGESTS:
                self._digests[piece] = found
            return found

        return digest

    @property
    def layout(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, int(part.size)) for name, part in self.parts.items())


class FlightChannel:
    """Listens until it is closed. ``refused(who, code, reason)`` is called for whatever was turned away."""

    def __init__(
        self,
        silos: Sequence[SiloId],
        credentials: Credentials,
        listen: tuple[str, int],
        patience_s: float,
        refused: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        self._boxes = {silo: Mailbox(silo) for silo in silos}
        self._patience_s, self._poll_s = patience_s, min(POLL_S, patience_s / 4)
        self._closing = threading.Event()
        self._told: set[SiloId] = set()
        """Silos that know that it is the end."""
        check_members(silos, credentials)
        try:
            self._server = FlightServer(listen, credentials, self._handle, refused)
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            raise BadInput(f"{listen[0]}:{listen[1]}: cannot listen here ({one_line(error)})") from None

    @property
    def port(self) -> int:
        return int(self._server.port)

    def online(self) -> Set[SiloId]:
        """All of them may be asked; a call tells who does not answer."""
        return self._boxes.keys()

    def absent_s(self, silo: SiloId) -> float | None:
        """How long the silo has not been heard of; None: never."""
        return self._boxes[silo].absent_s

    def connected(self) -> set[SiloId]:
        """Silos whose line is there now."""
        return {silo for silo in self._boxes if (self.absent_s(silo) or 0.0) < 2 * self._poll_s} - {
            silo for silo in self._boxes if self.absent_s(silo) is None
        }

    async def publish(self, parts: Parts) -> Published:
        return await asyncio.to_thread(Published, parts)

    async def call(self, silo: SiloId, request: Request) -> Reply:
        box = self._boxes[silo]
        self._check_there(box)
        pending = box.post(request)
        try:
            while True:
                done, _ = await asyncio.wait({pending.future}, timeout=LOOK_S)
                if done:
                    return pending.future.result()
                self._check_there(box)
        finally:
            box.drop(pending)
            pending.future.cancel()

    def moved(self, silo: SiloId) -> int:
        return self._boxes[silo].moved

    async def restart(self, silo: SiloId) -> None:
        self._boxes[silo].restart()

    def close(self) -> None:
        """Tell the silos that the run is over, and stop listening."""
        self._closing.set()
        for box in self._boxes.values():
            box.close()
        until = monotonic() + LEAVE_S
        while self.connected() - self._told and monotonic() < until:
            sleep(0.02)
        self._server.shutdown()

    def _check_there(self, box: Mailbox) -> None:
        away = box.absent_s
        if away is None:
            raise SiloLost(box.silo, "has not dialled in yet")
        if away > self._patience_s:
            raise SiloLost(box.silo, f"its line has been silent for {away:.0f} s")

    # called by the door, in threads of its own

    def _handle(self, member: Member, session: Session, frame: Frame) -> Answer:
        box = self._boxes.get(member.name)
        if box is None:
            raise WireError("member", f"{member.name} takes no part in this job")
        content = frame.content
        if frame.header.kind == "hello":
            _check_version(content.get("versions"))
        box.seen()
        match frame.header.kind:
            case "hello":
                box.hello(str(content.get("incarnation", "")))
                return Answer({})
            case "next":
                return Answer(self._next(box, content).model_dump())
            case "reply" | "part":
                return Answer(self._take(box, frame, content))
            case "model":
                return self._model(box, content)
        raise WireError("unknown", f"no frame '{frame.header.kind}'")

    def _next(self, box: Mailbox, content: dict[str, Any]) -> Todo:
        held = content.get("held")
        if not isinstance(held, list) or not all(isinstance(each, str) for each in held):
            raise WireError("header", "'held' is no list of names")
        requests, restart = ([], False) if self._closing.is_set() else box.fetch(held, self._poll_s)
        asked = tuple(_asked(pending) for pending in requests)
        box.seen()
        ended = self._closing.is_set()
        if ended:
            self._told.add(box.silo)
        return Todo(requests=asked, restart=restart, ended=ended)

    def _take(self, box: Mailbox, frame: Frame, content: dict[str, Any]) -> dict[str, Any]:
        """A reply, or a part of one. An answer that nobody waits for any more is not an error."""
        pending = box.find(str(content.get("request", "")))
        if pending is None:
            return {"known": False}
        check_context(frame, pending.request)
        try:
            self._taken(box, pending, frame, content)
        except WireError as error:
            # Asked again, it would answer the same.
            reason = f"its answer cannot be read: {error}"
            box.answer(pending, Refused(silo=box.silo, code="failed", reason=reason))
            raise
        return {"known": True}

    def _taken(self, box: Mailbox, pending: Pending, frame: Frame, content: dict[str, Any]) -> None:
        try:
            if frame.header.kind == "part":
                self._part(box, pending, frame, int(content["start"]))
            else:
                self._reply(box, pending, frame, content)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WireError("header", f"{frame.header.kind}: {type(error).__name__}: {error}"[:200]) from None

    def _reply(self, box: Mailbox, pending: Pending, frame: Frame, content: dict[str, Any]) -> None:
        kind, text = str(content["kind"]), str(content["text"])
        if announced := content.get("announced"):
            box.expect(pending, kind, text, announced)
            return
        sizes = {name: [str(array.dtype), array.size] for name, array in frame.arrays.items()}
        box.admit(pending, sizes)
        box.moved += frame.header.payload_bytes
        box.answer(pending, reply_of(kind, text, packet=frame.arrays or None))

    def _part(self, box: Mailbox, pending: Pending, frame: Frame, start: int) -> None:
        if pending.incoming is None:
            raise WireError("schema", "a part of a reply that was not announced")
        for name, values in frame.arrays.items():
            num_bytes, complete = pending.incoming.put(name, start, values)
            box.moved += num_bytes  # what came twice is no progress
            if complete:
                box.answer(pending, pending.incoming.reply())

    def _model(self, box: Mailbox, content: dict[str, Any]) -> Answer:
        """A piece of a model that this silo was asked to work on."""
        pending = box.find(str(content.get("request", "")))
        if pending is None or not isinstance(pending.request, Carrying):
            return Answer({"known": False})
        part = pending.request.model.parts.get(str(content.get("name")))
        start, stop = content.get("start"), content.get("stop")
        if part is None or not (isinstance(start, int) and isinstance(stop, int)):
            raise WireError("unknown", "no such part of the model")
        if not 0 <= start < stop <= min(part.size, start + CHUNK):
            raise WireError("oversize", f"elements {start} to {stop} of {part.size}")
        box.moved += 4 * (stop - start)
        digest = pending.request.model.digest_of(str(content["name"]), start, stop)
        about = context_of(pending.request)
        return Answer({"known": True}, {"values": part[start:stop]}, digest, about)


def check_members(silos: Sequence[SiloId], credentials: Credentials) -> None:
    """`BadInput` for silos of the job that could never connect."""
    roster = credentials.roster.current()
    if credentials.identity != roster.driver.identity:
        raise BadInput(f"{credentials.folder}: the certificate of {credentials.identity}, not of the driver")
    absent = sorted(set(silos) - roster.silos.keys())
    if absent:
        raise BadInput(
            f"{credentials.folder}: the roster has no {', '.join(absent)}; 'siloray certs issue NAME' adds one"
        )


def _check_version(theirs: Any) -> None:
    """Messages are the same within a minor version, and only there."""
    theirs, own = str(theirs.get("siloray") if isinstance(theirs, dict) else ""), versions()["siloray"]
    if theirs.split(".")[:2] != own.split(".")[:2]:
        raise WireError("version", f"runs Siloray {theirs[:20] or 'of no version'}, the driver {own}")


def _asked(pending: Pending) -> Asked:
    """A request as the silo gets it. The model itself it fetches."""
    request = pending.request
    return Asked(
        id=pending.id,
        kind=kind_of(request),
        text=text_of(request),
        run_id=request.run_id,
        epoch=request.epoch,
        model=request.model.layout if isinstance(request, Carrying) else None,
    )
