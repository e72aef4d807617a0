"""Whatever stands in job.yaml: it is in order, or it costs one line and exit code 2, and soon."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.job import json_schema

WHOLE: dict[str, Any] = {
    "name": "heart-disease",
    "task": {
        "name": "tabular",
        "dataset": "heart",
        "target": "num",
        "features": ["age"],
        "model": {"name": "mlp"},
    },
    "silos": ["cleveland", "va"],
    "required_silos": ["va"],
    "rounds": {"mode": "semi_sync", "total": 3, "deadline_s": 9.5},
    "strategy": {"name": "fedprox", "mu": 0.1, "server": {"name": "sgd", "lr": 1}},
    "local": {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}, "schedule": {"name": "cosine"}},
    "shared": ["*"],
    "privacy": [{"name": "clip", "max_norm": 1.0}],
    "codec": {"name": "bf16"},
    "combine": {"name": "mean", "weights": {"cleveland": 1, "va": 2}},
    "stop": {"metric": "accuracy", "patience": 2},
    "seed": 1,
}


def names(schema: Any) -> set[str]:
    """All keys that the schema knows."""
    if isinstance(schema, list):
        return set().union(*map(names, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", {})).union(*map(names, schema.values()))


KEYS = sorted(names(json_schema()))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1e308, 1 << 70]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["sgd", "mean", "a:b", "cleveland", "*", "1e-5", "2020-01-01", "[red]x[/red]", "a\nb"]),
    st.dates(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in the document with every key or index of it."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, inner in items:
        found += [(value, key), *places(inner)]
    return found


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    """The whole document with one to three values replaced, removed or added."""
    document = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        found = places(document)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                container[key] = draw(values)
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(st.sampled_from(KEYS))] = draw(values)
    return document


@pytest.fixture(scope="module", autouse=True)
def commands() -> Iterator[None]:
    """They are made once: making them takes longer than what is tested."""
    made = get_command(app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda _: made)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs") / "job.yaml"


def check(path: Path) -> int:
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code in (0, 2), (result.exception, path.read_text(errors="replace"))
    if result.exit_code == 2:
        assert result.stdout == ""
        assert result.stderr.startswith(f"siloray: {path}: ")
        assert result.stderr.count("\n") == 1
        assert len(result.stderr) < 1000
        assert "Traceback" not in result.stderr
    return result.exit_code


def test_the_whole_document_is_in_order(path: Path) -> None:
    path.write_text(yaml.safe_dump(WHOLE))
    assert check(path) == 0


@pytest.mark.parametrize("number", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_spoilt_documents(path: Path, number: int) -> None:
    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
    @given(document=spoilt())
    def holds(document: dict[str, Any]) -> None:
        text = yaml.safe_dump(document, allow_unicode=True)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        check(path)

    holds()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=values)
def test_other_documents(path: Path, document: Any) -> None:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert check(path) == 2


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.text("{}[]:-&*!|>'\"#%@` \t\nab1,?", max_size=40).map(str.encode))
def test_bytes_that_may_be_no_yaml(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert check(path) == 2


def test_nothing_of_the_schema_is_left_out() -> None:
    """Each top-level section is in the document that is spoilt, or has a default that needs no other."""
    assert set(WHOLE) <= set(json_schema()["properties"])
