"""A silo's side of sums that nobody can look into: what it brings to one, and whether it takes part.

An update of a job with such a sum never leaves in the clear. The header that the driver sends is held against the
silo's own work before any protocol sees it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.core.messages import Answer, Ask, Fetch
from orchestrator.core.metrics import MetricSums
from orchestrator.core.random import seed_of
from orchestrator.core.vector import Packet
from orchestrator.privacy.fixed_point import FixedPoint, RingVector, fits
from orchestrator.privacy.ring_sum import RingSum
from orchestrator.privacy.sealing import (
    Member,
    Rules,
    SealedPacket,
    SiloHalf,
    SumHeader,
    SumRefused,
    packet_tag,
)
from silos.outbox import Outbox
from silos.run import Run
from silos.sum_memory import SumMemory

KEPT = 3
"""Sealed packets that the driver may fetch: the newest ones; at a helper, one more for each group's sum."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What is known here, and nowhere else, of a version's work."""

    received: str
    metrics: MetricSums
    """Those that the policy lets into a sum."""
    num_examples: int
    hidden: tuple[str, ...] = ()
    """Names of metrics that are told in no other way."""
    settings: str = ""
    """Digest of those that the update was made with."""
    mark: str = ""
    """Of the update's numbers; nobody else can tell what they are by it."""
    draw: int = 0
    """Which training from its version."""


class Sums:
    """Of the run in hand. From several threads, one step at a time."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._updates: dict[int, Brought] = {}
        self._evaluated: dict[int, Brought] = {}
        self._half: tuple[tuple[str, str], SiloHalf] | None = None
        self._memory: SumMemory | None = None
        self._sealed: dict[str, SealedPacket] = {}

    def brought(self, version: int, work: Brought) -> None:
        """An update that is ready to be summed."""
        self._updates[version] = work
        for old in sorted(self._updates)[:-4]:
            del self._updates[old]

    def evaluated(self, version: int, work: Brought) -> None:
        """Metrics of a version that was not trained from."""
        self._evaluated = {version: work}

    def leave(self) -> None:
        """The run is over here."""
        self._updates.clear()
        self._evaluated.clear()
        self._sealed.clear()
        self._half = None

    def answer(self, ask: Ask, run: Run) -> Answer:
        """Raises `SumRefused`."""
        combine = run.job.combine
        if not isinstance(combine, RingSum):
            raise SumRefused(f"the job's combiner '{combine.name}' has no step '{ask.step}'")
        fields = dict(ask.fields)
        if ask.step == "peers" and isinstance(keys := fields.get("keys"), dict):
            _check_names(keys, run)
        header = None
        if "header" in fields:
            header = SumHeader.of(fields.pop("header"))
            self._check(header, ask, run, combine)
        found, sealed = self._half_of(run, combine).answer(
            ask.step, fields, header, lambda: self._vector(header, run, combine)
        )
        if sealed is not None and header is not None:
            self._keep(packet_tag(header.tag, ask.step), sealed, _most_kept(run, combine))
        return Answer(
            silo=run.site.name, version=ask.version, attempt=ask.attempt, step=ask.step, fields=found
        )

    def piece(self, request: Fetch) -> Packet | None:
        """Of a sealed packet; None where none of this sum is kept."""
        sealed = self._sealed.get(request.tag)
        return None if sealed is None else {"values": sealed[request.start : request.stop]}

    def _keep(self, tag: str, sealed: SealedPacket, most: int) -> None:
        self._sealed[tag] = sealed
        for old in list(self._sealed)[:-most]:
            del self._sealed[old]

    def _half_of(self, run: Run, combine: RingSum) -> SiloHalf:
        rules, key = _rules(run), (run.id, run.job.digest)
        if self._half is None or self._half[0] != key:
            self._memory = SumMemory(run.site.own_folder)
            identity = run.site.identity if combine.protects else None
            self._half = key, combine.half(identity, self._memory, rules, run.id)
        self._half[1].rules = rules
        return self._half[1]

    # what the header says, against what is known here

    def _check(self, header: SumHeader, ask: Ask, run: Run, combine: RingSum) -> None:
        said = (header.run_id, header.job_digest, header.epoch, header.version, header.attempt)
        if said != (run.id, run.job.digest, ask.epoch, ask.version, ask.attempt):
            raise SumRefused("the header is of another run, job, driver, version or attempt than the request")
        silos = header.silos
        if list(silos) != sorted(set(silos)):
            raise SumRefused("the members of the sum are not in order, or one stands twice")
        _check_names(silos, run)
        point = combine.fixed_point(run.job.max_in_sum)
        if (header.ring, header.value_bits) != (point.ring, point.value_bits):
            raise SumRefused("another ring than the job's")
        if not (math.isfinite(header.range) and header.range > 0):
            raise SumRefused(f"range {header.range} of the ring")
        if combine.range != "auto" and header.range != combine.range:
            raise SumRefused(f"range {header.range:g} of the ring, where the job has {combine.range:g}")
        if header.size < 0 or not fits(header.shapes, len(silos)):
            raise SumRefused("metrics of an absurd size for the sum")
        _check_members(header, run.job.max_in_sum)
        if run.site.name in silos or run.site.name not in combine.helpers:
            self._check_own(header, run)
        if combine.protects:
            _check_cohort(header, _rules(run))

    def _check_own(self, header: SumHeader, run: Run) -> None:
        own = header.member(run.site.name)
        if own is None:
            raise SumRefused("this silo is not in the sum")
        for version, received, factor, settings, draw in _brought(own):
            work = (self._updates if header.size else self._evaluated).get(version)
            if work is None:
                raise SumRefused(f"no work on version {version} is ready here")
            if work.received != received:
                raise SumRefused(f"this silo had another model of version {version} than the header says")
            if work.settings != settings:
                raise SumRefused(f"this silo had other settings of version {version} than the header says")
            if work.draw != draw:
                raise SumRefused(f"training {work.draw} of version {version} is ready here, not {draw}")
            if version == own.versions[-1] and work.hidden != own.hidden:
                raise SumRefused("this silo tells other figures in no other way than the header says")
            late, policy = header.version - 1 - version, run.job.policy
            if header.size and not 0 <= late <= policy.max_staleness:
                raise SumRefused(
                    f"an update that is {late} versions late, where the job allows {policy.max_staleness}"
                )
            if header.size and not math.isclose(factor, policy.discount(late)):
                raise SumRefused(f"factor {factor:g} for an update that is {late} versions late")

    # the numbers

    def _vector(self, header: SumHeader | None, run: Run, combine: RingSum) -> RingVector:
        assert header is not None
        own = header.member(run.site.name)
        if own is None:
            raise SumRefused("this silo is not in the sum")
        now = combine.fixed_point(run.job.max_in_sum)
        point = replace(now, range=header.range)
        assert self._memory is not None
        marks = [self._updates[version].mark for version in own.versions] if header.size else []
        self._memory.begins(header.tag, marks)
        total: RingVector | None = None
        for version, factor in zip(own.versions, own.factors, strict=True):
            newest = version == own.versions[-1]
            encoded = self._encoded(point, version, factor, header, run, newest)
            total = encoded if total is None else np.add(total, encoded, out=total)
        assert total is not None
        return total

    def _encoded(
        self,
        point: FixedPoint,
        version: int,
        factor: float,
        header: SumHeader,
        run: Run,
        newest: bool,
    ) -> RingVector:
        """Of one update; the metrics of the newest one stand for the silo."""
        if not header.size:
            metrics = _figures(self._evaluated[version], header, run)
            return point.encode(np.empty(0, np.float32), 1, metrics, header.shapes)
        work = self._updates[version]
        metrics = _figures(work, header, run) if newest else {}
        level = run.job.combine.level(run.site.name, work.num_examples)
        with self._outbox.reading(version) as packet:
            if packet is None:
                raise SumRefused(f"the update of version {version} is no longer here")
            seed = seed_of(run.job.seed, "codec", version, run.site.name)
            vector = run.job.codec.decode(packet, header.size, seed)
            if vector.size != header.size:
                raise SumRefused(f"{header.size} elements, where the update has {vector.size}")
            scaled = vector if factor == 1.0 else vector * np.float32(factor)
            return point.encode(scaled, level, metrics, header.shapes)


def _rules(run: Run) -> Rules:
    """The organisation's, and no fewer silos in a sum than the job says."""
    rules = run.site.sum_rules
    return replace(rules, least=max(rules.least, run.job.least_in_sum))


def _most_kept(run: Run, combine: RingSum) -> int:
    groups = combine.groups
    if groups is None or run.site.name not in combine.helpers:
        return KEPT
    return KEPT + len(run.job.training) // groups.size


def _figures(work: Brought, header: SumHeader, run: Run) -> MetricSums:
    """Those that only the sum tells are in it only if those of enough silos are, whoever is lost: what others tell
    openly can be taken away from it."""
    combine = run.job.sums
    assert combine is not None
    members, least = len(header.members), _rules(run).least
    lost = members - max(least, combine.enough(members))

    def covered(name: str) -> bool:
        hiding = sum(name in member.hidden for member in header.members)
        return combine.protects and hiding - lost >= least

    return {name: sums for name, sums in work.metrics.items() if name not in work.hidden or covered(name)}


def _check_names(silos: Iterable[str], run: Run) -> None:
    strange = set(silos) - set(run.job.training)
    if strange:
        raise SumRefused(f"{', '.join(sorted(strange))}: no silo of the job that trains")


def _brought(member: Member) -> list[tuple[int, str, float, str, int]]:
    """Version, model, factor, settings and draw of each update."""
    versions = member.versions
    try:
        settings, draws = member.settings or ("",) * len(versions), member.draws or (0,) * len(versions)
        found = list(zip(versions, member.received, member.factors, settings, draws, strict=True))
    except ValueError:
        found = []
    if not found or list(versions) != sorted(set(versions)):
        raise SumRefused(f"what {member.silo} is to bring is not said, or said twice")
    return found


def _check_members(header: SumHeader, most: int) -> None:
    """Of one version there is one model, and one set of settings: another one for another silo would show what that
    silo has."""
    if header.num_updates > most:
        raise SumRefused("more updates than the ring has room for")
    seen: dict[int, tuple[str, str]] = {}
    for member in header.members:
        for version, received, _, settings, _ in _brought(member):
            known = seen.setdefault(version, (received, settings))
            if known != (received, settings):
                what = "models" if known[0] != received else "settings"
                raise SumRefused(f"the silos of the sum had different {what} of version {version}")


def _check_cohort(header: SumHeader, rules: Rules) -> None:
    if len(header.members) < rules.least:
        raise SumRefused(
            f"a sum of {len(header.members)} silos, where this one wants at least {rules.least} "
            "(policy.min_cohort, or the job's rounds.min_updates; never fewer than 3)"
        )
