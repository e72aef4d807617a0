"""Real silos of a sum, and a driver that asks them by hand for whatever sum it likes."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.core.messages import (
    Answer,
    Ask,
    Evaluate,
    Evaluated,
    Fetch,
    Join,
    Joined,
    Leave,
    Piece,
    Stop,
    Train,
    Update,
)
from orchestrator.privacy.fixed_point import FIXED, metrics_of
from orchestrator.privacy.sealing import Answers, Flow, Gather, Member, Opened, SumHeader, packet_tag
from silos.metrics_rule import MetricsRule
from silos.silo import Silo
from tests.support.guarded import Clock, guarded
from tests.support.quadratic import PlainSite, job_of, problems

SIZE = 5


class AskedSums:
    """Six silos, none of which is said to work with the driver."""

    def __init__(
        self, folder: Path, combine: dict[str, Any], summed: Collection[str] = (), **job: Any
    ) -> None:
        """``summed``: silos whose policy lets metrics out in sums only."""
        self.names = tuple(f"s{i}" for i in range(6))
        sections: dict[str, Any] = {"rounds": {"min_updates": 3}, **job}
        self.job = job_of(self.names, combine=combine, **sections)
        self.run_id, self.attempt = "run", 0
        self.sites = {silo: PlainSite(silo, each, folder) for silo, each in problems(6).items()}
        for silo in summed:
            self.sites[silo].metrics_rule = MetricsRule("summed")
        self.silos: dict[str, Silo] = {silo: guarded(site, Clock()) for silo, site in self.sites.items()}
        self.updates: dict[tuple[str, int], Update] = {}
        for silo in self.names:
            self.join(silo)

    # what a driver may ask besides sums

    def _about(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "epoch": 1}

    def _model(self, value: float) -> dict[str, Any]:
        parts = ("params", "control") if self.job.strategy.name == "scaffold" else ("params",)
        return {name: np.full(SIZE, value, np.float32) for name in parts}

    def join(self, silo: str) -> None:
        join = Join(**self._about(), job=self.job.model_dump_json(), job_digest=self.job.digest)
        assert isinstance(self.silos[silo].handle(join), Joined)

    def leave(self, finished: bool) -> None:
        for silo in self.names:
            self.silos[silo].handle(Leave(**self._about(), finished=finished))

    def train(
        self,
        version: int = 0,
        model: float = 0.0,
        silos: Collection[str] = (),
        keep: tuple[int, ...] = (),
        **given: Any,
    ) -> None:
        for silo in silos or self.names:
            update = self.silos[silo].handle(
                Train(
                    **self._about(), version=version, attempt=1, model=self._model(model),
                    model_digest=f"{version} {model}", counted=-1, inline=0, keep=keep, **given,
                )
            )  # fmt: skip
            assert isinstance(update, Update), update
            self.updates[silo, version] = update

    def evaluate(self, version: int, model: float = 0.0) -> dict[str, Evaluated]:
        found = {}
        for silo in self.names:
            request = Evaluate(**self._about(), version=version, model=self._model(model), counted=-1)
            reply = self.silos[silo].handle(request)
            assert isinstance(reply, Evaluated), reply
            found[silo] = reply
        return found

    def stop(self, silo: str, hand_in: int) -> None:
        self.silos[silo].handle(Stop(**self._about(), hand_in=hand_in))

    # sums

    def member(self, silo: str, version: int = 0, factor: float = 1.0) -> Member:
        update = self.updates[silo, version]
        settings, hidden = (update.settings,), update.hidden
        return Member(silo, (version,), (update.received,), (factor,), settings, hidden, (update.draw,))

    def header(self, members: Sequence[Member] = (), **changes: Any) -> SumHeader:
        assert self.job.sums is not None
        self.attempt += 1
        point = self.job.sums.fixed_point(self.job.max_in_sum)
        values: dict[str, Any] = dict(
            run_id=self.run_id, job_digest=self.job.digest, epoch=1, version=1, attempt=self.attempt, setup=1,
            members=tuple(members or map(self.member, self.names)), size=SIZE, shapes=(), ring=point.ring,
            value_bits=point.value_bits, range=point.range,
        )  # fmt: skip
        return SumHeader(**(values | changes))

    def set_up(self) -> None:
        assert self.job.sums is not None
        self._follow(self.job.sums.set_up(self.names, 1), None, ())

    def opened(self, header: SumHeader, without: Collection[str] = ()) -> Any:
        """The coordinates of the sum, as signed numbers; some silos' packets are said to be lost."""
        assert self.job.sums is not None
        found: Opened = self._follow(self.job.sums.open(header), header, without)
        return found.total.view(np.int16 if header.ring == "uint16" else np.int32).astype(np.int64)

    def figures(self, header: SumHeader, without: Collection[str] = ()) -> Any:
        """The sum and the count of the only metric."""
        coordinates = self.opened(header, without)[header.size + FIXED :].astype(np.uint32)
        return np.array(metrics_of(coordinates, header.shapes)["loss"].values)

    def own(self, silo: str) -> Any:
        """What the silo brings, which the driver is not to know: its numbers and its metric."""
        held = self.silos[silo]
        packet = held._outbox.get(0)
        numbers = None if packet is None else np.concatenate(list(packet[1].values()))
        problem = self.sites[silo].problem
        return numbers, np.array([problem.loss(np.zeros(SIZE)) * problem.num_rows, problem.num_rows])

    def told(self, silo: str, step: str, header: SumHeader | None, fields: dict[str, Any]) -> Any:
        sent = json.loads(json.dumps(fields))
        version, attempt = (1, 1) if header is None else (header.version, header.attempt)
        return self.silos[silo].handle(
            Ask(**self._about(), version=version, attempt=attempt, step=step, fields=sent)
        )

    def _follow(self, flow: Flow, header: SumHeader | None, without: Collection[str]) -> Any:
        answers: Answers | None = None
        while True:
            try:
                step = next(flow) if answers is None else flow.send(answers)
            except StopIteration as ended:
                return ended.value
            answers = Answers()
            if isinstance(step, Gather):
                assert header is not None
                self._gather(step, header, without, answers)
                continue
            for silo, fields in step.fields.items():
                reply = self.told(silo, step.step, header, fields)
                if isinstance(reply, Answer):
                    answers.fields[silo] = reply.fields
                else:
                    answers.lost[silo] = reply.reason

    def _gather(self, step: Gather, header: SumHeader, without: Collection[str], answers: Answers) -> None:
        assert self.job.sums is not None
        about = {**self._about(), "version": header.version, "tag": packet_tag(header.tag, step.step)}
        size = self.job.sums.sealed_size(header)
        there = [silo for silo in step.silos if step.step != "seal" or silo not in without]
        rows = [self.silos[silo].handle(Fetch(**about, start=0, stop=size)) for silo in there]
        answers.lost = {silo: "lost" for silo in step.silos if silo not in there}
        answers.total = self.job.sums.add([row.packet["values"] for row in rows if isinstance(row, Piece)])
