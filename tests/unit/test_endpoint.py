"""``HOST:PORT``, wherever it is written."""

from pathlib import Path

import pytest
import yaml

from orchestrator.core.endpoint import endpoint
from orchestrator.core.errors import BadInput
from silos.config import load_silo

NONE = (
    *(":8815", "host", "host:", "host:0", "host:65536", "host:999999", "host:-1", "host:8 815", "host:٣"),
    *("grpc://host:8815", "a b:8815", "::1:8815", "[::1]", "[x]:8815", "host:8815\n", ""),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("driver.example.org:8815", ("driver.example.org", 8815)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:65535", ("[::1]", 65535)),
    ],
)
def test_endpoints(text: str, found: tuple[str, int]) -> None:
    assert endpoint(text) == found


@pytest.mark.parametrize("text", NONE)
def test_what_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        endpoint(text)
    document = {
        "name": "a",
        "datasets": {"d": {"path": "x"}},
        "connection": {"driver": text, "credentials": "c"},
    }
    (tmp_path / "silo.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(BadInput, match=r"connection\.driver.*expected HOST:PORT") as error:
        load_silo(tmp_path / "silo.yaml")
    assert "\n" not in str(error.value)
