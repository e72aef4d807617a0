"""What the driver answers to a silo that asks what there is to do."""

from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from orchestrator.transport.wire import WireError, first_flaw


class Asked(BaseModel, frozen=True, extra="forbid", strict=True):
    """One request on its way to a silo."""

    id: str = Field(max_length=100)
    kind: str
    text: str
    """The message, as `wire_messages` writes it."""
    run_id: str
    epoch: int
    model: tuple[tuple[str, Annotated[int, Field(ge=0, le=1 << 33)]], ...] | None = None
    """Names and sizes of the model's parts, which the silo fetches."""


class Todo(BaseModel, frozen=True, extra="forbid", strict=True):
    """All that there is now."""

    requests: tuple[Asked, ...]
    restart: bool
    """The silo is to start its work anew."""
    ended: bool
    """The run is over."""


def todo_of(text: str) -> Todo:
    """Raises `WireError`."""
    try:
        return Todo.model_validate_json(text)
    except ValidationError as error:
        raise WireError("header", first_flaw(error)) from None
