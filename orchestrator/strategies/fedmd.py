"""FedMD: silos with networks of their own agree on what they say about public data."""

from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.strategies.base import Averaging


class FedMD(Averaging, frozen=True):
    """The shared vector is no model but a consensus: logits of every public row, flat. A silo first learns to say what
    the consensus says (digest), then trains on its own rows (revisit), and reports what its model says then, minus the
    consensus; so the next consensus is the weighted mean of what the silos say (Li and Wang 2019, algorithm 1, arXiv
    1910.03581). It is a sum like any other: clipping, codecs and secure sums apply as they are.

    Each silo's model stays at the silo, and may be any network for the job's inputs and classes (``local.model`` in its
    ``silo.yaml``). There is no model of the federation: what is evaluated is each silo's own. In the paper the models
    learn the public labels first; here nobody needs them.
    """

    shares_logits: ClassVar[bool] = True
    one_gradient: ClassVar[bool] = False
    name: Literal["fedmd"] = "fedmd"
    public: str
    """Data set, under this name in every ``silo.yaml``, whose training rows all silos hold alike."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits when the consensus is learnt."""
    digest_epochs: int = Field(default=1, ge=1)
    """Passes over the public rows before each training on the silo's own."""
