"""Updates made by hand, for tests of what the driver does with them."""

from typing import Any

from orchestrator.core.messages import Update

DEFAULTS: dict[str, Any] = {
    "run_id": "run",
    "epoch": 1,
    "attempt": 1,
    "model_digest": "lineage",
    "job_digest": "job",
    "layout": (("delta", 3),),
    "weight": 10.0,
    "num_examples": 10,
    "num_steps": 1,
    "scalars": {},
    "metrics": {},
    "train_metrics": {},
    "seconds": {},
    "packet_bytes": 12,
}


def update(silo: str, version: int, **given: Any) -> Update:
    return Update(**{**DEFAULTS, "silo": silo, "version": version, **given})
