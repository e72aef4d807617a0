"""Attacks on the driver's door, on real sockets, while a run goes on behind it.

Each is refused, stands in the journal, and nobody dies: the run ends with the bits that it has without the attack.
"""

import datetime as dt
import itertools
import json
import math
import os
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import Join, Ping, Reply, Request, Stop, Train
from orchestrator.job import Job
from orchestrator.store import Store
from orchestrator.summary import read_summary
from orchestrator.transport.authority import Authority
from orchestrator.transport.certs import Credentials
from orchestrator.transport.driver_process import Assignment, DriverProcess
from orchestrator.transport.flight import FlightChannel
from orchestrator.transport.flight_client import Closed, Line
from orchestrator.transport.flight_server import ACTION, Answer, FlightServer
from orchestrator.transport.mailbox import CHUNK
from orchestrator.transport.served import Refusals
from orchestrator.transport.wire import CONTEXT, MAX_BODY, MAX_HEADER, WireError, decode, encode
from orchestrator.transport.wire_messages import kind_of, text_of
from silos.agent import Agent
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
from silos.site import Site
from silos.workplace import InThread
from tests.support import frames
from tests.support.consortium import LIMIT_S, Consortium, until
from tests.support.federation import absent, federate
from tests.support.frames import column, flipped, header, regions, seal, stream
from tests.support.quadratic import job_of, problems, silo_makers, sites
from tests.support.scratch import scratch
from tests.support.served import audit_of, listening

TOTAL = 4
SILOS = ("s0", "s1", "s2")
PROBLEMS = problems(3)


def job(total: int = TOTAL, **sections: Any) -> Job:
    return job_of(SILOS, total, **sections)


_known: dict[str, str] = {}


def undisturbed(asked: Job) -> str:
    """Digest of the job without anybody who interferes."""
    if asked.digest not in _known:
        with scratch() as folder:
            _known[asked.digest] = federate(asked, silo_makers(sites(PROBLEMS, folder)), folder).digest
    return _known[asked.digest]


class Held:
    """A silo that trains no version before the test allows it."""

    def __init__(self, live: "Live", silo: Any) -> None:
        self.live, self.silo = live, silo

    def handle(self, request: Request) -> Reply:
        while isinstance(request, Train) and request.version > self.live.allowed:
            time.sleep(0.005)
        reply: Reply = self.silo.handle(request)
        return reply


class Live:
    """A run with its door, its agents, and its journal. It stands still after its first round, until allowed on."""

    def __init__(self, folder: Path, asked: Job, patience_s: float = 20.0) -> None:
        self.folder, self.asked, self.patience_s = folder, asked, patience_s
        self.consortium = Consortium(folder / "ca", (*SILOS, "mallory"))
        made = silo_makers(sites(PROBLEMS, folder / "silos"))
        self.makers: dict[str, Callable[[], Any]] = {
            name: lambda make=make: Held(self, make()) for name, make in made.items()
        }
        self.allowed: float = 0
        """The newest version that may be trained from."""
        self.agents: dict[str, Agent] = {}
        self._dialling: dict[str, threading.Lock] = {}
        self._kept: set[str] = set()
        """Silos whose line a test has: their agents must not dial a new one meanwhile."""
        self.said: list[str] = []
        self.channel: Any = None

    @property
    def uri(self) -> str:
        return f"grpc+tls://127.0.0.1:{self.channel.port}"

    def start(self) -> None:
        def opened(_: Assignment, asked: Job, record: Any) -> FlightChannel:
            driver, refused = self.consortium.of("driver"), Refusals(record)
            self.channel = FlightChannel(asked.silos, driver, ("127.0.0.1", 0), self.patience_s, refused)
            return self.channel

        run_dir = self.folder / "run"
        self.process = DriverProcess(
            Assignment("run", str(run_dir), self.asked.model_dump_json(), None, [], None), opened
        )
        until(lambda: self.channel is not None)
        for silo in SILOS:
            self.join(silo)

    def join(self, silo: str) -> None:
        agent = Agent(silo, self.uri, self.consortium.of(silo), InThread(self.makers[silo]), self.said.append)
        self.agents[silo] = agent
        self._dialling[silo] = threading.Lock()
        dial = agent._line._dial

        def in_turn(attempt: int) -> None:
            with self._dialling[silo]:
                if not agent._line.closed:
                    dial(attempt)

        agent._line._dial = in_turn  # type: ignore[method-assign]
        threading.Thread(target=agent.run, daemon=True).start()

    def keep_from_dialling(self, silo: str) -> None:
        if silo not in self._kept:
            self._dialling[silo].acquire()
            self._kept.add(silo)

    def let_dial(self) -> None:
        while self._kept:
            self._dialling[self._kept.pop()].release()

    @property
    def version(self) -> int:
        return max((each["version"] for each in self.events if each["type"] == "round_closed"), default=0)

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.process.events(0, 0)[0]

    def until_version(self, version: int) -> None:
        until(lambda: self.version >= version or self.process.outcome())
        assert self.process.outcome() is None, self.process.outcome()

    def finish(self) -> "Ended":
        self.let_dial()
        self.allowed = math.inf
        until(lambda: self.process.outcome())
        return Ended(self)

    def close(self) -> None:
        self.let_dial()
        self.allowed = math.inf
        self.process.stop(now=True)
        until(lambda: self.process.outcome())
        for agent in self.agents.values():
            agent.close()


class Ended:
    """What the run's record says."""

    def __init__(self, live: Live) -> None:
        self.outcome = live.process.outcome()
        run_dir = live.folder / "run"
        self.journal = [event for _, event in Store(run_dir).events()]
        self.summary = read_summary(run_dir)
        self.digest = self.summary["parameters_digest"]

    def turned_away(self) -> set[tuple[str, str]]:
        """Who, and with which code."""
        return {
            (each["who"].rpartition("/")[2], each["code"])
            for each in self.journal
            if each["type"] == "call_refused"
        }

    def refused(self) -> list[tuple[str, int, str]]:
        return [
            (each["silo"], each["version"], each["code"])
            for each in self.journal
            if each["type"] == "update_refused"
        ]


@contextmanager
def running(asked: Job | None = None, **options: Any) -> Iterator[Live]:
    """A run that has closed its first round."""
    with scratch() as folder:
        live = Live(folder, asked or job(), **options)
        live.start()
        try:
            live.until_version(1)
            yield live
        finally:
            live.close()


def well(live: Live) -> Ended:
    """The run ends as if nothing had happened."""
    ended = live.finish()
    assert ended.outcome.status == "done", ended.outcome
    assert ended.digest == undisturbed(live.asked)
    return ended


class Raw:
    """Speaks to a door without any of our client's manners, with what lies in a credentials folder."""

    def __init__(self, live: Live, folder: Path, uri: str | None = None) -> None:
        read = lambda name: (folder / name).read_bytes()  # noqa: E731
        self.client = fl.FlightClient(
            uri or live.uri,
            tls_root_certs=(live.consortium.folder / "ca.pem").read_bytes(),
            cert_chain=read("tls.pem") if (folder / "tls.pem").exists() else None,
            private_key=read("tls.key") if (folder / "tls.key").exists() else None,
            generic_options=[("grpc.use_local_subchannel_pool", 1)],
        )
        self.driver = live.consortium.of("driver")

    def send(self, frame: Any, action: str = ACTION) -> tuple[str, dict[str, Any]]:
        """Kind and content of the answer, which the driver signed."""
        options = fl.FlightCallOptions(timeout=10.0)
        answer = next(iter(self.client.do_action(fl.Action(action, pa.py_buffer(frame)), options)))
        found = decode(answer.body, self._signed).header
        return found.kind, json.loads(found.content)

    def refused(self, frame: Any, action: str = ACTION) -> str:
        kind, content = self.send(frame, action)
        assert kind == "refused", (kind, content)
        assert "Traceback" not in content["reason"] and "\n" not in content["reason"]
        return str(content["code"])

    def _signed(self, data: bytes, signature: bytes) -> bool:
        self.driver.public_key.verify(signature, data)
        return True


class Member(Raw):
    """With the keys of a member: frames that are as they must be, but for what the test makes wrong."""

    def __init__(self, live: Live, name: str) -> None:
        super().__init__(live, live.consortium.folder / name)
        self.live, self.name = live, name
        self.own = live.consortium.of(name)
        self.session, self._seq = "", itertools.count()
        self.about: dict[str, Any] = {"run_id": "run", "epoch": 1}
        """What its frames say that they are about: the request that it got last."""

    def frame(
        self, kind: str, content: Any, arrays: Mapping[str, Any] | None = None, **context: Any
    ) -> bytes:
        text = content if isinstance(content, str) else json.dumps(content)
        head = {**self.about, **context}
        made = encode(
            kind, self.own.identity, self.session, next(self._seq), text, self.own.sign, arrays, head
        )
        return bytes(made)

    def challenged(self) -> str:
        kind, content = self.send(self.frame("challenge", {"nonce": "n"}))
        assert kind == "answer"
        return str(content["session"])

    def take_line_of(self, agent: Agent) -> None:
        """In the name of the agent's incarnation, so that nothing is lost by it; while it works and waits. It has the
        line back when `Live.let_dial` says so."""
        box = self.live.channel._boxes[agent.name]
        until(lambda: any(box.find(id) for id in list(agent._held)))
        self.live.keep_from_dialling(agent.name)
        self.session = self.challenged()
        assert self.send(self.frame("hello", agent._hello()))[0] == "answer"

    def asked(self, kind: str = "Train") -> dict[str, Any]:
        """A request that the driver waits for an answer to."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            _, content = self.send(self.frame("next", {"held": []}))
            found = [each for each in content["requests"] if each["kind"] == kind]
            if found:
                text = json.loads(found[0]["text"])
                self.about = {name: text[name] for name in CONTEXT if name in text}
                return dict(found[0])
        raise AssertionError(f"no {kind} within {LIMIT_S} s")


# Who is not let in


def nothing(live: Live) -> Path:
    return live.folder / "empty"


def foreign(live: Live) -> Path:
    """A certificate that says the right name, of another CA."""
    return Authority.create(live.folder / "foreign", "another").issue_silo("s0")


def expired(live: Live) -> Path:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=30)
    copy = live.folder / "past"
    shutil.copytree(live.consortium.folder, copy)
    folder = Authority(copy, now=past).issue_silo("s0", days=10, force=True)
    with pytest.raises(BadInput, match="expired on"):
        Credentials.load(folder)
    return folder


@pytest.mark.parametrize(
    ("credentials", "logged"),
    [
        (nothing, "peer did not return a certificate"),
        (foreign, "certificate verify failed"),
        (expired, "certificate has expired"),
    ],
)
def test_whom_no_known_ca_certifies_now_does_not_get_through_the_handshake(
    credentials: Callable[[Live], Path], logged: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """TLS turns it away before a byte reaches us: the journal cannot know of it. The driver's stderr has the reason,
    from gRPC, without the address of who it was."""
    with running() as live:
        raw = Raw(live, credentials(live))
        with pytest.raises(fl.FlightError):
            raw.send(Member(live, "s0").frame("challenge", {}))
        assert Member(live, "s1").challenged(), "the door still answers"
        assert well(live).turned_away() == set()
    assert logged in capfd.readouterr().err


def test_what_is_no_tls_and_what_is_no_action_of_ours_is_not_answered() -> None:
    """There is one action. Nobody can list, get, put or exchange anything: no way leads to another silo."""
    with running() as live:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 4000, b"", b"SLRY" * 100):
            with socket.create_connection(("127.0.0.1", live.channel.port), timeout=5) as plain:
                plain.sendall(data)
        s1, options = Member(live, "s1"), fl.FlightCallOptions(timeout=5)
        path, schema = fl.FlightDescriptor.for_path("s0"), pa.schema([("x", pa.int8())])
        for attempt in (
            lambda: list(s1.client.list_flights(options=options)),
            lambda: list(s1.client.list_actions(options)),
            lambda: s1.client.get_flight_info(path, options),
            lambda: s1.client.get_schema(path, options),
            lambda: s1.client.do_get(fl.Ticket(b"s0"), options).read_all(),
            lambda: s1.client.do_put(path, schema, options)[0].close(),
            lambda: s1.client.do_exchange(path, options)[1].read_chunk(),
        ):
            with pytest.raises((pa.ArrowException, NotImplementedError)) as refused:
                attempt()
            assert "/work/" not in str(refused.value), "no path of ours"
        for action in ("", "Siloray", "exec", "x" * 10_000):
            assert s1.refused(s1.frame("challenge", {}), action) == "unknown"
        assert s1.challenged()
        assert ("s1", "unknown") in well(live).turned_away()


# Who says to be another


def test_a_member_cannot_speak_for_another() -> None:
    with running() as live:
        s0, s1 = Member(live, "s0"), Member(live, "s1")
        own, stolen = s1.own, s0.own.signing_key
        for signing_key, name, code in (
            (own.signing_key, s0.own.identity, "identity"),
            (stolen, s0.own.identity, "signature"),
            (stolen, own.identity, "signature"),
        ):
            s1.own = replace(own, identity=name, signing_key=signing_key)
            for kind in ("challenge", "hello", "next", "reply", "part", "model"):
                assert s1.refused(s1.frame(kind, {})) == code
        assert {("s1", "identity"), ("s1", "signature")} <= well(live).turned_away()


def test_another_ca_that_the_driver_trusts_cannot_make_a_silo_of_ours() -> None:
    """An organisation's own CA certifies its silo; for another's name it lacks that silo's signing key."""
    with scratch() as folder:
        live = Live(folder, job())
        forged = Authority.create(folder / "another", "another").issue_silo("s0")
        ours, theirs = live.consortium.folder / "driver/ca.pem", folder / "another/ca.pem"
        ours.write_bytes(ours.read_bytes() + theirs.read_bytes())
        live.start()
        try:
            live.until_version(1)
            s0 = Member(live, "s0")
            s0.client = Raw(live, forged).client
            assert s0.challenged(), "TLS lets its certificate in, for who has the key that the roster names"
            s0.own = replace(s0.own, signing_key=Credentials.load(forged).signing_key)
            for kind in ("challenge", "hello", "next", "reply", "part", "model"):
                assert s0.refused(s0.frame(kind, {})) == "signature"
            assert ("s0", "signature") in well(live).turned_away()
        finally:
            live.close()


def test_the_summary_says_who_was_turned_away() -> None:
    with running() as live:
        s1 = Member(live, "s1")
        assert s1.refused(b"") == "length"
        (told,) = well(live).summary["turned_away"]
        assert (told["who"], told["code"], told["times"]) == (s1.own.identity, "length", 1)


def test_who_is_no_silo_of_the_consortium_or_of_the_job_is_told_nothing() -> None:
    with running() as live:
        copy = live.folder / "copy"
        shutil.copytree(live.consortium.folder, copy)
        ghost = Raw(live, Authority(copy).issue_silo("ghost"))
        driver = Raw(live, live.consortium.folder / "driver")
        frame = Member(live, "s0").frame("challenge", {})
        assert ghost.refused(frame) == "member", "our CA certified it, the roster does not know it"
        assert driver.refused(frame) == "member", "the driver is no silo"
        mallory = Member(live, "mallory")
        mallory.session = mallory.challenged()
        for kind in ("hello", "next", "reply", "part", "model"):
            assert mallory.refused(mallory.frame(kind, {"incarnation": "m"})) == "member"
        assert {("ghost", "member"), ("driver", "member"), ("mallory", "member")} <= well(live).turned_away()


def test_a_silo_cannot_touch_what_was_asked_of_another() -> None:
    with running() as live:
        s0, s1 = Member(live, "s0"), Member(live, "s1")
        s0.take_line_of(live.agents["s0"])
        id = s0.asked()["id"]
        s1.take_line_of(live.agents["s1"])
        refusal = {
            "kind": "Refused",
            "text": json.dumps({"silo": "s0", "code": "policy", "reason": "no", "of": ""}),
        }
        for kind, content in (
            ("reply", refusal),
            ("part", {"start": 0}),
            ("model", {"name": "params", "start": 0, "stop": 5}),
        ):
            _, answer = s1.send(s1.frame(kind, {"request": id, **content}))
            assert answer == {"known": False}
        assert well(live).refused() == []


def test_a_silo_that_answers_in_the_name_of_another_is_refused() -> None:
    text = json.dumps({"silo": "s1", "code": "policy", "reason": "not today", "of": ""})
    with running(job(rounds={"min_updates": 2})) as live:
        assert hijacked(live, lambda _: ("reply", {"kind": "Refused", "text": text}, {})) == "identity"
        assert_as_if_absent(live, "identity")


# What was altered, is too large, came before


def test_altered_bytes_are_found_wherever_they_are() -> None:
    expected = {
        "magic": {"format"},
        "format": {"format"},
        "length": {"length", "signature"},
        "header": {"signature"},
        "signature": {"signature"},
        "body": {"digest"},
    }
    with running() as live:
        s0 = Member(live, "s0")
        frame = s0.frame("challenge", {}, {"values": np.arange(5, dtype=np.float32)})
        for region, span in regions(frame).items():
            at = range(span.start, span.stop, max(1, len(span) // 7))
            assert {s0.refused(flipped(frame, each, each % 8)) for each in at} <= expected[region], region
        assert s0.refused(frame[:-1]) == "length" and s0.refused(frame + b"\0") == "length"
        assert s0.refused(b"") == "length"
        assert {("s0", code) for codes in expected.values() for code in codes} <= well(live).turned_away()


def test_frames_that_are_too_large_are_refused_unread() -> None:
    with running() as live:
        s0 = Member(live, "s0")
        sign = s0.own.sign
        assert s0.refused(seal(b" " * (MAX_HEADER + 1), b"", sign)) == "length"
        assert s0.refused(seal(header([], b""), bytes(MAX_BODY + 1), sign)) == "length"
        data = stream(np.zeros(20_000_000, np.float32), compression="zstd")
        bomb = seal(header([column(data, size=20_000_000)], data, sender=s0.own.identity), data, sign)
        assert s0.refused(bomb) == "schema"
        assert {("s0", "length"), ("s0", "schema")} <= well(live).turned_away()


def test_what_was_said_before_counts_for_nothing() -> None:
    """The same frame twice; one of a session that is over; one of a session that never was."""
    with running() as live:
        s0 = Member(live, "s0")
        s0.take_line_of(live.agents["s0"])
        id = s0.asked("Train")["id"]
        said = s0.frame("model", {"request": id, "name": "params", "start": 0, "stop": 5})
        assert s0.send(said)[0] == "answer" and s0.refused(said) == "replay"
        hello = s0.frame("hello", live.agents["s0"]._hello())
        assert s0.send(hello)[0] == "answer" and s0.refused(hello) == "replay"
        later = s0.frame("next", {"held": []})
        live.let_dial()
        until(lambda: s0.refused(said) == "session")  # the agent has dialled anew
        assert s0.refused(hello) == "session" and s0.refused(later) == "session", "though nobody saw this one"
        begun = s0.challenged()
        s0.session = begun
        assert s0.refused(s0.frame("next", {"held": []})) == "session", "a session begins with its hello"
        s0.session = "0" * 32
        assert s0.refused(s0.frame("hello", {})) == "session", "the driver chooses a session's name"
        assert {("s0", "replay"), ("s0", "session")} <= well(live).turned_away()


def test_an_answer_to_another_run_or_to_an_older_driver_is_refused_and_the_right_one_counts() -> None:
    with running() as live:
        s0 = Member(live, "s0")
        s0.take_line_of(live.agents["s0"])
        id = s0.asked()["id"]
        text = json.dumps({"silo": "s0", "code": "policy", "reason": "not today", "of": ""})
        content = {"request": id, "kind": "Refused", "text": text}
        for old in ({"epoch": 0}, {"epoch": 2}, {"epoch": -1}, {"run_id": "another"}, {"run_id": ""}):
            assert s0.refused(s0.frame("reply", content, **old)) == "epoch"
            assert s0.refused(s0.frame("part", {**content, "start": 0}, **old)) == "epoch"
        ended = well(live)
        assert ("s0", "epoch") in ended.turned_away() and ended.refused() == []


# What a member may say, and says wrong: only its own answer is lost


def hijacked(live: Live, attack: Callable[[dict[str, Any]], tuple[str, Any, Mapping[str, Any]]]) -> str:
    """Answer a training of s0 in its agent's place; the code with which that was refused."""
    s0 = Member(live, "s0")
    s0.take_line_of(live.agents["s0"])
    asked = s0.asked()
    kind, content, arrays = attack(asked)
    code = s0.refused(s0.frame(kind, {"request": asked["id"], **content}, arrays))
    live.let_dial()
    return code


def assert_as_if_absent(live: Live, code: str) -> None:
    """The run has the bits that it has when s0 does not train the versions of which its answer was refused."""
    ended = live.finish()
    assert ended.outcome.status == "done" and ("s0", code) in ended.turned_away()
    versions = frozenset(version for silo, version, _ in ended.refused() if silo == "s0")
    assert versions and all(code == "failed" for _, _, code in ended.refused())
    with scratch() as folder:
        without = absent(sites(PROBLEMS, folder), "s0", versions)
        assert ended.digest == federate(live.asked, without, folder).digest


FIVE = np.arange(5, dtype=np.float32)
PACKED = {"kind": "Piece", "text": "{}"}
WRONG: dict[str, tuple[str, Any, Mapping[str, Any]]] = {
    "more than asked for": ("reply", {**PACKED, "announced": {"values": ["float32", 1 << 30]}}, {}),
    "no table": ("reply", {**PACKED, "announced": ["values"]}, {}),
    "no text": ("reply", {**PACKED, "announced": {"\ud800": ["float32", 1 << 30]}}, {}),
    "not announced": ("part", {"start": 0}, {"values": FIVE}),
    "no message": ("reply", {"kind": "\ud800", "text": "{}"}, {}),
    "another message": ("reply", {"kind": "Train", "text": "{}"}, {}),
    "wrong fields": ("reply", {"kind": "Update", "text": '{"silo": 7}'}, {}),
    "no fields": ("reply", {}, {}),
    "vectors with none": ("reply", {"kind": "Refused", "text": "{}"}, {"values": FIVE}),
    "pickle": ("reply", {"kind": "Update", "text": pickle.dumps(FIVE, 0).decode("latin-1")}, {}),
}


@pytest.mark.parametrize(
    "names", [list(WRONG)[at : at + 2] for at in range(0, len(WRONG), 2)], ids=" and ".join
)
def test_an_answer_that_cannot_be_read_costs_that_answer_and_no_more(names: list[str]) -> None:
    """Whatever it is, the others' round closes."""
    with running(job(rounds={"min_updates": 2})) as live:
        codes = []
        for name in names:
            codes.append(hijacked(live, lambda _, name=name: WRONG[name]))  # type: ignore[misc]
            live.allowed += 1
            live.until_version(int(live.allowed) + 1)
        assert "failed" not in codes, codes
        assert_as_if_absent(live, codes[0])


def test_a_silo_cannot_have_more_of_the_model_than_a_piece() -> None:
    with running() as live:
        s0 = Member(live, "s0")
        s0.take_line_of(live.agents["s0"])
        id = s0.asked()["id"]
        for start, stop in ((0, CHUNK + 1), (0, 6), (-1, 4), (3, 3), (4, 3), (0, 1 << 70)):
            content = {"request": id, "name": "params", "start": start, "stop": stop}
            assert s0.refused(s0.frame("model", content)) == "oversize"
        for name, start, stop in (("other", 0, 5), ("params", "0", 5), ("params", 0, None), (None, 0, 5)):
            content = {"request": id, "name": name, "start": start, "stop": stop}
            assert s0.refused(s0.frame("model", content)) == "unknown"
        assert {("s0", "oversize"), ("s0", "unknown")} <= well(live).turned_away()


# Revoked


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_revoked_silo_is_turned_away_at_once_and_comes_back_with_new_keys() -> None:
    with running() as live:
        live.consortium.authority.revoke("s2")
        until(lambda: ("s2", "member") in told(live))
        assert Member(live, "s1").challenged()
        live.allowed = 2
        time.sleep(0.5)
        assert live.version <= 2, "the run waits for it, as its policy says"
        live.agents["s2"].close()
        live.consortium.authority.issue_silo("s2", force=True)
        live.join("s2")
        well(live)


@pytest.mark.slow
def test_a_run_that_can_do_without_a_revoked_silo_goes_on() -> None:
    """Once its line has been silent for the patience, which is longer than a poll."""
    with running(job(rounds={"min_updates": 2, "patience_s": 12}), patience_s=12) as live:
        live.consortium.authority.revoke("s2")
        live.allowed = math.inf
        until(lambda: live.process.outcome(), 60)
        ended = live.finish()
        assert ended.outcome.status == "done", ended.outcome
        assert ("s2", "member") in ended.turned_away() and ended.summary["lost"]
        silos = [each["silo"] for each in ended.summary["versions"][-1]["contributors"]]
        assert silos == ["s0", "s1"]


def told(live: Live) -> set[tuple[str, str]]:
    found = (each for each in live.events if each["type"] == "call_refused")
    return {(each["who"].rpartition("/")[2], each["code"]) for each in found}


# A driver, or who claims to be one


@contextmanager
def scripted(
    consortium: Consortium, handle: Callable[..., Any], server: type[FlightServer] = FlightServer, **keys: Any
) -> Iterator[Any]:
    """A door with the driver's certificate (and ``keys`` in place of what is the driver's) that says what it likes."""
    credentials = replace(consortium.of("driver"), **keys)
    door = server(("127.0.0.1", 0), credentials, handle, lambda *_: None)
    try:
        yield door
    finally:
        door.shutdown()


@pytest.fixture
def consortium() -> Iterator[Consortium]:
    with scratch() as folder:
        yield Consortium(folder / "ca", ["s0", "s1"])


@contextmanager
def line_to(door: Any, consortium: Consortium, said: list[str]) -> Iterator[Line]:
    line = Line(f"grpc+tls://127.0.0.1:{door.port}", consortium.of("s0"), dict, said.append)
    try:
        yield line
    finally:
        line.close()


def ask_until_closed(line: Line) -> None:
    with pytest.raises(Closed):
        line.ask("next", {})


def refusal_at_dialling(door: Any, consortium: Consortium) -> str:
    """What a silo says of a door that it does not believe."""
    said: list[str] = []
    with line_to(door, consortium, said) as line:
        thread = threading.Thread(target=ask_until_closed, args=(line,), daemon=True)
        thread.start()
        until(lambda: said)
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    return said[0]


def serve_once(door: Any, consortium: Consortium, site: Site | None = None) -> None:
    """An agent of s0 does what the door asks until it says that the run has ended."""
    site = site or sites(problems(1), consortium.folder)["s0"]
    uri = f"grpc+tls://127.0.0.1:{door.port}"
    agent = Agent("s0", uri, consortium.of("s0"), InThread(lambda: Silo(site)))
    thread = threading.Thread(target=agent.run, args=(True,), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    agent.close()
    assert not thread.is_alive()


class Altering(FlightServer):
    """Its ``bend`` changes what it has signed, from the nth answer on."""

    bend: Callable[[list[bytes]], bytes] = staticmethod(lambda said: said[-1])
    after = 0

    def _answer(self, peer: str, action: Any) -> Any:
        said = self.__dict__.setdefault("said", [])
        said.append(bytes(super()._answer(peer, action)))
        return memoryview(type(self).bend(said) if len(said) > self.after else said[-1])


def echo(member: Any, session: Any, frame: Any) -> Answer:
    return Answer({"kind": frame.header.kind})


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        (lambda said: said[2], "replay"),
        (lambda said: said[0], "replay"),
        (lambda said: flipped(said[-1], 30), "signature"),
        (lambda said: flipped(said[-1], len(said[-1]) - 1), "signature"),
        (lambda said: said[-1][:-1], "length"),
        (lambda said: said[-1] + b"\0", "length"),
        (lambda said: b"\0" * 100, "format"),
        (lambda said: b"", "length"),
    ],
    ids=[
        "an older answer",
        "a challenge",
        "altered",
        "signature altered",
        "cut",
        "longer",
        "zeros",
        "nothing",
    ],
)
def test_a_silo_believes_no_answer_but_the_drivers_to_this_question(
    consortium: Consortium, bend: Callable[[list[bytes]], bytes], code: str
) -> None:
    server = type("Bent", (Altering,), {"bend": staticmethod(bend), "after": 3})
    with scripted(consortium, echo, server) as door, line_to(door, consortium, []) as line:
        assert line.ask("next", {})[0] == {"kind": "next"}
        with pytest.raises(WireError) as refused:
            line.ask("next", {})
        assert refused.value.code == code


def test_a_replayed_challenge_opens_no_session(consortium: Consortium) -> None:
    server = type("Bent", (Altering,), {"bend": staticmethod(lambda said: said[0]), "after": 1})
    with scripted(consortium, echo, server) as door:
        with line_to(door, consortium, []) as other:
            threading.Thread(target=ask_until_closed, args=(other,), daemon=True).start()
            until(lambda: len(door.__dict__.get("said", [])) > 1)
        assert "replay" in refusal_at_dialling(door, consortium)


def test_a_silo_believes_no_driver_with_another_key(consortium: Consortium) -> None:
    """Also one that has the driver's TLS certificate."""
    for name in ("s0", "s1"):
        with scripted(consortium, echo, signing_key=consortium.of(name).signing_key) as door:
            assert "signature" in refusal_at_dialling(door, consortium)


def test_a_silos_certificate_is_none_for_a_driver(consortium: Consortium) -> None:
    s1 = consortium.of("s1")
    with scripted(consortium, echo, certificate=s1.certificate, key=s1.key) as door:
        assert "cannot be reached" in refusal_at_dialling(door, consortium)


def test_a_silo_refuses_an_older_driver_and_tells_its_owner(
    consortium: Consortium, heart_silos: Path, slow_job: Callable[..., Job]
) -> None:
    """Whatever that one asks, and also when it asks for a training in a run that the silo has joined."""
    work, run = slow_job(), {"run_id": "run"}
    asked: list[Request] = [
        Join(**run, epoch=5, job=work.model_dump_json(), job_digest=work.digest),
        Ping(**run, epoch=4),
        Stop(**run, epoch=4),
        Train(**run, epoch=4, version=1, attempt=1, model=(), model_digest="m", counted=-1, inline=1 << 18),
    ]
    replies: list[tuple[str, Any]] = []
    given: list[int] = []

    def handle(member: Any, session: Any, frame: Any) -> Answer:
        content = json.loads(frame.header.content)
        if frame.header.kind == "reply":
            replies.append((content["kind"], json.loads(content["text"])))
            return Answer({"known": True})
        at, told = len(replies), []
        if frame.header.kind == "next" and at < len(asked) and at not in given:
            given.append(at)
            about = {"run_id": asked[at].run_id, "epoch": asked[at].epoch}
            about |= {"model": asked[at].model} if isinstance(asked[at], Train) else {}
            told = [{"id": str(at), "kind": kind_of(asked[at]), "text": text_of(asked[at]), **about}]
        return Answer({"requests": told, "restart": False, "ended": at == len(asked)})

    document = heart_silos / "va.yaml"
    with scripted(consortium, handle) as door:
        serve_once(door, consortium, ConfiguredSite(document))
    assert [(kind, text.get("code")) for kind, text in replies] == [
        ("Joined", None),
        *[("Refused", "fenced")] * 3,
    ]
    audit = audit_of(document.parent / ".siloray/va/audit.jsonl", "refused")
    assert {(line["run"], line["code"]) for line in audit} == {("run", "fenced")}


GOOD = {"requests": [], "restart": False, "ended": True}
ASKED = {"id": "1", "run_id": "r", "epoch": 1}


@pytest.mark.parametrize(
    "content",
    [
        {"requests": [{**ASKED, "kind": "Nothing", "text": "{}"}], "restart": False, "ended": False},
        {"requests": [{**ASKED, "kind": "Train", "text": "{"}], "restart": False, "ended": False},
        {
            "requests": [{**ASKED, "kind": "Ping", "text": '{"run_id": "../..", "epoch": 1}'}],
            "restart": False,
            "ended": False,
        },
        [],
        {},
        {**GOOD, "requests": 7, "ended": False},
        {**GOOD, "requests": [{}], "ended": False},
        {**GOOD, "requests": [{"id": 1, "kind": [], "text": ""}], "ended": False},
        {**GOOD, "requests": [{"id": 1, "kind": "Ping", "text": 7}], "ended": False},
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_agent_outlives_what_a_driver_asks(
    consortium: Consortium, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver can only ask, and ask nonsense."""
    monkeypatch.setattr("silos.agent.REFUSED_S", 0.1)
    asked: list[str] = []

    def handle(member: Any, session: Any, frame: Any) -> Answer:
        if frame.header.kind != "next":
            return Answer({"known": True})
        asked.append("next")
        return Answer(content if len(asked) == 1 else GOOD)

    with scripted(consortium, handle) as door:
        serve_once(door, consortium)
    assert len(asked) > 1


# The three ways in which one Ray node reaches another (tests/integration/test_ray_trust.py)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return self.path.touch, ()


class TrapError(Exception):
    def __init__(self, path: Path) -> None:
        super().__init__(f"trap {path.name}")
        self.path = path

    def __reduce__(self) -> Any:
        return self.path.touch, ()


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that is not there; the traps are armed."""
    path = tmp_path / "sprung"
    for armed in (Trap(path), TrapError(path)):
        pickle.loads(pickle.dumps(armed))
        assert path.exists()
        path.unlink()
    return path


class Bends:
    """A silo that does something else, once, in place of its first answer to a training."""

    def __init__(self, silo: Any, instead: Callable[[Any], Any]) -> None:
        self.silo, self.instead, self.done = silo, instead, False

    def handle(self, request: Request) -> Any:
        reply = self.silo.handle(request)
        if isinstance(request, Train) and request.version == 1 and not self.done:
            self.done = True
            return self.instead(reply)
        return reply


def bending(live: Live, silo: str, instead: Callable[[Any], Any]) -> None:
    make = live.makers[silo]
    live.makers[silo] = lambda: Bends(make(), instead)


def test_an_object_that_runs_code_where_it_is_unpickled_does_not_cross(trap: Path) -> None:
    """Sent as any part of a frame, in each of pickle's forms."""
    with running() as live:
        s0 = Member(live, "s0")
        s0.take_line_of(live.agents["s0"])
        sign, identity = s0.own.sign, {"sender": s0.own.identity, "session": s0.session}
        for protocol, seq in zip(range(pickle.HIGHEST_PROTOCOL + 1), itertools.count(100, 10), strict=False):
            bomb = pickle.dumps(Trap(trap), protocol)
            text = bomb.decode("latin-1")
            assert s0.refused(bomb) in {"length", "format"}
            assert s0.refused(seal(bomb, b"", sign)) == "header"
            assert s0.refused(frames.holding(bomb, sign, size=5, **identity, seq=seq)) == "schema"
            assert (
                s0.refused(seal(header([], b"", **identity, seq=seq + 1, content=text), b"", sign))
                == "header"
            )
            boxed = json.dumps({"held": [], "request": "x", "kind": text, "text": text, "incarnation": text})
            for at, kind in enumerate(("reply", "model"), 2):
                frame = seal(header([], b"", **identity, seq=seq + at, kind=kind, content=boxed), b"", sign)
                assert s0.send(frame) == ("answer", {"known": False})
        well(live)
    assert not trap.exists()


def test_an_exception_that_runs_code_where_it_is_unpickled_arrives_as_text(trap: Path) -> None:
    def raises(_: Any) -> Any:
        raise TrapError(trap)

    with scratch() as folder:
        live = Live(folder, job(rounds={"min_updates": 2}))
        bending(live, "s0", raises)
        live.start()
        try:
            ended = live.finish()
        finally:
            live.close()
        assert ended.outcome.status == "done" and ("s0", 1, "failed") in ended.refused()
        (told,) = [each["reason"] for each in ended.journal if each["type"] == "update_refused"]
        assert told.startswith("TrapError in ") and "sprung" not in told, "its own text may be private"
    assert not trap.exists()


def test_a_reply_that_is_no_message_is_a_refusal(trap: Path) -> None:
    """A silo's own code may put anything into its answer; what is no plain value fails there."""
    with scratch() as folder:
        live = Live(folder, job(rounds={"min_updates": 2}))
        bending(live, "s0", lambda update: replace(update, scalars={"x": Trap(trap)}))
        live.start()
        try:
            ended = live.finish()
        finally:
            live.close()
        assert ended.outcome.status == "done" and ("s0", 1, "failed") in ended.refused()
    assert not trap.exists()


def test_a_silo_listens_to_nobody() -> None:
    """What is not asked through the line cannot be asked: the only port that a run opens is the driver's."""
    before = listening(os.getpid())
    with running() as live:
        assert listening(os.getpid()) - before == {live.channel.port}
        well(live)
