"""The gate: one good header, and each way in which it may be wrong, with the code that is promised for it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core.messages import LedgerHead
from orchestrator.core.metrics import Sums
from orchestrator.gate import Expected, flaw, initial_flaw
from orchestrator.job import Job
from orchestrator.keys import Signer
from orchestrator.receipts import signed
from tests.support.quadratic import job_of
from tests.support.updates import KEY, known_of, receipt_of, receipted, update

JOB = job_of(["a", "b"])
NOVA = job_of(["a", "b"], strategy={"name": "fednova"})
SCAFFOLD = job_of(["a", "b"], strategy={"name": "scaffold"})


def good(job: Job = JOB, **given: Any) -> Any:
    scalars = {"path": 0.5, "capped": 0.0, "exact": 1.0, "slope": 0.0} if job is NOVA else {}
    layout = (("delta", 3), ("control", 3)) if job is SCAFFOLD else (("delta", 3),)
    packet = {"values": np.ones(sum(size for _, size in layout), np.float32)}
    known = {"job_digest": job.digest, "scalars": scalars, "layout": layout, "packet": packet}
    made = receipted(update("a", 4, **known), salted=job.sums is not None)
    return replace(made, **given)


def expected(job: Job = JOB, **given: Any) -> Expected:
    layout = {"delta": 3, "control": 3} if job is SCAFFOLD else {"delta": 3}
    known = {
        "silo": "a",
        "run_id": "run",
        "epoch": 1,
        "version": 4,
        "model_digest": "lineage",
        "layout": layout,
    }
    return Expected(**{**known, "num_examples": 10, "receipt": known_of(good(job)), **given})


@pytest.mark.parametrize("job", [JOB, NOVA, SCAFFOLD])
def test_a_good_update_passes(job: Job) -> None:
    assert flaw(job, good(job), expected(job)) is None
    assert flaw(job, good(job, packet=None), expected(job)) is None, "its packet may be fetched later"
    assert flaw(job, good(job), expected(job, num_examples=None)) is None


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "another silo's name": ("foreign", {"silo": "b"}),
    "another run": ("foreign", {"run_id": "other"}),
    "another job": ("foreign", {"job_digest": "x"}),
    "another model": ("foreign", {"model_digest": "x"}),
    "an old driver": ("epoch", {"epoch": 0}),
    "a driver to come": ("epoch", {"epoch": 2}),
    "an old version": ("stale", {"version": 3}),
    "a version to come": ("stale", {"version": 5}),
    "another training than the one asked for": ("foreign", {"draw": 1}),
    "no parts": ("schema", {"layout": ()}),
    "a larger part": ("schema", {"layout": (("delta", 4),)}),
    "another part": ("schema", {"layout": (("params", 3),)}),
    "one part too many": ("schema", {"layout": (("delta", 3), ("extra", 1))}),
    "a part twice": ("schema", {"layout": (("delta", 3), ("delta", 3))}),
    "weight zero": ("weight", {"weight": 0.0}),
    "weight negative": ("weight", {"weight": -1.0}),
    "weight NaN": ("weight", {"weight": math.nan}),
    "weight infinite": ("weight", {"weight": math.inf}),
    "weight absurd": ("weight", {"weight": 1e9 + 1, "num_examples": 10**9 + 1}),
    "weight made up": ("weight", {"weight": 11.0}),
    "more rows than it joined with": ("weight", {"weight": 11.0, "num_examples": 11}),
    "rows that are no number": ("weight", {"weight": 10.0, "num_examples": 10.5}),
    "steps that are no number": ("schema", {"num_steps": 1.5}),
    "negative steps": ("schema", {"num_steps": -1}),
    "negative bytes": ("schema", {"packet_bytes": -1}),
    "NaN seconds": ("schema", {"seconds": {"train": math.nan}}),
    "a scalar that nobody asked for": ("schema", {"scalars": {"path": 1.0}}),
    "metrics that are no sums": ("metrics", {"metrics": {"loss": 0.5}}),
    "sums of one number": ("metrics", {"metrics": {"loss": Sums("mean", (1.0,))}}),
    "sums of an unknown kind": ("metrics", {"metrics": {"loss": Sums("median", (1.0, 2.0))}}),  # type: ignore[arg-type]
    "an odd histogram": ("metrics", {"train_metrics": {"auc": Sums("auc", (1.0, 2.0, 3.0))}}),
    "no arrays": ("schema", {"packet": {}}),
    "another array": ("schema", {"packet": {"delta": np.ones(3, np.float32)}}),
    "one array too many": (
        "schema",
        {"packet": {"values": np.ones(3, np.float32), "more": np.ones(3, np.float32)}},
    ),
    "a shorter array": ("schema", {"packet": {"values": np.ones(2, np.float32)}}),
    "a matrix": ("schema", {"packet": {"values": np.ones((3, 1), np.float32)}}),
    "a scalar array": ("schema", {"packet": {"values": np.float32(1)}}),
    "float64": ("schema", {"packet": {"values": np.ones(3)}}),
    "bfloat16's bits": ("schema", {"packet": {"values": np.ones(3, np.uint16)}}),
    "objects": ("schema", {"packet": {"values": np.array([None] * 3, object)}}),
    "a list": ("schema", {"packet": {"values": [1.0, 2.0, 3.0]}}),
    "no receipt": ("receipt", {"receipt": None}),
    "a ledger that the receipt does not have": ("receipt", {"ledger": LedgerHead(3, "4" * 64)}),
    "no digest of the model": ("schema", {"received": "0" * 63}),
    "NaN for a privacy loss": ("schema", {"privacy": {"epsilon": math.nan}}),
    "other settings": ("schema", {"settings": "6" * 64}),
    "hidden metrics that are in no sum": ("metrics", {"hidden": ("auc",)}),
    "metrics for the sum of no size": ("metrics", {"summed": (("loss", "mean", 0),)}),
    "metrics for the sum of an absurd size": ("metrics", {"summed": (("loss", "mean", 1 << 17),)}),
    "metrics for the sum with absurd names": ("metrics", {"summed": (("loss" * 10**5, "mean", 2),)}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_update_is_refused_with_its_code(what: str) -> None:
    code, given = BAD[what]
    found = flaw(JOB, good(**given), expected())
    assert found is not None and found[0] == code, found
    assert "\n" not in found[1] and len(found[1]) < 500


OTHER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
RECEIPTS: dict[str, dict[str, Any]] = {
    "of another silo": {"silo": "b"},
    "of another run": {"run_id": "other"},
    "of another job": {"job_digest": "x"},
    "of another round": {"version": 3},
    "of another attempt": {"attempt": 2},
    "of an older driver": {"epoch": 0},
    "of another model": {"received": "1" * 64},
    "of other rows": {"num_examples": 11},
    "of other numbers beside the packet": {"numbers": "6" * 64},
    "of another history": {"head": "4" * 64},
    "of a shorter history": {"head_length": 4},
    "of other contributors": {"contributors": "5" * 64},
    "of an evaluation": {"kind": "evaluation"},
    "of a sealed update": {"salted": True},
    "told before": {"sequence": 0},
}


@pytest.mark.parametrize("what", RECEIPTS)
def test_a_receipt_that_is_signed_and_about_something_else(what: str) -> None:
    about = replace(receipt_of(good()), **RECEIPTS[what])
    found = flaw(JOB, good(receipt=signed(about, KEY.sign)), expected())
    assert found is not None and found[0] == "receipt", found


def test_a_receipt_that_somebody_else_signed_or_that_was_changed() -> None:
    about = receipt_of(good())
    for receipt in (
        signed(about, OTHER.sign),
        replace(about, update="9" * 64),
        replace(about, signature=""),
        replace(about, signature="?"),
    ):
        found = flaw(JOB, good(receipt=receipt), expected())
        assert found is not None and found[0] == "receipt" and "not signed" in found[1]


@pytest.mark.parametrize(
    "scalars, code",
    [
        ({}, "schema"),
        ({"path": 1.0}, "schema"),
        ({"path": math.nan, "capped": 0.0}, "nonfinite"),
        ({"path": math.inf, "capped": 0.0}, "nonfinite"),
        ({"path": -1.0, "capped": 0.0}, "scalar"),
        ({"path": 1e30, "capped": 0.0}, "scalar"),
    ],
)
def test_fednovas_public_numbers(scalars: dict[str, float], code: str) -> None:
    rest = {"exact": 1.0, "slope": 0.0} if "capped" in scalars else {}
    scalars = {**scalars, **rest}
    found = flaw(NOVA, good(NOVA, scalars=scalars), expected(NOVA))
    assert found is not None and found[0] == code


def test_parts_of_one_size_must_not_change_places() -> None:
    """Delta and control have the same size: only the order tells them apart."""
    found = flaw(SCAFFOLD, good(SCAFFOLD, layout=(("control", 3), ("delta", 3))), expected(SCAFFOLD))
    assert found is not None and found[0] == "schema"


def test_weights_follow_the_jobs_rule() -> None:
    for weights, right in (("uniform", 1.0), ({"a": 2.5, "b": 1}, 2.5)):
        job = job_of(["a", "b"], combine={"weights": weights})
        assert flaw(job, good(job, weight=right), expected(job)) is None
        assert flaw(job, good(job, weight=10.0), expected(job)) is not None


def test_infinite_metrics_are_no_reason_to_refuse_an_update() -> None:
    """They are undefined figures of a model that may be bad; the update has its own gate."""
    assert flaw(JOB, good(metrics={"loss": Sums("mean", (math.inf, 3.0))}), expected()) is None


def test_numbers_in_the_clear_do_not_enter_a_sum() -> None:
    job = job_of(["a", "b"], combine={"name": "fixed_point_sum"})
    assert flaw(job, good(job, weight=1.0, packet=None), expected(job)) is None
    found = flaw(job, good(job, weight=1.0), expected(job))
    assert found is not None and found[0] == "schema"


def test_the_fields_of_an_update_are_all_looked_at() -> None:
    """A field added to `Update` needs a row in BAD, or a reason here."""
    harmless = {"attempt"}
    looked_at = set().union(*(given for _, given in BAD.values()))
    assert set(good().__dataclass_fields__) == looked_at | harmless


@pytest.mark.parametrize(
    "parts, good",
    [
        ({"params": np.zeros(3, np.float32)}, True),
        ({"params": np.zeros(2, np.float32), "buffers": np.zeros(1, np.float32)}, True),
        ({}, False),
        ({"buffers": np.zeros(3, np.float32)}, False),
        ({"params": np.zeros(4, np.float32)}, False),
        ({"params": np.zeros(3)}, False),
        ({"params": np.zeros((3, 1), np.float32)}, False),
        ({"params": np.full(3, np.nan, np.float32)}, False),
        ({"params": np.zeros(2, np.float32), "secret": np.zeros(1, np.float32)}, False),
    ],
    ids=str,
)
def test_initial_parameters(parts: Any, good: bool) -> None:
    assert (initial_flaw(parts, 3) is None) == good


def test_the_gate_changes_nothing() -> None:
    made = good()
    before = replace(made, packet={"values": made.packet["values"].copy()})
    flaw(JOB, made, expected())
    assert np.array_equal(made.packet["values"], before.packet["values"])
