"""A silo opens a sum once, and sums an update with the same silos only."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from orchestrator.core.errors import BadInput
from orchestrator.privacy.sealing import SumRefused
from silos.sum_memory import FILE, SumMemory

ALL = frozenset("abcdefgh")


def test_a_sum_is_opened_once_also_by_a_new_process(tmp_path: Path) -> None:
    SumMemory(tmp_path).permit(b"tag", ["v1"], ALL)
    with pytest.raises(SumRefused, match="answers once"):
        SumMemory(tmp_path).permit(b"tag", ["v1"], ALL)
    SumMemory(tmp_path).permit(b"another", ["v1"], ALL)


@pytest.mark.parametrize(
    "now",
    [
        ALL - {"a"},
        ALL | {"x"},
        ALL - {"a", "b", "c"},
        ALL - {"a", "b", "c"} | {"x", "y", "z"},
        frozenset("axyz"),
    ],
)
def test_an_update_is_summed_with_the_same_silos_only(tmp_path: Path, now: frozenset[str]) -> None:
    memory = SumMemory(tmp_path)
    memory.permit(b"1", ["v1", "v2"], ALL)
    memory.permit(b"2", ["v3"], ALL - {"a"})  # another update
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(SumRefused, match="the difference would show"):
        memory.permit(b"3", ["v2"], now)
    assert (tmp_path / FILE).read_bytes() == before
    memory.permit(b"4", ["v2"], ALL)


def test_sums_that_differ_by_many_show_single_silos_too(tmp_path: Path) -> None:
    """Why a difference of three silos or more is refused as well. Lines of the projective plane over three elements: 13
    sums of 4 of 13 silos, any two with one silo in common, are 13 independent equations."""
    lines = [frozenset((start + step) % 13 for step in (0, 1, 3, 9)) for start in range(13)]
    assert all(len(one - other) == 3 for one, other in itertools.permutations(lines, 2))
    equations = np.array([[silo in line for silo in range(13)] for line in lines], float)
    given = np.random.default_rng(0).normal(size=13)
    assert np.allclose(np.linalg.solve(equations, equations @ given), given)
    memory, opened = SumMemory(tmp_path), 0
    for number, line in enumerate(lines):
        try:
            memory.permit(
                bytes([number]), [f"update of {silo}" for silo in line], [str(silo) for silo in line]
            )
            opened += 1
        except SumRefused:
            continue
    assert opened == 1


def test_what_was_written_must_not_be_lost(tmp_path: Path) -> None:
    SumMemory(tmp_path).permit(b"tag", ["v1"], ALL)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b"{", b"#"))
    with pytest.raises(BadInput, match="line 1"):
        SumMemory(tmp_path).permit(b"2", ["v1"], ALL)
    with pytest.raises(BadInput, match="line 1") as damaged:
        SumMemory(tmp_path).begins(b"2", ["mark"])
    assert str(tmp_path) not in damaged.value.public


def test_a_line_that_was_torn_was_never_acted_on(tmp_path: Path) -> None:
    SumMemory(tmp_path).permit(b"tag", ["v1"], ALL)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes() + b'{"tag": "00')
    SumMemory(tmp_path).permit(b"2", ["v1"], ALL)
    with pytest.raises(SumRefused):
        SumMemory(tmp_path).permit(b"2", ["v1"], ALL)
