"""The messages of `orchestrator.core.messages` as JSON text; their vectors travel beside it, as columns.

Only these messages exist: what arrives is validated against the fields of its class, strictly.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json

from orchestrator.core import messages
from orchestrator.core.messages import Reply, Request
from orchestrator.core.metrics import MetricSums
from orchestrator.core.vector import Packet
from orchestrator.transport.wire import CONTEXT, Frame, WireError, first_flaw

_REQUESTS = (
    "Join",
    "Load",
    "Initial",
    "Train",
    "Evaluate",
    "Assess",
    "Attack",
    "Fetch",
    "Ask",
    "Ping",
    "Stop",
    "Leave",
)
_REPLIES = ("Joined", "Update", "Evaluated", "Assessed", "Attacked", "Answer", "Progress", "Piece", "Refused")
_VECTORS = {
    "Train": "model",
    "Evaluate": "model",
    "Assess": "model",
    "Attack": "model",
    "Load": "model",
    "Update": "packet",
    "Piece": "packet",
}
"""Fields that are no JSON: the model that a silo fetches, and the vectors of a reply."""
_STRICT = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")
MAX_REASON = 2_000
"""Characters: it goes into the journal."""
_Int = Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]
"""Python's own have no bounds: one of some thousand digits cannot be written into the journal any more."""
_BOUNDED: dict[Any, Any] = {
    int: _Int,
    int | None: _Int | None,
    dict[str, int]: dict[str, _Int],
    tuple[int, ...]: tuple[_Int, ...],
    tuple[tuple[str, int], ...]: tuple[tuple[str, _Int], ...],
    tuple[tuple[str, str, int], ...]: tuple[tuple[str, str, _Int], ...],
    tuple[tuple[int, MetricSums], ...]: tuple[tuple[_Int, MetricSums], ...],
    tuple[tuple[str, tuple[int, ...]], ...]: tuple[tuple[str, tuple[_Int, ...]], ...],
}


@cache
def _model_of(kind: str) -> type[BaseModel]:
    message = getattr(messages, kind)
    hints = get_type_hints(message)
    names = {each.name for each in dataclasses.fields(message)} - {_VECTORS.get(kind)}
    fields: dict[str, Any] = {name: (_BOUNDED.get(hints[name], hints[name]), ...) for name in names}
    return create_model(kind, __config__=_STRICT, **fields)


def kind_of(message: Request | Reply) -> str:
    return type(message).__name__


def text_of(message: Request | Reply) -> str:
    """The message without its vectors."""
    model = _model_of(kind_of(message))
    return model(**{name: getattr(message, name) for name in model.model_fields}).model_dump_json()


def context_of(message: Request | Reply) -> dict[str, Any]:
    """What the frame's header repeats."""
    return {name: value for name in CONTEXT if (value := getattr(message, name, None)) is not None}


def check_context(frame: Frame, request: Request) -> None:
    """A frame is about this request of this driver: run, epoch, and what there is of version, attempt and model.
    Raises `WireError`."""
    for name, asked in context_of(request).items():
        got = getattr(frame.header, name)
        if got != asked:
            raise WireError("epoch", f"is about {name} {str(got)[:100]!r}, asked was {str(asked)[:100]!r}")


def request_of(kind: str, text: str, model: Any = None) -> Request:
    """Raises `WireError`."""
    request: Request = _message(kind, text, _REQUESTS, model)
    return request


def reply_of(kind: str, text: str, packet: Packet | None = None) -> Reply:
    """Raises `WireError`."""
    reply: Reply = _message(kind, text, _REPLIES, packet)
    return reply


def _message(kind: str, text: str, known: tuple[str, ...], vectors: Any) -> Any:
    if kind not in known:
        raise WireError("unknown", f"no message '{kind[:40]}'")
    model = _model_of(kind)
    try:
        fields = dict(model.model_validate_json(text))
    except ValidationError as error:
        raise WireError("header", f"{kind}: {first_flaw(error)}") from None
    _check_whole(kind, text, fields)
    if kind in _VECTORS:
        fields[_VECTORS[kind]] = vectors if vectors or kind != "Piece" else {}
    elif vectors:
        raise WireError("schema", f"{kind} with vectors")
    if kind == "Refused":
        fields["reason"] = fields["reason"][:MAX_REASON]
    return getattr(messages, kind)(**fields)


def _check_whole(kind: str, text: str, fields: Mapping[str, Any]) -> None:
    """What is signed of its own (a receipt, a ledger's head) comes with all its fields, also those that are empty."""
    for name, value in fields.items():
        if dataclasses.is_dataclass(value):
            missing = {each.name for each in dataclasses.fields(value)} - from_json(text)[name].keys()
            if missing:
                raise WireError("header", f"{kind}: {name}.{min(missing)}: Field required")
