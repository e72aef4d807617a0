"""What a silo signs: that it did this piece of work, on this model, and what it had seen of the run's history."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

_Count = Annotated[int, Field(ge=-1, le=1 << 62)]
_Text = Annotated[str, Field(max_length=300)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A silo's signed statement. Digests are SHA-256 in hexadecimal."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["update", "evaluation", "vote", "leave"]
    """``leave``: nothing but the head, when the run has ended."""
    silo: _Text
    run_id: _Text
    job_digest: _Text
    epoch: _Count
    version: _Count
    """Trained from, evaluated, or voted on."""
    attempt: _Count = 0
    received: _Text = ""
    """Of the model's parts, as they came (`orchestrator.core.vector.digest_of`)."""
    update: _Text = ""
    """Of the packet that the driver folds (`orchestrator.core.vector.PacketDigest`); of a vote, what it says
    (`orchestrator.receipts.vote_digest`)."""
    salted: bool = False
    """``update`` is of the packet's digest behind 32 random bytes that stay at the silo: nobody else can look for an
    update that has it, and the silo can show later which one it was."""
    numbers: _Text = ""
    """Of the numbers beside the packet that enter the sum (`orchestrator.receipts.numbers_digest`)."""
    num_examples: _Count = 0
    """1 where the silo keeps its number of rows to itself."""
    policy: _Text = ""
    """Of ``policy`` in its ``silo.yaml``; empty for none."""
    ledger: _Text = ""
    """Head of its ledger of privacy spent; empty where it has none."""
    ledger_length: _Count = 0
    contributors: _Text = ""
    """Of the silos whose updates are in the received model, as the driver told (`contributors_digest`)."""
    head: _Text = ""
    """Head of the driver's journal, as the driver told it: by signing it the silo fixes the history up to there."""
    head_length: _Count = 0
    sequence: _Count = 0
    """Rises with every statement of the silo."""
    signature: _Text = ""
    """Of `text`, with the silo's Ed25519 key, in base64."""

    @property
    def text(self) -> bytes:
        """What is signed: all other fields."""
        fields = asdict(self)
        del fields["signature"]
        return b"siloray receipt\0" + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
