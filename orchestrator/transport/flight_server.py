"""The driver's door: one Arrow Flight action over mutual TLS, a signed frame in and a signed frame out.

TLS admits whom a known CA certified; the roster says which silo that is; the frame's signature, session and number
say that this silo said it, now. Whatever is wrong is answered with a reason, recorded, and changes nothing.
"""

import json
import logging
import secrets
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from orchestrator.core.printable import printable
from orchestrator.transport.certs import Credentials, Member, verify
from orchestrator.transport.wire import Arrays, Frame, WireError, decode, encode, sha256_of

ACTION = "siloray"
"""The one action. Everything else that Flight could do is not implemented, hence refused."""

WINDOW = 4096
"""Frames of a session may arrive so many numbers out of order."""

MAX_SESSIONS = 8
"""Of one silo that were begun and not yet used; the oldest gives way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes into an answer: JSON content, and vectors."""

    content: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)
    digest: Callable[[memoryview], str] = sha256_of
    """Of the vectors' bytes, which may be known already."""
    context: dict[str, Any] = field(default_factory=dict)
    """What work it is about, for the header."""


@dataclass
class Session:
    """One connection of one silo. Frames of older ones are refused, as are numbers that were used before."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    _highest: int = -1
    _seen: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, seq: int) -> None:
        """Raises `WireError` for a number that was used, or is too old to tell."""
        with self._lock:
            if seq in self._seen or seq <= self._highest - WINDOW:
                raise WireError("replay", f"frame {seq} of this session came before")
            self._seen.add(seq)
            self._highest = max(self._highest, seq)
            if len(self._seen) > 2 * WINDOW:
                self._seen = {each for each in self._seen if each > self._highest - WINDOW}


@dataclass
class _Sessions:
    """Of one silo: those that were begun, and the one in use."""

    begun: list[Session] = field(default_factory=list)
    current: Session | None = None


Handle = Callable[[Member, Session, Frame], Answer]
Refused = Callable[[str, str, str], None]
"""Called with who, a stable code, and a sentence."""


class FlightServer(fl.FlightServerBase):  # type: ignore[misc]
    """Answers authenticated frames with ``handle``; it is up when the constructor returns."""

    def __init__(
        self, listen: tuple[str, int], credentials: Credentials, handle: Handle, refused: Refused
    ) -> None:
        self._credentials, self._handle, self._refused = credentials, handle, refused
        self._sessions: dict[str, _Sessions] = {}
        self._lock = threading.Lock()
        super().__init__(
            f"grpc+tls://{listen[0]}:{listen[1]}",
            tls_certificates=[(credentials.certificate, credentials.key)],
            verify_client=True,
            root_certificates=credentials.ca,
        )

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        peer = context.peer_identity().decode(errors="replace")
        return iter([fl.Result(pa.py_buffer(self._answer(peer, action)))])

    def _answer(self, peer: str, action: Any) -> memoryview:
        """Never raises: what Flight makes of an exception would carry our traceback to the other side."""
        frame = None
        try:
            member = self._member(peer, action.type)
            frame = decode(action.body, lambda data, signature: verify(member, data, signature))
            return self._frame("answer", frame, self._known(member, frame))
        except WireError as error:
            self._refused(peer, error.code, error.reason)
            return self._frame("refused", frame, Answer({"code": error.code, "reason": error.reason}))
        except Exception as error:
            lines = traceback.format_exc().splitlines()  # in which the silo's words may stand
            logging.getLogger(__name__).error("%s: %s", peer, "\n".join(map(printable, lines)))
            self._refused(peer, "failed", f"a defect in the driver: {type(error).__name__}")
            return self._frame(
                "refused", frame, Answer({"code": "failed", "reason": "a defect in the driver"})
            )

    def _member(self, peer: str, action: str) -> Member:
        if action != ACTION:
            raise WireError("unknown", f"no action '{action[:40]}'")
        roster = self._credentials.roster.current()
        member = roster.silo_of(peer)
        if member is None or roster.revoked(member):
            raise WireError("member", f"{peer[:200]} is not, or no longer, in the roster")
        return member

    def _known(self, member: Member, frame: Frame) -> Answer:
        header = frame.header
        if header.sender != member.identity:
            raise WireError("identity", f"{member.identity} speaks in the name of {header.sender}")
        if header.kind == "challenge":
            return Answer({"session": self._begin(member).id, "nonce": header.content})
        session = self._session(member, header.session, header.kind == "hello")
        session.take(header.seq)
        return self._handle(member, session, frame)

    def _begin(self, member: Member) -> Session:
        with self._lock:
            mine = self._sessions.setdefault(member.name, _Sessions())
            mine.begun = [*mine.begun, Session()][-MAX_SESSIONS:]
            return mine.begun[-1]

    def _session(self, member: Member, wanted: str, hello: bool) -> Session:
        """The session of this id. The first frame of a new one is the ``hello`` that ends the one before."""
        with self._lock:
            mine = self._sessions.setdefault(member.name, _Sessions())
            if hello:
                mine.current = next((each for each in mine.begun if each.id == wanted), mine.current)
                mine.begun = [each for each in mine.begun if each is not mine.current]
            if mine.current is None or mine.current.id != wanted:
                raise WireError("session", "this session is over, or never was")
            return mine.current

    def _frame(self, kind: str, asked: Frame | None, answer: Answer) -> memoryview:
        """An answer carries the question's session and number, so that no other answer can take its place."""
        header = asked.header if asked else None
        return encode(
            kind,
            self._credentials.identity,
            header.session if header else "",
            header.seq if header else 0,
            json.dumps(answer.content),
            self._credentials.sign,
            answer.arrays,
            answer.context,
            answer.digest,
        )
