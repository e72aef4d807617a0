"""A driver of a secure sum that asks for what it likes, in any order, and works out what it can from the answers."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from orchestrator.privacy.masking import add_masks
from orchestrator.privacy.sealing import Fields, SumHeader, as_bytes
from orchestrator.privacy.secure_terms import mask_of, unpacked
from orchestrator.privacy.shamir import at_zero, combine
from tests.support.cohorts import Cohort


class Driver:
    """Asks what it likes, in any order."""

    def __init__(self, cohort: Cohort, header: SumHeader | None = None) -> None:
        self.cohort, self.header = cohort, header or cohort.header()
        self.sealed = {silo: cohort.ask(silo, "seal", self.header) for silo in self.header.silos}

    def boxes(self, silo: str, survivors: Collection[str]) -> Fields:
        return {
            each: self.sealed[each]["boxes"][silo]
            for each in survivors
            if each != silo and each in self.sealed
        }

    def unmask(self, silo: str, arrived: Sequence[str], **changes: Any) -> dict[str, list[int]]:
        fields = {"survivors": list(arrived), "boxes": self.boxes(silo, arrived)} | changes
        told = self.cohort.ask(silo, "unmask", self.header, **fields)["shares"]
        return {sender: unpacked(as_bytes(each)) for sender, each in told.items()}


def lists_against(
    victims: Collection[str], silos: Sequence[str], colluders: Collection[str], size: int
) -> Any:
    """For each honest silo a list of so many that has the victims, the colluders and itself in it, and leaves out the
    others as evenly as can be: what opens most pairs between the victims and the rest."""
    left_out = dict.fromkeys((silo for silo in silos if silo not in victims and silo not in colluders), 0)
    lists = {}
    for silo in silos:
        if silo in colluders:
            continue
        others = sorted((other for other in left_out if other != silo), key=lambda other: left_out[other])
        gone = others[: len(silos) - size]
        for other in gone:
            left_out[other] += 1
        lists[silo] = [each for each in silos if each not in gone]
    return lists


def opened(cohort: Cohort, lists: dict[str, list[str]], enough: int, colluders: Collection[str]) -> Any:
    """Which secrets the driver can put together, by (whose, with whom): the colluders know their shares of all. And the
    shares: (point, value)."""
    driver = Driver(cohort)
    shares: dict[tuple[str, str], dict[int, int]] = {}
    place = {silo: number for number, silo in enumerate(cohort.silos, 1)}
    for silo in colluders:
        half = cohort.halves[silo]
        begun = half._sums[driver.header.tag]
        for sender in cohort.silos:
            content = begun.secrets.received(sender, driver.boxes(silo, cohort.silos))
            for of, share in content.items():
                shares.setdefault((sender, of), {})[place[silo]] = share
    for silo, survivors in lists.items():
        gone = [each for each in cohort.silos if each not in survivors]
        for sender, told in driver.unmask(silo, survivors).items():
            for of, share in zip((sender, *gone), told, strict=True):
                shares.setdefault((sender, of), {})[place[silo]] = share
    return {which: each for which, each in shares.items() if len(each) >= enough}, driver.header.tag


def shown(cohort: Cohort, found: Any, tag: bytes, enough: int, victims: Collection[str]) -> Any:
    """The sum of the victims' vectors, as the driver works it out."""
    masks = []
    for sender, of in found:
        if sender in victims and (of == sender or of not in victims):
            points = sorted(found[sender, of])[:enough]
            secret = combine(at_zero(points), [found[sender, of][point] for point in points])
            assert secret is not None
            masks.append(mask_of(secret, tag, sender <= of).undone)
    total = np.sum([cohort.packets[tag, silo, "seal"] for silo in victims], axis=0, dtype=np.uint32)
    add_masks(total, masks)
    return total
