"""A past round computed anew from what is kept of it: the same updates, folded and stepped by the same code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.core import events
from orchestrator.core.errors import BadInput
from orchestrator.core.events import EVENT
from orchestrator.core.messages import CohortInfo, Update
from orchestrator.global_model import GlobalModel
from orchestrator.job import Job, Keep
from orchestrator.kept_updates import Kept, kept
from orchestrator.model_digests import broadcast_digest, parameters_digest
from orchestrator.opening import symmetries_of
from orchestrator.pacing import Paces
from orchestrator.pipeline import UpdateUnfit
from orchestrator.receipts import numbers_digest
from orchestrator.store import Recovered, Store
from orchestrator.weighing import Balance, cohort_of


@dataclass
class Replayed:
    """What came of it."""

    version: int
    parameters: str = ""
    """SHA-256 of the parameters that were computed."""
    compared: list[str] = field(default_factory=list)
    """With what they were compared."""
    wrong: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In one line."""
        if self.wrong:
            return f"NOT REPLAYED: version {self.version}: {self.wrong[0]}"
        where = ", ".join(self.compared)
        return f"REPLAYED: version {self.version} is {self.parameters[:16]}, bit for bit as in {where}"


async def replay(store: Store, version: int) -> Replayed:
    """Compute a version anew. Raises `BadInput` where that cannot be done, with the reason."""
    history = _History(store, version)
    before = store.kept(version - 1)
    if before is None:
        raise BadInput(
            f"{store.root}: the checkpoint of version {version - 1} is not kept, so version {version} cannot be "
            "computed anew; a job keeps its newest N with keep: {newest: N}"
        )
    found, made = kept(store.root, version, store.key), Replayed(version)
    made.wrong += history.differences(found)
    if not made.wrong:
        await _compute(history, before, found, made)
    return made


async def _compute(history: "_History", before: Recovered, found: Kept, made: Replayed) -> None:
    job, closed = history.job, history.closed
    model = GlobalModel(job.model_copy(update={"keep": Keep()}), history.run_id, history.store)
    model.restore(before.version, before.state, str(before.meta["lineage"]))
    model.settings, model.symmetries = history.settings, symmetries_of(history.model, model.state)
    cohort = history.cohort(found.updates)
    try:
        combined = await model.fold(found.updates, cohort, found.fetch)
    except UpdateUnfit as unfit:
        made.wrong.append(f"the kept update of {unfit.update.silo} is not what it signed: {unfit.reason}")
        return
    if [float(weight) for weight in combined.weights] != [each.weight for each in closed.contributors]:
        made.wrong.append("the updates have other weights than the journal's")
    await model.advance(combined, found.updates, cohort)
    made.parameters = parameters_digest(model.state)
    if model.lineage != closed.lineage:
        made.wrong.append("its lineage is another one than the journal's")
    history.compare(model, made)


class _History:
    """What the journal says of one version."""

    def __init__(self, store: Store, version: int) -> None:
        self.store, self.version = store, version
        self.model: dict[str, Any] = {}
        self.last: events.RunClosed | None = None
        self.received: set[str] = set()
        """Digests of the version, as silos have signed that they had it."""
        rounds: dict[int, events.RoundClosed] = {}
        opened: events.RunOpened | None = None
        for _, line in store.events():
            event = EVENT.validate_python(line)
            match event:
                case events.RunOpened():
                    opened = event
                case events.ModelReady():
                    self.model = event.model
                case events.RoundClosed():
                    rounds[event.version] = event
                case events.Rewound():
                    rounds = {v: each for v, each in rounds.items() if v <= event.version}
                    self.received = self.received if version <= event.version else set()
                case events.VersionEvaluated():
                    self.received |= {each.received for each in event.receipts if each.version == version}
                case events.RunClosed():
                    self.last = event
        if opened is None or version not in rounds:
            raise BadInput(f"{store.root}: no round of this run has made version {version}")
        self.job, self.run_id, self.closed = Job.model_validate(opened.job), opened.run_id, rounds[version]
        self.settings = rounds[version - 1].settings if version - 1 in rounds else {}
        self.before = [rounds[each] for each in sorted(rounds) if each < version]
        for closed in rounds.values():
            receipts = [each.receipt for each in closed.contributors if each.receipt is not None]
            self.received |= {each.received for each in receipts if each.version == version}
        _check_plain(self.job, version)

    def differences(self, found: Kept) -> list[str]:
        """Between what is kept of the round, and what the journal says of it."""
        wrong: list[str] = []
        said = [(each.silo, each.base_version, each.receipt) for each in self.closed.contributors]
        if said != [(each.silo, each.version, each.receipt) for each in found.updates]:
            wrong.append(
                "the kept updates are of other silos or versions, or have other receipts, than the journal's"
            )
        return [*wrong, *filter(None, map(self._misstated, found.updates))]

    def _misstated(self, update: Update) -> str | None:
        """Numbers beside the packet that are not those that the silo signed, or do not follow from them."""
        signed, weight = update.receipt, self.job.combine.weight(update.silo, update.num_examples)
        if signed is None or (
            (signed.numbers, signed.num_examples) == (numbers_digest(update), update.num_examples)
            and update.weight == weight
        ):
            return None
        return f"{update.silo} has signed for other numbers than are kept of its update"

    def cohort(self, updates: Sequence[Update]) -> CohortInfo:
        """What the job's rules make of these updates after the rounds before, as the driver has to."""
        balance, paces = Balance(self.job), Paces(self.job)
        for closed in self.before:
            balance.take(closed)
            paces.take(closed)
        return cohort_of(balance, updates, self.version, paces.policy)

    def compare(self, model: GlobalModel, made: Replayed) -> None:
        """With all that is known of the version's parameters."""
        after = self.store.kept(self.version)
        if after is not None:
            made.compared.append("its checkpoint")
            if any(not _same(after.state[name], part) for name, part in model.state.items()):
                made.wrong.append("the checkpoint holds other numbers than the kept updates give")
        if self.received:
            made.compared.append("the receipts of the silos that had it")
            if self.received != {broadcast_digest(self.job, model.state)}:
                made.wrong.append("silos have signed for another model than the kept updates give")
        if self.last is not None and self.last.version == self.version:
            made.compared.append("the run's last line")
            if self.last.parameters_digest != made.parameters:
                made.wrong.append("the run's last line has another digest")
        if not made.compared:
            made.wrong.append("nothing is kept to compare it with")


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(one.view(np.uint32), np.ascontiguousarray(other, np.float32).view(np.uint32))


def _check_plain(job: Job, version: int) -> None:
    """Raises `BadInput` for rounds that nobody can compute anew."""
    if job.sums is not None:
        raise BadInput(
            f"version {version} is a '{job.sums.name}': nobody but the silos ever had its terms, so it cannot be "
            "computed anew"
        )
    if job.noise is not None and job.noise.where == "driver":
        raise BadInput(f"version {version} has noise of the driver's, which is drawn once and kept nowhere")
