"""What a run does for each of its silos: spread, benefit, harm."""

import pytest

from orchestrator.core.events import AdaptedFigures, Assessment, SiloAssessed
from orchestrator.fairness import jain, judged, spread


def assessed(silo: str, ours: float, alone: float | None, verdict: str | None = "same", **given: object):
    models = {
        "global": Assessment(metrics={"accuracy": ours}, verdicts={"accuracy": verdict} if verdict else {})
    }
    if alone is not None:
        models["alone"] = Assessment(metrics={"accuracy": alone})
    return SiloAssessed(silo=silo, version=3, lineage="x", models=models, **given)


def test_jain_is_one_for_equals_and_one_over_n_for_one_who_has_all() -> None:
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1)
    assert jain([0.0, 0.0, 0.0, 2.0]) == pytest.approx(1 / 4)
    assert jain([1.0, 2.0, 3.0]) == pytest.approx(36 / (3 * 14))
    assert jain([0.0, 0.0]) is None and jain([-1.0, 1.0]) is None


def test_the_worst_and_the_tenth_are_on_the_side_of_the_metric() -> None:
    figures = {"a": 0.9, "b": 0.5, "c": 0.7}
    high, low = spread(figures, "accuracy"), spread(figures, "loss")
    assert (high.worst, high.worst_silo, low.worst, low.worst_silo) == (0.5, "b", 0.9, "a")
    assert high.p10 == pytest.approx(0.54) and low.p10 == pytest.approx(0.86)
    assert high.mean == pytest.approx(0.7) and high.std == pytest.approx((0.08 / 3) ** 0.5)


def test_below_alone_is_worse_and_beyond_the_noise_is_harm() -> None:
    silos = ("a", "b", "c")
    each = [assessed("a", 0.8, 0.7, "better"), assessed("b", 0.6, 0.7), assessed("c", 0.5, 0.9, "worse")]
    verdict = judged(each, silos, 3, "accuracy", block=True)
    assert verdict.benefit == pytest.approx({"a": 0.1, "b": -0.1, "c": -0.4})
    assert (verdict.worse, verdict.harmed, verdict.unknown) == (["b", "c"], ["c"], [])
    assert verdict.do_no_harm is False and verdict.blocked
    assert not judged(each, silos, 3, "accuracy", block=False).blocked
    fine = judged(each[:2], silos[:2], 3, "accuracy", block=True)
    assert fine.do_no_harm is True and not fine.blocked


def test_a_smaller_loss_is_a_benefit() -> None:
    models = {"global": Assessment(metrics={"loss": 0.2}), "alone": Assessment(metrics={"loss": 0.5})}
    each = SiloAssessed(silo="a", version=1, lineage="x", models=models)
    assert judged([each], ["a"], 1, "loss", block=False).benefit == pytest.approx({"a": 0.3})


def test_a_silo_of_which_nothing_is_known_is_no_proof() -> None:
    verdict = judged([assessed("a", 0.8, 0.7)], ("a", "b"), 3, "accuracy", block=True)
    assert verdict.unknown == ["b"] and verdict.do_no_harm is False and not verdict.blocked
    too_few = judged([assessed("a", 0.8, 0.7, None)], ("a",), 3, "accuracy", block=True)
    assert too_few.unknown == ["a"] and too_few.worse == []
    assert judged([assessed("a", 0.8, None, None)], ("a",), 3, "accuracy", block=True).do_no_harm is None
    assert judged([], ("a",), 3, "accuracy", block=True).do_no_harm is None


def test_silos_held_out_stand_apart() -> None:
    curve = [
        AdaptedFigures(steps=0, metrics={"accuracy": 0.4}),
        AdaptedFigures(steps=5, metrics={"accuracy": 0.6}),
    ]
    other = assessed("z", 0.4, 0.9, "worse", held_out=True, curve=curve)
    verdict = judged([assessed("a", 0.8, 0.7), other], ("a",), 3, "accuracy", block=True)
    assert verdict.harmed == [] and verdict.benefit.keys() == {"a"}
    assert verdict.spreads["global"].mean == 0.8 and verdict.held_out["global"].mean == 0.4
    assert [verdict.held_out[f"after {steps} steps"].mean for steps in (0, 5)] == [0.4, 0.6]
