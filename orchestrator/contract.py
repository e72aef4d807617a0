"""The data contract: what the federation, or a silo itself, expects of the rows that a job uses.

A sample that is no good (an image that cannot be decoded, a value out of its range, a label outside the set) is
quarantined: left out, and counted. Too many of them, or another expectation that does not hold, and the silo refuses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Value = str | int
N = TypeVar("N", int, float)
V = TypeVar("V", bound=Value)


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class ColumnRule(_Spec, frozen=True):
    """What the values of a column are. A row with another one is quarantined; a missing value is another matter."""

    type: Literal["number", "integer"] | None = None
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    values: tuple[Value, ...] = ()
    """All that there are; empty: any."""
    max_missing: Share | None = None
    """Share of the rows in which it may be missing."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min: {self.min:g} is above max, {self.max:g}")
        if self.values and (self.min, self.max, self.type) != (None, None, None):
            raise ValueError("give 'values', or a type with 'min' and 'max'")
        return self

    @property
    def is_number(self) -> bool:
        """Whether values are judged as numbers."""
        return (self.type, self.min, self.max) != (None, None, None)

    def stricter(self, other: "ColumnRule") -> "ColumnRule":
        """What satisfies both. Raises ValueError where nothing does."""
        types = {self.type, other.type} - {None}
        return ColumnRule(
            type="integer" if "integer" in types else "number" if types else None,
            min=_largest(self.min, other.min),
            max=_smallest(self.max, other.max),
            values=_common(self.values, other.values),
            max_missing=_smallest(self.max_missing, other.max_missing),
        )


class ImageRule(_Spec, frozen=True):
    """What the images are, as their files hold them; another one is quarantined."""

    min_size: Size | None = None
    """Height and width in pixels."""
    max_size: Size | None = None
    modes: tuple[str, ...] = ()
    """Pillow's names: ``L`` grey, ``RGB``, ``RGBA``, ``P`` palette, ``1`` black and white; empty: any."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        pairs = zip(self.min_size or (), self.max_size or (), strict=False)
        if any(least > most for least, most in pairs):
            raise ValueError("no image is as large as min_size and as small as max_size")
        return self

    def stricter(self, other: "ImageRule") -> "ImageRule":
        """What satisfies both. Raises ValueError where nothing does."""
        least = [each for each in (self.min_size, other.min_size) if each is not None]
        most = [each for each in (self.max_size, other.max_size) if each is not None]
        return ImageRule(
            min_size=(max(each[0] for each in least), max(each[1] for each in least)) if least else None,
            max_size=(min(each[0] for each in most), min(each[1] for each in most)) if most else None,
            modes=_common(self.modes, other.modes),
        )


class Contract(_Spec, frozen=True):
    """Judged before the first round, when a silo joins; of the job's and the silo's own, the stricter holds."""

    max_quarantined: Share = 0.0
    """Share of a split's rows that may be quarantined. What the task cannot read counts, besides what the rules below
    say."""
    labels: tuple[Value, ...] = ()
    """Labels that may occur; empty: all classes of the task."""
    min_per_class: int | None = Field(default=None, ge=1)
    """Training rows of each class (of ``labels``, or else of the task)."""
    min_rows: int | None = Field(default=None, ge=1)
    """Training rows, without those that are quarantined."""
    max_missing: Share | None = None
    """Share of the rows in which any column that the task uses may be missing."""
    columns: dict[str, ColumnRule] = {}
    images: ImageRule | None = None

    def stricter(self, other: "Contract | None") -> "Contract":
        """What satisfies both. Raises ValueError where nothing does."""
        if other is None:
            return self
        columns = {
            name: self.columns.get(name, _ANY).stricter(other.columns.get(name, _ANY))
            for name in sorted(self.columns.keys() | other.columns.keys())
        }
        pictures = [each for each in (self.images, other.images) if each is not None]
        return Contract(
            max_quarantined=min(self.max_quarantined, other.max_quarantined),
            labels=_common(self.labels, other.labels),
            min_per_class=_largest(self.min_per_class, other.min_per_class),
            min_rows=_largest(self.min_rows, other.min_rows),
            max_missing=_smallest(self.max_missing, other.max_missing),
            columns=columns,
            images=pictures[0].stricter(pictures[-1]) if pictures else None,
        )


_ANY = ColumnRule()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a silo found, by split, for the judgement."""

    rows: dict[str, int] = field(default_factory=dict)
    """With those that are quarantined."""
    quarantined: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    """Over all splits."""
    labels: dict[str, int] = field(default_factory=dict)
    """Training rows of each class that must be there."""
    missing: dict[str, float] = field(default_factory=dict)
    """Share of the training rows in which a column is missing."""


def broken(contract: Contract, facts: Facts, counts: bool, labels: bool) -> str | None:
    """The first expectation that does not hold, in a sentence; with what was found where ``counts`` may be told, and of
    single classes where ``labels`` may be besides."""
    return next(_broken(contract, facts, counts, counts and labels), None)


def _broken(contract: Contract, facts: Facts, counts: bool, labels: bool) -> Iterator[str]:
    for split, rows in facts.rows.items():
        bad = facts.quarantined.get(split, 0)
        if bad > contract.max_quarantined * rows:
            most = f"the contract allows {contract.max_quarantined:.3g} of them (max_quarantined)"
            found = f"{bad} of {rows}" if counts else "too many"
            yield f"{found} {split} rows are quarantined{_most_often(facts, counts)}; {most}"
    usable = facts.rows.get("train", 0) - facts.quarantined.get("train", 0)
    if contract.min_rows is not None and usable < contract.min_rows:
        found = f"{usable} training rows" if counts else "fewer training rows than that"
        yield f"{found}; the contract wants {contract.min_rows} (min_rows)"
    if contract.min_per_class is not None:
        yield from _classes(contract.min_per_class, facts.labels, labels)
    yield from _missing(contract, facts, counts)


def _most_often(facts: Facts, counts: bool) -> str:
    """Why, in words that hold no value."""
    ordered = sorted(facts.reasons, key=lambda reason: (-facts.reasons[reason], reason))[:3]
    told = [f"{reason}: {facts.reasons[reason]}" if counts else reason for reason in ordered]
    return f" ({', '.join(told)})" if told else ""


def _classes(least: int, labels: Mapping[str, int], told: bool) -> Iterator[str]:
    for label, found in labels.items():
        if found < least:
            has = f"{found} training rows" if told else "too few training rows"
            yield f"class '{label}' has {has}; the contract wants {least} (min_per_class)"


def _missing(contract: Contract, facts: Facts, counts: bool) -> Iterator[str]:
    for name, share in facts.missing.items():
        rule = contract.columns.get(name, _ANY)
        most = _smallest(rule.max_missing, contract.max_missing)
        if most is not None and share > most:
            has = f"is missing in {share:.3g} of the training rows" if counts else "is missing too often"
            yield f"column '{name}' {has}; the contract allows {most:.3g} (max_missing)"


def _largest(one: N | None, other: N | None) -> N | None:
    known = [each for each in (one, other) if each is not None]
    return max(known) if known else None


def _smallest(one: N | None, other: N | None) -> N | None:
    known = [each for each in (one, other) if each is not None]
    return min(known) if known else None


def _common(one: Sequence[V], other: Sequence[V]) -> tuple[V, ...]:
    """Those on both lists, where an empty one has everything. Raises ValueError where there is none."""
    if not one or not other:
        return tuple(one or other)
    both = tuple(each for each in one if str(each) in {str(each) for each in other})
    if not both:
        raise ValueError(f"nothing is both in {list(one)} and in {list(other)}")
    return both
