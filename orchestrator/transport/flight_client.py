"""A silo's line to the driver: it dials out, signs, checks the driver's signature, and dials again when cut off."""

import itertools
import json
import random
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from orchestrator.transport.certs import Credentials, verify
from orchestrator.transport.flight_server import ACTION
from orchestrator.transport.wire import Frame, WireError, decode, encode

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Between attempts to reach the driver; the last one repeats."""
REFUSED_PAUSE_S = 15.0
"""A driver that refuses this silo is asked again so often: its roster may be mended."""
CALL_S = 30.0
"""A frame that takes longer was too large for the line."""
DIAL_S = 10.0
CONNECTIONS = 4
"""Of one line. A connection has one thread that encrypts, and one at the other end that decrypts."""


class Slow(Exception):
    """The frame did not get through in time; a smaller one may."""


class Closed(Exception):
    """This side has closed the line."""


class Line:
    """Calls from any thread. ``hello`` makes the content of a session's first frame; ``say`` is told when the line
    is lost, refused, or there again."""

    def __init__(
        self,
        uri: str,
        credentials: Credentials,
        hello: Callable[[], dict[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        self.uri, self._credentials, self._hello, self._say = uri, credentials, hello, say
        self.moved = 0
        """Bytes sent and received so far."""
        self._lock = threading.Lock()
        self._clients: tuple[Any, ...] = ()
        self._session, self._seq = "", itertools.count()
        self._generation = self._turn = 0
        self._closed = threading.Event()
        self._said = ""

    def ask(
        self,
        kind: str,
        content: Mapping[str, Any],
        arrays: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        timeout_s: float = CALL_S,
        patient: bool = True,
    ) -> tuple[dict[str, Any], Frame]:
        """The answer, however often the line has to be dialled anew for it. Raises `WireError` when the driver
        refuses this very frame, `Slow` (unless ``patient``) when it took too long, `Closed`."""
        for attempt in itertools.count():
            client, session, generation = self._connected()
            try:
                return self._once(client, session, kind, content, arrays, context, timeout_s)
            except fl.FlightTimedOutError:
                if not patient:
                    raise Slow from None
                self._lost(generation, f"no answer within {timeout_s:g} s")
            except (fl.FlightError, pa.ArrowException, OSError) as error:
                self._lost(generation, one_line(error))
            except WireError as error:
                if error.code != "session":
                    raise
                self._lost(generation, "the driver was started anew")
            self._pause(PAUSES_S[0] if attempt == 0 else PAUSES_S[1])
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Wake all who wait; they get `Closed`."""
        self._closed.set()
        self._lost(self._generation, "closed")

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def _connected(self) -> tuple[Any, str, int]:
        with self._lock:
            for attempt in itertools.count():
                if self._closed.is_set():
                    raise Closed
                if self._clients:
                    self._turn += 1
                    client = self._clients[self._turn % CONNECTIONS]
                    return client, self._session, self._generation
                self._dial(attempt)
        raise AssertionError("unreachable")

    def _dial(self, attempt: int) -> None:
        """One attempt; then the line is there, or some time has passed."""
        pause = PAUSES_S[min(attempt, len(PAUSES_S) - 1)]
        try:
            clients = tuple(self._new_client() for _ in range(CONNECTIONS))
            session = self._challenge(clients[0])
            self._once(clients[0], session, "hello", self._hello(), None, None, DIAL_S)
            self._clients, self._session = clients, session
            self._tell(f"connected to {self.uri}")
            return
        except WireError as error:
            pause = REFUSED_PAUSE_S
            self._tell(f"{self.uri} refuses this silo: {error}")
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            self._tell(f"{self.uri} cannot be reached: {one_line(error)}")
        self._pause(pause)

    def _new_client(self) -> Any:
        """A channel of its own: gRPC would otherwise share one, and its back-off, among clients of an address."""
        return fl.FlightClient(
            self.uri,
            tls_root_certs=self._credentials.ca,
            cert_chain=self._credentials.certificate,
            private_key=self._credentials.key,
            generic_options=[("grpc.use_local_subchannel_pool", 1)],
        )

    def _challenge(self, client: Any) -> str:
        """A session's id is the driver's choice, so that nothing that was ever said opens one again."""
        nonce = secrets.token_hex(16)
        answer, _ = self._once(client, "", "challenge", {"nonce": nonce}, None, None, DIAL_S)
        if answer.get("nonce") != json.dumps({"nonce": nonce}):
            raise WireError("replay", "the driver's answer is not to this question")
        return str(answer.get("session"))

    def _once(
        self,
        client: Any,
        session: str,
        kind: str,
        content: Mapping[str, Any],
        arrays: Mapping[str, Any] | None,
        context: Mapping[str, Any] | None,
        timeout_s: float,
    ) -> tuple[dict[str, Any], Frame]:
        own, seq = self._credentials, next(self._seq)
        frame = encode(kind, own.identity, session, seq, json.dumps(content), own.sign, arrays, context)
        results = client.do_action(
            fl.Action(ACTION, pa.py_buffer(frame)), fl.FlightCallOptions(timeout=timeout_s)
        )
        bodies = [result.body for result in results]  # to the end: a call that is left early is cancelled
        if len(bodies) != 1:
            raise WireError("length", f"{len(bodies)} frames in answer to one")
        body = bodies[0]
        self.moved += len(frame) + body.size if arrays or body.size > 1 << 16 else 0
        return self._answer(body, session, seq)

    def _answer(self, body: Any, session: str, seq: int) -> tuple[dict[str, Any], Frame]:
        driver = self._credentials.roster.current().driver
        frame = decode(body, lambda data, signature: verify(driver, data, signature))
        content = frame.content
        if frame.header.kind == "refused":
            raise WireError(str(content.get("code")), str(content.get("reason")))
        if (frame.header.session, frame.header.seq) != (session, seq):
            raise WireError("replay", "the driver's answer is not to this question")
        return content, frame

    def _lost(self, generation: int, why: str) -> None:
        """Whoever notices first ends this connection; the next call dials."""
        with self._lock:
            if not self._clients or generation != self._generation:
                return
            # Not closed: others may be amid a call, which would end with a segmentation fault. It goes with them.
            self._clients = ()
            self._generation += 1
        if not self._closed.is_set():
            self._tell(f"lost the line to {self.uri}: {why}")

    def _pause(self, seconds: float) -> None:
        """Not all silos at once after a cut."""
        self._closed.wait(seconds * random.uniform(0.7, 1.3))

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


def one_line(error: BaseException) -> str:
    """What gRPC has to say, without its context dump."""
    text = " ".join(str(error).split(". gRPC client debug context")[0].split())
    text = text.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
    return text[:200] or type(error).__name__
