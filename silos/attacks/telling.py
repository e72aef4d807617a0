"""What a silo tells of its attacks. Their figures are about private rows: with few of them, only the vote leaves."""

from dataclasses import replace

from silos.config import Policy
from silos.site import Findings

FEW = 50
"""Rows behind an attack's scores: of fewer, a score would say too much of single ones."""
_DECIMALS = {"psnr": 0, "exposure": 1}
"""To which scores are rounded; the others to hundredths."""


def told_of(found: Findings, policy: Policy, budgeted: bool = False) -> Findings:
    """Of attacks, what may leave besides the vote: rounded scores of many rows, or nothing. ``budgeted``: the data have
    a privacy budget, in which no attack is counted."""
    kept_in = policy.attacks != "scores" or policy.metrics != "open" or not policy.share_counts or budgeted
    if kept_in or found.num_rows < FEW:
        return replace(found, verdicts={}, scores={}, why={})
    rounded = {
        name: round(value, _DECIMALS.get(name.removesuffix("_low"), 2))
        for name, value in found.scores.items()
    }
    return replace(found, scores=rounded)
