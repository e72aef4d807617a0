"""Documents that people write: strict YAML, and one line for what is wrong."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.core.errors import BadInput

MAX_BYTES = 1 << 20

Document = TypeVar("Document", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML without its traps: no duplicate keys, no aliases, and ``1e-5`` is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not allowed", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
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
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (derived from SafeLoader)
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
        raise BadInput(f"{source}: {_first(error, model)}") from None


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    problems = error.errors(include_url=False)
    worst = min(problems, key=lambda each: each["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in worst["loc"] if not _is_branch(part))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if worst["type"] == "extra_forbidden":
        return f"{place}: unknown key{_nearest(worst['loc'], model)}{more}"
    message = worst["msg"].removeprefix("Value error, ").replace("\n", " ")
    given = worst.get("input")
    shown = "" if isinstance(given, dict | list | BaseModel) or worst["type"] == "missing" else f", got {given!r}"
    return f"{place + ': ' if place else ''}{message}{shown[:120]}{more}"


def _is_branch(part: object) -> bool:
    """Pydantic puts the chosen member of a union into the path; a person did not write it."""
    return isinstance(part, str) and part.startswith("function-")


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = sorted(_keys(TypeAdapter(model).json_schema()))
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _keys(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*(_keys(each) for each in schema))
    if not isinstance(schema, dict):
        return set()
    own = set(schema.get("properties", {}))
    return own.union(*(_keys(each) for each in schema.values()))
