"""Jobs whose updates are summed as whole numbers: the same machinery that carries masked and encrypted sums."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.core.events import Event, Figures, RoundClosed, VersionEvaluated
from orchestrator.core.messages import Ask, Fetch, Join, Refused, Train, Update
from orchestrator.core.metrics import MetricSums
from orchestrator.core.vector import digest_of
from orchestrator.driver import Driver
from orchestrator.transport.local import LocalChannel
from tests.support.federation import Ended, LossyChannel, federate
from tests.support.quadratic import PlainSite, job_of, problems, silo_makers, sites

NAMES = ("s0", "s1", "s2", "s3")
SUM = {"name": "fixed_point_sum"}


def run(folder: Path, total: int = 12, channel: Any = None, **sections: Any) -> Ended:
    job = job_of(NAMES, total, report={"silos": False}, **sections)
    makers = silo_makers(sites(problems(), folder / "silos"))
    return federate(job, makers, folder, **({} if channel is None else {"channel": channel}))


def test_the_model_is_that_of_the_plain_mean(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", combine={"name": "mean", "weights": "uniform"})
    whole = run(tmp_path / "whole", combine=SUM)
    assert whole.outcome.exit_code == plain.outcome.exit_code == 0
    np.testing.assert_allclose(whole.params, plain.params, atol=2e-5)


def test_weights_by_rows_are_whole_numbers_too(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    sums = {**SUM, "weights": "examples", "max_examples": 550, "weight_levels": 11}
    whole = run(tmp_path / "whole", combine=sums)  # 100, 300, 50, 550 rows are 2, 6, 1, 11 of 50
    np.testing.assert_allclose(whole.params, plain.params, atol=2e-5)


def test_the_range_follows_the_updates(tmp_path: Path) -> None:
    rounds = run(tmp_path, combine={**SUM, "ring": "uint16", "first_range": 0.01}).rounds
    assert rounds[0].sealed.cut > 0 and rounds[0].settings["range"] == pytest.approx(0.04)
    assert rounds[-1].sealed.cut == 0
    calm = run(tmp_path / "calm", combine={**SUM, "first_range": 1024.0}).rounds
    assert calm[-1].settings["range"] < 64 and not any(each.sealed.cut for each in calm)


@pytest.mark.parametrize("kind", ["Ask", "Fetch"])
def test_who_is_lost_on_the_way_is_left_out(tmp_path: Path, kind: str) -> None:
    ended = run(
        tmp_path,
        combine=SUM,
        rounds={"min_updates": 3},
        channel=lambda makers: LossyChannel(makers, {("s2", kind, 2): "before"}),
    )
    assert ended.outcome.exit_code == 0
    left_out = [each for each in ended.rounds if each.sealed.left_out]
    assert [list(each.sealed.left_out) for each in left_out] == [["s2"]]
    assert [each.silo for each in left_out[0].contributors] == ["s0", "s1", "s3"]
    assert len(ended.rounds[-1].contributors) == 4


@pytest.mark.parametrize("kind", ["Ask", "Fetch"])
def test_a_sum_of_which_all_are_lost_is_made_anew(tmp_path: Path, kind: str) -> None:
    losses = {(silo, kind, 2): "before" for silo in NAMES}
    ended = run(tmp_path / "lossy", combine=SUM, channel=lambda makers: LossyChannel(makers, losses))
    assert ended.outcome.exit_code == 0, ended.outcome
    np.testing.assert_array_equal(ended.params, run(tmp_path / "calm", combine=SUM).params)


def test_no_update_leaves_in_the_clear(tmp_path: Path) -> None:
    job = job_of(NAMES, combine=SUM)
    site = sites(problems(), tmp_path)["s0"]
    silo, head = silo_makers({"s0": site})["s0"](), {"run_id": "r", "epoch": 1}
    silo.handle(Join(**head, job=job.model_dump_json(), job_digest=job.digest))
    model = {"params": np.zeros(5, np.float32)}
    asked = {"version": 0, "attempt": 1, "model": model, "model_digest": "m", "counted": -1}
    update = silo.handle(Train(**head, **asked, inline=1 << 18))
    assert isinstance(update, Update) and update.packet is None and update.received == digest_of(model)
    for tag in ("", "00"):
        answer = silo.handle(Fetch(**head, version=0, start=0, stop=5, tag=tag))
        assert isinstance(answer, Refused) and answer.code == "unknown"
    answer = silo.handle(Ask(**head, version=1, attempt=1, step="seal", fields={"header": {}}))
    assert isinstance(answer, Refused) and answer.code == "policy"


def test_a_resumed_run_goes_on_with_the_same_range(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", total=8, combine=SUM)
    makers = silo_makers(sites(problems(), tmp_path / "parts" / "silos"))
    job = job_of(NAMES, 8, report={"silos": False}, combine=SUM)

    def stop(driver: Driver, channel: LocalChannel, event: Event) -> None:
        if isinstance(event, RoundClosed) and event.version == 3:
            driver.request_stop()

    part = federate(job, makers, tmp_path / "parts", during=stop)
    assert part.outcome.status == "stopped"
    assert federate(job, makers, tmp_path / "parts").digest == whole.digest


def test_a_ring_without_room_is_refused() -> None:
    with pytest.raises(ValidationError, match="do not fit a ring of 16 bits"):
        job_of(NAMES, combine={**SUM, "ring": "uint16", "value_bits": 15})
    job_of(NAMES, combine={**SUM, "ring": "uint16", "value_bits": 14})


def test_metrics_may_leave_in_the_sum_only(tmp_path: Path) -> None:
    class Reticent(PlainSite):
        def release(self, metrics: MetricSums) -> MetricSums:
            return {}

    def figures(combine: dict[str, Any], site: type[PlainSite], folder: Path) -> list[Figures]:
        job = job_of(NAMES, 4, report={"silos": False}, combine=combine)
        silos = {name: site(name, each, folder) for name, each in problems().items()}
        ended = federate(job, silo_makers(silos), folder)
        assert ended.outcome.exit_code == 0
        return [each.evaluated for each in (*ended.rounds, *ended.of(VersionEvaluated))]

    told = figures(SUM, PlainSite, tmp_path / "open")
    hidden = figures({"name": "secure_sum"}, Reticent, tmp_path / "hidden")
    for open_, summed in zip(told, hidden, strict=True):
        assert open_.overall["loss"] == pytest.approx(summed.overall["loss"], rel=1e-4)
        assert open_.silos.keys() == set(NAMES) and not summed.silos and not summed.missing
    for seen in figures(SUM, Reticent, tmp_path / "seen"):  # its terms are seen by the driver
        assert not seen.overall and not seen.silos
