"""Strict YAML without its traps, and one line for what is wrong (more: ``tests/property/test_bad_jobs.py``)."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from orchestrator.core.document import MAX_BYTES, load
from orchestrator.core.errors import BadInput


class Inner(BaseModel, extra="forbid"):
    rate: float = 0.0
    names: tuple[str, ...] = ()


class Outer(BaseModel, extra="forbid"):
    inner: Inner = Inner()
    count: int = 0
    text: str = ""
    flag: bool = False


def read(tmp_path: Path, text: str) -> Outer:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    return load(file, Outer)


@pytest.mark.parametrize(
    "text, value", [("1e-5", 1e-5), ("1E+3", 1000.0), ("-2e2", -200.0), (".5e-1", 0.05), ("1.5e-05", 1.5e-5)]
)
def test_numbers_with_exponents_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    assert read(tmp_path, f"inner: {{rate: {text}}}").inner.rate == value


@pytest.mark.parametrize(
    "text, said",
    [
        ("count: 1\ncount: 2\n", "line 2: the key 'count' stands twice"),
        ("inner: {rate: 1, rate: 2}", "the key 'rate' stands twice"),
        ("inner: &x {rate: 1}\ntext: *x\n", "aliases"),
        ("text: !!python/object/apply:os.system [echo]\n", "could not determine a constructor"),
        ("inner: [", "line 1"),
        ("- a\n", "expected a mapping of keys to values, got list"),
        ("", "expected a mapping of keys to values, got NoneType"),
        ("inner: {raet: 1}", "inner.raet: unknown key; did you mean 'rate'?"),
        ("inner: {count: 1}", "inner.count: unknown key here"),
        ("count: many", "count: "),
        ("inner: 3", "inner: expected a mapping, got 3"),
        ("inner: {names: x}", "inner.names: expected a list"),
        ("count: x\ntext: 3", "(and 1 more)"),
        ("inner: {" * 2000, ""),
    ],
)
def test_one_line_for_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    line = str(caught.value)
    assert line.startswith(str(tmp_path)) and said in line and "\n" not in line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load(tmp_path / "none.yaml", Outer)
    with pytest.raises(BadInput, match="cannot be read"):
        load(tmp_path, Outer)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        load(tmp_path / "binary", Outer)
    (tmp_path / "large").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(BadInput, match="larger than"):
        load(tmp_path / "large", Outer)
