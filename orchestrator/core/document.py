"""Documents that people write: strict YAML, and one line for what is wrong."""

import difflib
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.core.errors import BadInput
from orchestrator.core.printable import without_keys

MAX_BYTES = 1 << 20

_PLAIN = {
    "model_attributes_type": "expected a mapping",
    "model_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
}
"""Pydantic's words that speak of Python, by the type of error."""

Document = TypeVar("Document", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML without its traps: no duplicate keys, no aliases, and ``1e-5`` is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                "aliases (*name) are not allowed",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(path: Path, model: type[Document]) -> Document:
    """Read and validate a document; `BadInput` with file, place, value and what is allowed."""
    return validate(_read(path), model, str(path))


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"{path}: larger than {MAX_BYTES} bytes; that is no document of ours")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path}: {_yaml_line(error)}") from None


def _yaml_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)


def validate(value: Any, model: type[Document], source: str) -> Document:
    """Validate parsed YAML or JSON; `BadInput` names the first thing that is wrong, in one line."""
    if not isinstance(value, dict):
        raise BadInput(f"{source}: expected a mapping of keys to values, got {type(value).__name__}")
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        raise BadInput(f"{source}: {without_keys(_first(error, value, model))}") from None


def not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Places of infinity and NaN, which JSON does not have: where a document travels as JSON they would be nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if _is_list(value) else ()
    for name, part in parts:
        yield from not_finite(part, f"{place}.{name}".lstrip("."))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _first(error: ValidationError, value: Any, model: type[BaseModel]) -> str:
    problems = error.errors(include_url=False)
    worst = min(problems, key=lambda each: each["type"] != "extra_forbidden")
    place = ".".join(_written(worst["loc"], value, worst["type"]))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if worst["type"] == "extra_forbidden":
        return f"{place}: unknown key{_nearest(worst['loc'], model)}{more}"
    if worst["type"].startswith("union_tag_"):
        return f"{place}{_choice(worst['input'], str(worst.get('ctx', {}).get('expected_tags', '')))}{more}"
    message = _PLAIN.get(worst["type"], worst["msg"]).removeprefix("Value error, ").replace("\n", " ")
    given = worst.get("input")
    shown = (
        "" if isinstance(given, dict | list | BaseModel) or worst["type"] == "missing" else f", got {given!r}"
    )
    return f"{place + ': ' if place else ''}{message}{shown[:120]}{more}"


def _written(loc: tuple[int | str, ...], value: Any, problem: str) -> Iterator[str]:
    """The parts of a place that a person wrote, or should have written: pydantic adds the chosen member of
    each union."""
    for index, part in enumerate(loc):
        if _holds(value, part):
            value = value[part]
        elif problem != "missing" or index < len(loc) - 1:
            continue
        yield str(part)


def _holds(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _choice(given: Any, expected: str) -> str:
    """What to say when ``name`` names no member of a union."""
    name = given.get("name") if isinstance(given, dict) else None
    if name is None:
        return ".name: Field required" if isinstance(given, dict) else ": expected a mapping with a 'name'"
    known = [each.strip("' ").replace("own", "module:Class") for each in expected.split(",")]
    return f".name: {str(name)[:60]!r} is not known; there are: {', '.join(known)}"


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    close = difflib.get_close_matches(str(loc[-1]), _known(model), n=1)
    if str(loc[-1]) in close:
        return " here"
    return f"; did you mean '{close[0]}'?" if close else ""


@cache
def _known(model: type[BaseModel]) -> list[str]:
    """All keys of a document, wherever they stand."""
    return sorted(_keys(TypeAdapter(model).json_schema()))


def _keys(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*(_keys(each) for each in schema))
    if not isinstance(schema, dict):
        return set()
    own = set(schema.get("properties", {}))
    return own.union(*(_keys(each) for each in schema.values()))
