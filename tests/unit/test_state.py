"""A silo's private memory: version by version, durable, and only of work that counted."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.core.errors import BadInput
from silos.state import KEEP, Kept, SiloState


def vectors(value: float) -> dict[str, np.ndarray]:
    return {"strategy/control": np.full(3, value, np.float32), "private/": np.full(2, -value, np.float32)}


def value_after(state: SiloState, version: int) -> float | None:
    found = state.after(version)
    return float(found["strategy/control"][0]) if found else None


def test_what_was_saved_is_read_back_to_the_bit(tmp_path: Path) -> None:
    state, bits = (
        SiloState(tmp_path / "run"),
        np.array([0x7F800001, 0x80000000, 1], np.uint32).view(np.float32),
    )
    state.save(0, {"x": bits}, -1)
    assert SiloState(tmp_path / "run").after(0)["x"].tobytes() == bits.tobytes()


def test_state_is_that_of_the_version_that_counted(tmp_path: Path) -> None:
    state = SiloState(tmp_path)
    assert state.after(5) == {}
    for version in range(3):
        state.save(version, vectors(version), counted=version - 1)
    assert [value_after(state, version) for version in (-1, 0, 1, 2, 9)] == [None, 0, 1, 2, 2]


def test_training_a_version_again_starts_from_the_same_state(tmp_path: Path) -> None:
    state = SiloState(tmp_path)
    state.save(0, vectors(0), -1)
    state.save(1, vectors(1), 0)
    before = value_after(state, 0)
    state.save(1, vectors(1.5), 0)
    assert value_after(state, 0) == before == 0 and value_after(state, 1) == 1.5


def test_work_that_never_counted_leaves_no_trace(tmp_path: Path) -> None:
    """Version 1's update was late: version 2 starts from 0's state, and 1's is removed."""
    state = SiloState(tmp_path)
    state.save(0, vectors(0), -1)
    state.save(1, vectors(1), 0)
    state.save(2, vectors(2), counted=0)
    assert value_after(state, 1) == 0 and value_after(state, 2) == 2
    state.save(1, vectors(1.5), counted=0)
    assert value_after(state, 9) == 1.5, "a driver that went back to version 1 starts another history"


@pytest.mark.parametrize("counts", [True, False])
def test_the_folder_does_not_grow(tmp_path: Path, counts: bool) -> None:
    state = SiloState(tmp_path)
    for version in range(20):
        state.save(version, vectors(version), counted=version - 1 if counts else -1)
        assert len(list(tmp_path.iterdir())) <= KEEP + 1
    assert [value_after(state, version) for version in (17, 18, 19)] == (
        [17, 18, 19] if counts else [None, None, 19]
    )


def test_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    state = SiloState(tmp_path)
    state.save(0, vectors(0), -1)
    state.save(1, vectors(1), 0)
    (tmp_path / "v000001.safetensors").write_bytes(b"torn")
    assert value_after(state, 1) == 0


def test_nothing_to_keep_makes_no_file(tmp_path: Path) -> None:
    SiloState(tmp_path / "run").save(0, {}, -1)
    assert not (tmp_path / "run").exists()


def test_forgetting_removes_the_run(tmp_path: Path) -> None:
    state = SiloState(tmp_path / "run")
    state.save(0, vectors(0), -1)
    state.forget()
    state.forget()
    assert not (tmp_path / "run").exists() and tmp_path.exists()


def test_the_epoch_is_that_of_the_newest_driver(tmp_path: Path) -> None:
    state = SiloState(tmp_path / "run")
    assert state.epoch is None and not (tmp_path / "run").exists()
    state.fence(3)
    assert SiloState(tmp_path / "run").epoch == 3 and state.after(9) == {}
    (tmp_path / "run" / "epoch").write_text("x")
    with pytest.raises(BadInput, match="not what siloray wrote"):
        _ = state.epoch
    state.forget()
    assert state.epoch is None


def test_users_of_the_state_do_not_meet() -> None:
    everything: dict[str, np.ndarray] = {}
    strategy, codec = Kept(everything, "strategy", 3), Kept(everything, "codec", 5)
    assert strategy["x"].tolist() == [0, 0, 0] and codec["x"].size == 5, "absent reads as zeros"
    assert everything == {}
    strategy["x"] = np.ones(3)
    assert codec["x"].tolist() == [0] * 5 and list(strategy) == ["x"] and len(codec) == 0
    assert everything["strategy/x"].dtype == np.float32
    del strategy["x"]
    assert everything == {}
