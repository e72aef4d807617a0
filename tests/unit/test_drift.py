"""Alarms about a silo whose updates change."""

import math

import numpy as np
import pytest

from orchestrator.core.events import RoundClosed
from orchestrator.drift import IN_A_ROW, WARM_UP, DriftWatch, PageHinkley, Usual
from tests.support import arrivals
from tests.support.arrivals import contributor


def closed(version: int, **silos: tuple[float, float | None, float | None]) -> RoundClosed:
    """``silo=(norm, cosine, loss)``."""
    made = [
        contributor(silo, norm=norm, cosine=cosine, train={} if loss is None else {"loss": loss})
        for silo, (norm, cosine, loss) in silos.items()
    ]
    return arrivals.closed(version, *made)


def history(seed: int = 0, rounds: int = 40, at: int = 25) -> list[RoundClosed]:
    """Two silos with noise, falling norms and losses; ``b`` turns at version ``at``."""
    rng, made = np.random.default_rng(seed), []
    for version in range(1, rounds + 1):
        noise, fall = rng.normal(size=4), 0.97**version
        a = fall * (1 + 0.1 * noise[0]), 0.8 + 0.05 * noise[1], fall * (1 + 0.1 * noise[2])
        turned = version >= at
        b = (
            a[0] * (3 if turned else 1),
            0.8 + 0.05 * noise[3] - (1.2 if turned else 0),
            a[2] * (4 if turned else 1),
        )
        made.append(closed(version, a=a, b=b))
    return made


@pytest.mark.parametrize("seed", range(5))
def test_only_the_silo_that_turned_alarms_on_its_third_update(seed: int) -> None:
    watch = DriftWatch()
    alarms = [alarm for each in history(seed) for alarm in watch.observe(each)]
    assert [(alarm.silo, alarm.version) for alarm in alarms] == [("b", 25 + IN_A_ROW - 1)]
    assert len(alarms[0].signals) >= 2 and alarms[0].norm > 0 and alarms[0].cosine is not None


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_a_model_that_learns_alarm_nobody(seed: int) -> None:
    watch = DriftWatch()
    assert not [alarm for each in history(seed, 200, at=1_000) for alarm in watch.observe(each)]


def test_one_signal_is_an_ordinary_round() -> None:
    watch = DriftWatch()
    for version in range(1, 20):
        norm = 1.0 if version < 10 else 50.0
        assert not watch.observe(closed(version, a=(norm, 0.9, 0.5)))


def test_a_calm_update_between_starts_anew_and_allows_the_next_alarm() -> None:
    watch, alarms = DriftWatch(), []
    for version in range(1, 60):
        odd = version in (20, 21, 23, 24, 25, 26, 40, 41, 42)
        strength = 10.0 if version < 30 else 100.0
        update = (strength, -0.9, None) if odd else (1.0, 0.9, None)
        alarms += watch.observe(closed(version, a=update))
    assert [alarm.version for alarm in alarms] == [25, 42]


def test_without_directions_norm_and_loss_are_enough() -> None:
    watch, alarms = DriftWatch(), []
    for version in range(1, 20):
        update = (1.0, None, 0.5) if version < 10 else (5.0, None, 2.0)
        alarms += watch.observe(closed(version, a=update))
    assert [alarm.signals for alarm in alarms] == [["norm", "loss"]]


def test_the_same_rounds_give_the_same_alarms() -> None:
    one, other = DriftWatch(), DriftWatch()
    rounds = history(3)
    assert [one.observe(each) for each in rounds] == [other.observe(each) for each in rounds]


def test_the_first_updates_are_not_judged() -> None:
    usual = Usual()
    assert not any(usual.beyond(value, 1) for value in (1.0, 100.0, 1.0, 1000.0, 1.0)[:WARM_UP])


def test_page_hinkley_is_quiet_on_a_constant() -> None:
    test = PageHinkley()
    assert not any(test.rises(0.7) for _ in range(1_000))


@pytest.mark.parametrize(
    ("shift", "tolerance", "threshold"), [(0.6, 0.1, 2.0), (1.0, 0.25, 5.0), (0.3, 0.05, 1.0)]
)
def test_page_hinkley_alarms_soon_after_a_step(shift: float, tolerance: float, threshold: float) -> None:
    """Within ``threshold / (shift - tolerance)`` samples: notes, oracle 48. The mean of all before hardly moves."""
    test = PageHinkley(tolerance, threshold)
    assert not any(test.rises(1.0) for _ in range(20_000))
    within = math.floor(threshold / (shift - tolerance)) + 1
    steps = next(number for number in range(1, 100) if test.rises(1.0 + shift))
    assert steps <= within
    assert steps >= within - 1
