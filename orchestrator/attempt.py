"""One attempt at a run: the parts that the driver's phases share, and the words they have in common."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Set
from typing import Literal

from orchestrator.calls import Calls
from orchestrator.core import events
from orchestrator.core.errors import BadInput, CannotGoOn, SiloLost
from orchestrator.core.events import Event
from orchestrator.core.messages import Reply, Request, SiloId
from orchestrator.core.protocols import Channel, Observer
from orchestrator.core.receipts import Receipt
from orchestrator.core.rounds import RoundPolicy, Rounds
from orchestrator.drift import DriftWatch
from orchestrator.enrolment import Enrolment
from orchestrator.global_model import GlobalModel
from orchestrator.heads import Countersigner
from orchestrator.job import Job
from orchestrator.journal import Head
from orchestrator.pacing import Paces
from orchestrator.receipts import Known, flaw
from orchestrator.scoreboard import Scoreboard
from orchestrator.silo_privacy import SiloPrivacy
from orchestrator.store import DiskFull, Store
from orchestrator.weighing import Balance

_SEALING = events.VersionEvaluated | events.RunAssessed | events.RunClosed
"""Durable at once, so that what the silos sign next covers them."""

GIVE_UP = 10
"""A run that waits for silos or for space gives up after so many times the patience; the same command goes on.
A model must have come whole by then."""


class Attempt:
    """What every phase of a run works with. ``calls`` is set by the driver."""

    calls: Calls

    def __init__(
        self,
        job: Job,
        channel: Channel,
        store: Store,
        run_id: str,
        observe: Observer,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.job, self.channel, self.store, self.run_id = job, channel, store, run_id
        self.observe, self.clock = observe, clock
        self.patience_s = job.rounds.patience_s
        self.model = GlobalModel(job, run_id, store)
        self.rounds = Rounds(job.policy, job.sample)
        """The round in hand."""
        self.board = Scoreboard(job.stop, job.training, job.policy.max_staleness)
        self.ledgers = Countersigner(store.root.parent, run_id, store.signer)
        self.enrolment = Enrolment(job, channel, self.emit, lambda silo: changed())
        self.enrolment.ledger_of = self.ledgers.told
        self.folded: dict[SiloId, int] = {}
        """Silo -> version of its newest update that is in the model."""
        self.given: dict[SiloId, tuple[int, int]] = {}
        """Silo -> its updates that are in the model, and the local steps in them."""
        self.draws: Counter[tuple[SiloId, int]] = Counter()
        """By silo and version: how often its update was opened in a sum that did not count (`Train.draw`)."""
        self.statements: dict[SiloId, int] = {}
        """Silo -> number of the newest statement that it signed."""
        self.assessed: dict[SiloId, events.SiloAssessed] = {}
        """The last that each silo found, of whichever version."""
        self.attacked: dict[SiloId, events.SiloAttacked] = {}
        """The last that each silo said of how far attacks got, of whichever version."""
        self.privacy = SiloPrivacy(job)
        self.balance, self.paces = Balance(job), Paces(job)
        self.told_mode = False
        """Whether the world knows which mode ``auto`` has chosen."""
        self.drift = DriftWatch()
        self.valued: events.ContributionsFound | None = None
        """What the silos' updates were found to be worth."""
        self._waiting_since: float | None = None
        self._said: Set[SiloId] | None = None
        """Which of the awaited silos will join later, when it was last told whom the run waits for."""
        self._full_since: float | None = None

    def emit(self, event: Event) -> None:
        """Write it into the journal, if it belongs there, and tell the world."""
        if event.durable:
            self.store.append(event.model_dump(mode="json"), durable=isinstance(event, _SEALING))
        self.observe(event)

    def tell(self, closed: events.RoundClosed) -> None:
        """The round is durable: the world hears of it, and of what is odd in it."""
        self.observe(closed)
        for alarm in self.drift.observe(closed) if self.job.report.drift else ():
            self.mention(alarm)

    def mention(self, event: Event) -> None:
        """For want of space, the world is told without a record."""
        try:
            self.emit(event)
        except DiskFull:
            self.observe(event)

    def count(self, closed: events.RoundClosed) -> None:
        """Who gave what to this version, which is to count."""
        for each in closed.contributors:
            times, steps = self.given.get(each.silo, (0, 0))
            self.folded[each.silo] = each.base_version
            self.given[each.silo] = times + 1, steps + each.num_steps
            if each.receipt is not None:
                self.heard(each.receipt)
        self.model.settings = dict(closed.settings)
        self.balance.take(closed)
        self.paces.take(closed)

    def heard(self, receipt: Receipt) -> None:
        """The silo's next statement has a higher number."""
        self.statements[receipt.silo] = max(self.statements.get(receipt.silo, -1), receipt.sequence)

    def known(self, silo: SiloId, about: Receipt) -> Known:
        """What a receipt of this silo must be like."""
        return Known(about, self.enrolment.keys.get(silo, ""), self.statements.get(silo, -1))

    def receipt_flaw(
        self,
        silo: SiloId,
        kind: Literal["evaluation", "vote", "leave"],
        version: int,
        head: Head,
        receipt: Receipt | None,
    ) -> str | None:
        """Why the receipt does not count; None if it does, or none was wanted."""
        if not head.length:
            return None
        about = Receipt(
            kind=kind,
            silo=silo,
            run_id=self.run_id,
            job_digest=self.job.digest,
            epoch=self.store.epoch,
            version=version,
            head=head.digest,
            head_length=head.length,
        )
        wrong = flaw(receipt, self.known(silo, about))
        if wrong is None and receipt is not None:
            self.heard(receipt)
        return wrong

    def policy(self) -> RoundPolicy:
        """The numbers of the next round; tells which mode ``auto`` has chosen, once."""
        choice = self.paces.choice
        if choice is not None and not self.told_mode:
            self.told_mode = True
            self.emit(
                events.ModeChosen(
                    version=choice.version, mode=choice.mode, reason=choice.reason, seconds=choice.seconds
                )
            )
        return self.paces.policy

    def refuse(self, silo: SiloId, version: int, code: str, reason: str) -> None:
        self.emit(events.UpdateRefused(silo=silo, version=version, code=code, reason=reason))

    def unfit(self, silo: SiloId, version: int, code: str, reason: str) -> None:
        """The silo's update of this version is refused, and not waited for."""
        self.refuse(silo, version, code, reason)
        self.enrolment.absent(silo, f"{code}: {reason}")
        self.rounds.refuse(silo, version)

    def lost(self, silo: SiloId, version: int, why: str) -> None:
        """The silo has to join again; the work that it had in hand will not come."""
        self.emit(events.SiloDown(silo=silo, version=version, why=why))
        self.enrolment.seek(silo, why)
        self.rounds.lost(silo)

    async def ask(self, silo: SiloId, request: Request, limit_s: float = math.inf) -> Reply:
        """Ask for something that takes no time but that of its bytes. A silo that stays silent, or whose answer has
        not come whole after ``limit_s``, is restarted: raises `SiloLost`."""
        answer = asyncio.ensure_future(self.channel.call(silo, request))
        moved, until = -1, self.clock() + limit_s
        try:
            while moved != self.channel.moved(silo) and (left := until - self.clock()) > 0:
                moved = self.channel.moved(silo)
                if (await asyncio.wait({answer}, timeout=min(self.patience_s, left)))[0]:
                    return answer.result()
        finally:
            answer.cancel()
        await self.channel.restart(silo)
        what = type(request).__name__
        if self.clock() >= until:
            raise SiloLost(
                silo, f"its answer to {what} did not come whole in the {limit_s:.3g} s left for it"
            )
        raise SiloLost(silo, f"did not answer {what} within {self.patience_s:g} s")

    def pin_best(self) -> int | None:
        """The best version. Its checkpoint stays, and those that tracking logs as models."""
        best = self.board.best
        logged = set(range(0, self.model.version + 1, self.job.tracking.every))
        self.store.pins = logged | ({best[0]} if best else set())
        return best[0] if best else None

    # waiting

    @property
    def waiting(self) -> bool:
        return self._waiting_since is not None

    def wait(self, version: int, silos: Iterable[SiloId], why: str) -> None:
        """The run cannot go on without these silos: say so once; raises `CannotGoOn` after `GIVE_UP` patiences.
        Time in which one of them says that it will join later does not count."""
        now, limit, silos = self.clock(), GIVE_UP * self.patience_s, sorted(silos)
        later = {silo: said for silo, said in self.enrolment.busy.items() if silo in silos}
        if self._said != later.keys():
            self._said = set(later)
            told, until_s = "; ".join([why, *later.values()]), None if later else limit
            self.emit(events.Waiting(version=version, silos=silos, why=told, until_s=until_s))
        if later or self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since > limit:
            raise CannotGoOn(f"waited {limit:.0f} s in vain: {self.whys(silos)}")

    def go_on(self) -> None:
        """Nothing is waited for."""
        self._waiting_since = self._said = None

    def whys(self, silos: Iterable[SiloId]) -> str:
        """Why each of these silos is missing."""
        absent = self.enrolment.why_absent
        return "; ".join(f"{silo}: {absent.get(silo, 'did not deliver')}" for silo in sorted(silos))

    def cannot_without(self, silos: Set[SiloId], what: str = "") -> BadInput | CannotGoOn:
        """The error that ends a run for want of these silos: bad input where the data of one is at fault."""
        why = what + self.whys(silos)
        return BadInput(why) if silos & self.enrolment.bad_data else CannotGoOn(why)

    async def disk_full(self, why: str) -> None:
        """A commit waits for space; training goes on until the next round wants to close."""
        limit = GIVE_UP * self.patience_s
        if self._full_since is None:
            self._full_since = self.clock()
            self.observe(events.Waiting(version=self.model.version, silos=[], why=why, until_s=limit))
        if self.clock() - self._full_since > limit:
            raise CannotGoOn(why)
        await asyncio.sleep(min(5.0, self.patience_s / 4))

    def space_found(self) -> None:
        """The commit that waited is through."""
        self._full_since = None
