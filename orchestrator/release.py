"""The job's ``release`` section: what must be known of the model before the registry's alias moves to it."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

Attack = Literal["membership", "canary", "inversion"]

SCORES = frozenset(
    f"{name}{bound}"
    for name in ("auc", "tpr_at_1_fpr", "exposure", "psnr", "cosine")
    for bound in ("", "_low")
)
"""What a silo may say of its attacks; ``..._low`` is the lower bound that its vote rests on."""

Quorum = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]


class ReleaseSettings(BaseModel, frozen=True, extra="forbid"):
    """At the end each silo attacks the best version with its own rows, and votes ``fail`` where an attack gets further
    than it may: where its lower bound (95 %) is above the limit, so that nobody votes on the noise of few rows."""

    attacks: tuple[Attack, ...] = Field(default=("membership",), min_length=1)
    """``membership``: which rows were trained on? ``canary``: does the model know records that mean nothing, which the
    silos put among their rows? ``inversion``: which record can be read from what the driver sees of one local step?"""
    canaries: int = Field(default=0, ge=0, le=256)
    """Records that each silo plants, at most one for ten of its own rows."""
    shadows: int = Field(default=0, ge=0, le=64)
    """Models that each silo trains on half of its rows to attack as one who has such data would; an even number. Each
    takes as long as the silo's part in the run did, or ``report.max_steps``."""
    max_auc: float = Field(default=0.6, ge=0.5, le=1)
    """Membership: the area under the ROC curve; 0.5 is guessing."""
    max_tpr_at_1_fpr: float = Field(default=0.1, gt=0, le=1)
    """Membership: share of the members found while one in a hundred others is mistaken for one."""
    max_exposure: float = Field(default=3.0, gt=0)
    """Canaries: mean exposure in bits. 1.44 is a model that has never seen them, 4.3 to 10 one that knows them all."""
    max_psnr: float = Field(default=20.0, gt=0)
    """Inversion: peak signal-to-noise ratio in dB of the record that comes out best. What is like any such record has
    10 to 15, a copy above 30."""
    quorum: Quorum = 0.75
    """Silos that must vote ``pass``: a number, or a share of those that train. Who does not answer has not voted."""
    veto: tuple[str, ...] = ()
    """Silos whose ``fail`` alone keeps the alias where it is."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.attacks)) != len(self.attacks):
            raise ValueError("an attack stands twice in 'attacks'")
        if ("canary" in self.attacks) != (self.canaries > 0):
            raise ValueError(
                "'canary' among the attacks needs a number of 'canaries', and the other way round"
            )
        if self.shadows and "membership" not in self.attacks:
            raise ValueError("'shadows' are for 'membership', which is not among the attacks")
        if self.shadows % 2:
            raise ValueError("'shadows': give an even number, so that each row is in half of them")
        return self

    def needed(self, num_silos: int) -> int:
        """Votes ``pass`` that it takes, of so many silos."""
        return self.quorum if isinstance(self.quorum, int) else math.ceil(self.quorum * num_silos - 1e-9)
