"""What a job says about its task and model. The silos build them (`silos.tasks`); nothing here needs torch.

A name with a colon (``my_pkg.tasks:Thing``) is the user's own class; it runs only at silos whose policy
allows that module (``allow_code``).
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

OWN = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class Logistic(_Spec, frozen=True):
    """One linear layer; of an image's pixels."""

    name: Literal["logistic"] = "logistic"


class Mlp(_Spec, frozen=True):
    """Linear layers with ReLU between them; of an image's pixels."""

    name: Literal["mlp"]
    hidden: tuple[int, ...] = (64, 32)


class OwnModel(_Spec, frozen=True):
    """The user's ``nn.Module``, called with ``options``."""

    name: str = Field(json_schema_extra={"pattern": OWN.pattern})
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _own(cls, name: str) -> str:
        return own(name)


class Cnn(_Spec, frozen=True):
    """Two 5x5 convolutions (6, 16 channels) with pooling, then 120, 84, classes (Li et al. 2022, NIID-Bench
    ``simple-cnn``)."""

    name: Literal["cnn"]
    norm: Literal["none", "batch"] = "none"
    """``batch``: batch normalisation after each convolution."""


class Vit(_Spec, frozen=True):
    """torchvision's vision transformer (Dosovitskiy et al. 2021) in any size, for square images."""

    name: Literal["vit"]
    patch: int = Field(default=4, ge=1)
    """Pixels on a side of a patch; divides the images' side."""
    depth: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    width: int = Field(default=64, ge=1)
    """Numbers by which a patch is described; a multiple of ``heads``."""
    mlp: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is no multiple of {self.heads} heads")
        return self


class TorchvisionModel(_Spec, frozen=True):
    """A classification model of torchvision by name."""

    name: str = Field(json_schema_extra={"pattern": "^(?!(cnn|vit|logistic|mlp)$)[^:]+$"})
    """``resnet18``, ``vit_b_16``, ...: see ``torchvision.models.list_models()``."""
    options: dict[str, Any] = {}


def _check_classes(classes: tuple[str | int, ...], num_classes: int) -> None:
    if classes and len(set(classes)) != num_classes:
        raise ValueError(f"classes: expected {num_classes} different names, got {len(set(classes))}")


def own(name: str) -> str:
    """Check a ``module:Class`` name."""
    if not OWN.fullmatch(name):
        raise ValueError(f"expected 'module:Class', got '{name}'")
    return name


def _tag(value: Any, known: tuple[str, ...], other: str) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if isinstance(name, str) and ":" in name:
        return "own"
    return name if name in known else other


TabularModel = Annotated[
    Annotated[Logistic, Tag("logistic")] | Annotated[Mlp, Tag("mlp")] | Annotated[OwnModel, Tag("own")],
    Discriminator(lambda value: _tag(value, ("logistic", "mlp"), "unknown")),
]
ImageModel = Annotated[
    Annotated[Cnn, Tag("cnn")]
    | Annotated[Vit, Tag("vit")]
    | Annotated[Logistic, Tag("logistic")]
    | Annotated[Mlp, Tag("mlp")]
    | Annotated[TorchvisionModel, Tag("torchvision")]
    | Annotated[OwnModel, Tag("own")],
    Discriminator(lambda value: _tag(value, ("cnn", "vit", "logistic", "mlp"), "torchvision")),
]


# By the silo's own rows or not at all, or by public numbers; the tag keeps a mistake's line to the one that was meant.
Scaling = Annotated[
    Annotated[bool, Tag("rows")] | Annotated[dict[str, tuple[float, float]], Tag("public")],
    Discriminator(lambda value: "public" if isinstance(value, Mapping) else "rows"),
]


class Tabular(_Spec, frozen=True):
    """Numbers and categories in columns; one column is the target (two classes or more)."""

    name: Literal["tabular"]
    dataset: str
    """Name of a data set in every silo's ``silo.yaml``."""
    target: str
    features: tuple[str, ...] = Field(min_length=1)
    """Columns to use. The model's inputs are the numeric ones in this order, then the levels of the
    categorical ones in this order. Always listed: silos' files may hold their columns in any order."""
    categories: dict[str, tuple[str | int, ...]] = {}
    """Levels of each categorical feature, the same at every silo: one input for each level but the first."""
    num_classes: int = Field(default=2, ge=2)
    classes: tuple[str | int, ...] = ()
    """Values of the target in the order of the classes; empty: they are the numbers 0, 1, ..."""
    standardise: Scaling = True
    """Centre and scale every input with the silo's own training rows (unbiased deviation + 1e-9). Or public numbers in
    their place, ``{age: [54, 9]}``: a numeric feature's centre and scale at all silos; the others stay as they are."""
    model: TabularModel = Logistic()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        strangers = sorted(set(self.categories) - set(self.features))
        if strangers:
            raise ValueError(f"categories: '{strangers[0]}' is not among the features")
        if self.target in self.features:
            raise ValueError(f"features: '{self.target}' is the target")
        if len(set(self.features)) != len(self.features):
            raise ValueError("features: a column stands twice")
        for name, (centre, scale) in self._public.items():
            if name not in self.features or name in self.categories:
                raise ValueError(f"standardise: '{name}' is not a numeric feature")
            if not (math.isfinite(centre) and 0 < scale < math.inf):
                raise ValueError(f"standardise: '{name}' needs a finite centre, and a finite scale above 0")
        for name, levels in self.categories.items():
            if len(set(levels)) != len(levels) or len(levels) < 2:
                raise ValueError(f"categories: '{name}' needs two levels or more, each once")
        _check_classes(self.classes, self.num_classes)
        return self

    @property
    def _public(self) -> dict[str, tuple[float, float]]:
        return self.standardise if isinstance(self.standardise, dict) else {}

    @property
    def scales_by_rows(self) -> bool:
        """Whether inputs are scaled by what private rows are like."""
        return self.standardise is True

    def public_scale(self, feature: str) -> tuple[float, float]:
        """Centre and scale that every silo gives this feature."""
        return self._public.get(feature, (0.0, 1.0))


class Transforms(_Spec, frozen=True):
    """Image transforms by their names in ``torchvision.transforms.v2``, each as ``{Name: {arguments}}``."""

    train: tuple[dict[str, dict[str, Any]], ...] = ()
    test: tuple[dict[str, dict[str, Any]], ...] = ()


class ImageClassification(_Spec, frozen=True):
    """One label per image."""

    name: Literal["image_classification"]
    dataset: str
    num_classes: int = Field(ge=2)
    classes: tuple[str | int, ...] = ()
    """Names (of folders, or in the label column) in the order of the classes; empty: labels are 0, 1, ...,
    and folders count in alphabetical order."""
    channels: Literal[1, 3] = 3
    size: tuple[int, int] | None = None
    """Height and width to which images are resized; None: they already have one size."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Normalisation of pixel values in [0, 1], per channel; None: pixels / 255 only."""
    transforms: Transforms = Transforms()
    model: ImageModel

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_classes(self.classes, self.num_classes)
        if (self.mean is None) != (self.std is None):
            raise ValueError("give 'mean' and 'std' together")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name}: expected {self.channels} numbers, one per channel, got {len(values)}"
                )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std: a deviation must be positive")
        if self.size is not None and min(self.size) < 1:
            raise ValueError("size: height and width must be positive")
        return self


class OwnTask(_Spec, frozen=True):
    """The user's own task class, called as ``Class(data, **options)`` at the silo."""

    name: str = Field(json_schema_extra={"pattern": OWN.pattern})
    dataset: str
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _own(cls, name: str) -> str:
        return own(name)


Task = Annotated[
    Annotated[Tabular, Tag("tabular")]
    | Annotated[ImageClassification, Tag("image_classification")]
    | Annotated[OwnTask, Tag("own")],
    Discriminator(lambda value: _tag(value, ("tabular", "image_classification"), "unknown")),
]


def modules(task: Tabular | ImageClassification | OwnTask) -> set[str]:
    """Modules of user code that the task or its model needs at the silo."""
    names = [task.name] + ([task.model.name] if not isinstance(task, OwnTask) else [])
    return {name.partition(":")[0] for name in names if ":" in name}
