"""What a job says about the weights that it starts from, and about adapters around them."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class FileWeights(_Spec, frozen=True):
    """A file on the driver's machine: safetensors, or what ``torch.save`` made of a state dict."""

    file: str
    """A relative path starts at the folder of the job document."""
    sha256: Sha256
    """Of the file."""
    origin: str = Field(min_length=1, max_length=500)
    """Who made these weights, of what: it stands in the record of every model that comes of them."""

    @property
    def told(self) -> str:
        return self.file


class TorchvisionWeights(_Spec, frozen=True):
    """Weights of torchvision by name, from torch's cache on the driver's machine. Nothing is downloaded."""

    torchvision: str = Field(pattern=r"^[A-Za-z0-9_]+_Weights\.[A-Za-z0-9_]+$")
    """``ResNet18_Weights.IMAGENET1K_V1``."""
    sha256: Sha256 | None = None
    """Of the cached file; None: as torchvision says."""

    @property
    def told(self) -> str:
        return f"torchvision's {self.torchvision}"


class RunWeights(_Spec, frozen=True):
    """A version of a past run, whatever its silos were."""

    run: str = Field(min_length=1)
    """Id of the run (``runs/ID`` is as good), or the name of a job: its newest run that is done."""
    version: int | Literal["best"] = "best"
    sha256: Sha256 | None = None
    """Of its parameters, as the version's model in MLflow has it (``siloray.parameters_digest``)."""

    @property
    def told(self) -> str:
        return f"version {self.version} of {self.run}"


def _kind(value: Any) -> str:
    keys = (
        value if isinstance(value, dict) else type(value).model_fields if isinstance(value, BaseModel) else ()
    )
    return next((key for key in ("file", "torchvision", "run") if key in keys), "run")


def _written_out(value: Any) -> Any:
    """``start_from: runs/ID`` in one word."""
    if not isinstance(value, str):
        return value
    return {"file": value} if re.search(r"\.(safetensors|pth?)$", value) else {"run": value}


StartFrom = Annotated[
    Annotated[
        Annotated[FileWeights, Tag("file")]
        | Annotated[TorchvisionWeights, Tag("torchvision")]
        | Annotated[RunWeights, Tag("run")],
        Discriminator(_kind),
    ],
    BeforeValidator(_written_out, json_schema_input_type=str | FileWeights | TorchvisionWeights | RunWeights),
]


class _LowRank(_Spec, frozen=True):
    """``W x + alpha / rank * B A x`` in place of ``W x``, where ``W`` is frozen (Hu et al. 2022, arXiv 2106.09685).

    With adapters everything is frozen but they, and what globs of ``shared`` other than ``*`` or ``private`` name.
    """

    rank: int = Field(default=4, ge=1, le=1024)
    alpha: float = Field(default=8.0, gt=0)
    targets: tuple[str, ...] = Field(min_length=1)
    """Globs over names of linear and convolutional layers: ``['encoder.*.mlp.*']``."""


class FfaLora(_LowRank, frozen=True):
    """``A`` is drawn from the job's seed, the same at every silo, and frozen; only ``B`` is trained and sent. The mean
    of the silos' ``B`` is then exactly the mean of their models (Sun et al. 2024, arXiv 2403.12313)."""

    name: Literal["ffa_lora"]
    trains_a: ClassVar[bool] = False


class Lora(_LowRank, frozen=True):
    """``A`` and ``B`` are trained, and averaged one by one (FedIT, Zhang et al. 2023, arXiv 2305.05644): the product of
    the means is not the mean of the products, so that the average is only near the mean of the silos' models."""

    name: Literal["lora"]
    trains_a: ClassVar[bool] = True


Adapters = Annotated[FfaLora | Lora, Field(discriminator="name")]
