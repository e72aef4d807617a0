"""What opened sums become: the combined update of a round, from the sum of all silos or from those of groups."""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.core.events import Sealed
from orchestrator.core.messages import SiloId, Update
from orchestrator.core.metrics import pooled
from orchestrator.core.vector import Layout, Vector
from orchestrator.job import Job
from orchestrator.pipeline import Combined, finish
from orchestrator.privacy.fixed_point import FixedPoint, Total, metrics_of
from orchestrator.privacy.ring_sum import RingSum
from orchestrator.privacy.sealing import Opened, SumHeader


class OpenedSum(NamedTuple):
    """A sum and what its silos agreed on."""

    header: SumHeader
    opened: Opened


def decoded(
    job: Job,
    combine: RingSum,
    point: FixedPoint,
    sums: Sequence[OpenedSum],
    layout: Layout,
    out: Vector,
    used: Sequence[Update],
    settings: dict[str, float],
    left_out: dict[SiloId, str],
) -> Combined:
    """Several sums are those of groups. ``out``: memory for the combined vector. ``used``: the updates in the sums.
    ``left_out``: silos that are not, and why."""
    if combine.groups is None:
        totals = [point.decode(sums[0].opened.total, layout.size, out)]
    else:
        means = np.empty((len(sums), layout.size), np.float32)
        totals = [
            point.decode(each.opened.total, layout.size, mean) for each, mean in zip(sums, means, strict=True)
        ]
        np.copyto(out, combine.groups.combined(means))
    total = _together(totals)
    made = Combined(
        parts=layout.unpack(out),
        norms=[None] * len(used),
        weights=_told_shares([each.header for each in sums], used),
        cosines=[None] * len(used),
        settings=combine.next_settings(point, total),
        sealed=_record(combine, sums, total, left_out),
        together=pooled(
            metrics_of(of.limbs, each.header.shapes) for of, each in zip(totals, sums, strict=True)
        ),
    )
    finish(job, made, out, layout, used, settings, rounding=math.sqrt(layout.size) * point.quantum / 2)
    return made


def _record(combine: RingSum, sums: Sequence[OpenedSum], total: Total, left_out: dict[SiloId, str]) -> Sealed:
    """Of several sums the digests of their digests."""
    tags = [each.header.tag.hex() for each in sums]
    digests = [hashlib.sha256(np.ascontiguousarray(each.opened.total).data).hexdigest() for each in sums]
    return Sealed(
        tag=_of_all(tags),
        digest=_of_all(digests),
        left_out=dict(sorted(left_out.items())),
        cut=total.cut,
        groups=[list(each.opened.silos) for each in sums] if combine.groups is not None else [],
    )


def _of_all(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _together(totals: Sequence[Total]) -> Total:
    """Of all groups; the limbs stay with them."""
    return Total(
        sum(each.weight for each in totals),
        sum(each.cut for each in totals),
        tuple(map(sum, zip(*(each.over for each in totals), strict=True))),
        totals[0].limbs,
    )


def _told_shares(headers: Sequence[SumHeader], updates: Sequence[Update]) -> list[float]:
    """Of the mean, with the factors of late updates, as far as the weights are told."""
    factors = {
        (member.silo, version): factor
        for header in headers
        for member in header.members
        for version, factor in zip(member.versions, member.factors, strict=True)
    }
    total = math.fsum(update.weight for update in updates)
    return [update.weight / total * factors[update.silo, update.version] for update in updates]
