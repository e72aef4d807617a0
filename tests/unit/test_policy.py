"""The silo's policy is the last word."""

from typing import Any

import pytest

from orchestrator.core.metrics import Sums
from orchestrator.job import Job
from silos.config import Overrides, Policy, SiloConfig
from silos.policy import code_allowed, released, review

TASK = {"name": "tabular", "dataset": "heart", "target": "y", "features": ["x"]}


CLIPPED: dict[str, Any] = {"privacy": [{"name": "clip", "max_norm": 2.0}]}


GROUPS: dict[str, Any] = {"name": "secure_sum", "groups": {"size": 3}}


def job(**changes: Any) -> Job:
    base = {"name": "j", "task": TASK, "silos": ["a", "b", "c", "d"], "rounds": {"total": 1}}
    return Job.model_validate({**base, **changes})


def silo(**policy: Any) -> SiloConfig:
    return SiloConfig.model_validate(
        {"name": "a", "datasets": {"heart": {"path": "x.csv"}}, "policy": policy}
    )


def test_who_may_be_the_second_aggregator() -> None:
    two = job(combine={"name": "two_aggregator_sum", "second": "b"})
    for allowed in ("all", ["b"]):
        assert review(two, silo(allow_second=allowed)) is None
    own = job(combine={"name": "two_aggregator_sum", "second": "a"})
    assert review(own, silo(allow_second=[])) is None


def budgeted(unit: str = "record", **given: Any) -> SiloConfig:
    """Of the rows in ``heart``; those in ``shown`` are anybody's."""
    budget = {"epsilon": 1.0, "delta": 1e-5, "unit": unit, **given}
    heart = {"path": "x.csv", "budget": budget, "columns": {"who": "person"}}
    return SiloConfig.model_validate({"name": "a", "datasets": {"heart": heart, "shown": {"path": "y.csv"}}})


def test_rows_with_a_budget_are_not_shown_as_public_ones() -> None:
    """FedMD tells what a model says of each of them, without any noise, whatever it is trained on."""
    fedmd = {"name": "fedmd", "public": "heart"}
    said = review(job(task={**TASK, "dataset": "shown"}, strategy=fedmd), budgeted())
    assert said == (
        "a: 'heart' has a privacy budget (datasets.heart.budget), and 'fedmd' tells what models say of each of its "
        "rows: give a data set without one for strategy.public"
    )


@pytest.mark.parametrize("unit", ["record", "silo"])
def test_rows_with_a_budget_scale_no_columns(unit: str) -> None:
    """One row far out would move all the others by more than its own gradient is cut to."""
    dp = [{"name": "dp_sgd", "max_grad_norm": 1, "noise_multiplier": 1}]
    own, public = job(privacy=dp), job(privacy=dp, task={**TASK, "standardise": {"x": [5, 2]}})
    assert review(public, budgeted(unit)) is None
    assert review(own, budgeted(unit)) == (
        None
        if unit == "silo"
        else "a: 'heart' has a privacy budget (datasets.heart.budget), and this job scales columns by means and "
        "deviations of its rows, without noise: give public numbers, as task.standardise: {age: [54, 9]}, or false"
    )


def test_patients_are_those_whom_the_silo_names() -> None:
    """By a column in which every row has a value of its own, a job would protect single rows."""
    dp = {"name": "dp_sgd", "max_grad_norm": 1, "noise_multiplier": 1, "unit": "patient"}
    patients = budgeted("patient", column="person")
    task = {**TASK, "standardise": False}
    for column in ("person", "who"):
        assert review(job(task=task, privacy=[{**dp, "column": column}]), patients) is None
    assert review(job(task=task, privacy=[{**dp, "column": "row"}]), patients) == (
        "a: 'heart' has a privacy budget for each patient, whom the column 'person' names (datasets.heart.budget), and "
        "this job goes by 'row': give privacy.column: person"
    )
    assert review(job(task=task, privacy=[{**dp, "column": "row"}]), budgeted()) is None, (
        "another refusal, at the guard"
    )


def test_an_open_policy_takes_part() -> None:
    assert review(job(), silo()) is None


@pytest.mark.parametrize(
    ("changes", "policy", "said"),
    [
        ({"task": {**TASK, "dataset": "lungs"}}, {}, "no data set 'lungs'"),
        ({}, {"allow_tasks": ["image_classification"]}, "task 'tabular'"),
        ({}, {"allow_strategies": ["fedprox"]}, "strategy 'fedavg'"),
        ({}, {"min_cohort": 5}, "at least 5 silos"),
        ({}, {"min_cohort": 4}, "may close with 3: give rounds.min_updates: 4"),
        ({"rounds": {"total": 1, "mode": "semi_sync"}}, {"min_cohort": 2}, "may close with 1: give"),
        ({"rounds": {"total": 1, "mode": "fedasync"}}, {"min_cohort": 2}, "at least 2 silos"),
        ({}, {"share_counts": False}, "number of rows"),
        ({"task": {**TASK, "model": {"name": "theirs.models:Net"}}}, {}, "code of 'theirs.models'"),
        ({"task": {"name": "mine:Task", "dataset": "heart"}}, {"allow_code": ["minex"]}, "code of 'mine'"),
        ({}, {"allow_jobs": ["heart-*", "J"]}, "job 'j' (allow_jobs: heart-*, J)"),
        (
            {"report": {"contribution": "shapley"}},
            {"max_rounds": 10},
            "11 evaluations of a job (policy.max_rounds + 1)",
        ),
        (
            {"report": {"contribution": "shapley"}},
            {"max_evaluations": 5},
            "5 evaluations of a job (policy.max_ev",
        ),
        ({"rounds": {"total": 11}}, {"max_rounds": 10}, "10 rounds (policy.max_rounds); this job has 11"),
        ({}, {"require_combiner": ["secure_sum"]}, "combiner 'mean'"),
        (
            {"combine": {"name": "two_aggregator_sum", "second": "b"}},
            {"allow_second": ["c", "d"]},
            "does not allow 'b' as the second aggregator (allow_second: c, d)",
        ),
        (
            {"silos": [*"abcdefghi"], "rounds": {"total": 1, "min_updates": 9}, "combine": GROUPS},
            {"min_cohort": 4},
            "the driver learns those of 3: give combine.groups.size: 4",
        ),
        ({}, {"require_privacy": ["clip"]}, "privacy step 'clip'"),
        (CLIPPED, {"require_privacy": [{"name": "clip", "max_norm": 1.0}]}, "with max_norm at most 1 "),
        (CLIPPED, {"require_privacy": ["clip", "noise"]}, "privacy step 'noise'"),
    ],
)
def test_refusals_name_the_rule(changes: dict[str, Any], policy: dict[str, Any], said: str) -> None:
    reason = review(job(**changes), silo(**policy))
    assert reason is not None and said in reason and "\n" not in reason


def test_allowed_variants_take_part() -> None:
    own = {"name": "mine.tasks:Task", "dataset": "heart"}
    assert review(job(task=own), silo(allow_code=["mine"], allow_tasks=[])) is None
    assert review(job(combine={"name": "mean", "weights": "uniform"}), silo(share_counts=False)) is None
    assert review(job(), silo(min_cohort=3)) is None
    assert review(job(rounds={"total": 1, "min_updates": 4}), silo(min_cohort=4)) is None
    assert review(job(), silo(allow_jobs=["heart", "?"], max_rounds=1, require_combiner=["mean"])) is None
    assert review(job(**CLIPPED), silo(require_privacy=["clip"])) is None
    assert review(job(**CLIPPED), silo(require_privacy=[{"name": "clip", "max_norm": 2.0}])) is None


UNIFORM: dict[str, Any] = {"combine": {"weights": "uniform"}}


@pytest.mark.parametrize("strategy", ["fednova", "scaffold"])
def test_without_counts_no_strategy_tells_the_number_of_steps(strategy: str) -> None:
    asked = {**UNIFORM, "strategy": {"name": strategy}}
    reason = review(job(**asked), silo(share_counts=False))
    assert reason is not None and f"'{strategy}' reports tells the number of steps" in reason
    assert "give local.steps, or use one of fedavg, fedprox" in reason and "\n" not in reason
    assert review(job(**asked, local={"steps": 5}), silo(share_counts=False)) is None, "all make as many"
    own = silo(share_counts=False).model_copy(update={"local": Overrides(epochs=2)})
    assert "number of steps" in str(review(job(**asked, local={"steps": 5}), own)), "as many as its rows give"
    assert review(job(**asked), silo()) is None


def test_without_counts_weights_by_rows_are_for_sums_that_hide_them() -> None:
    for name, hides in (("fixed_point_sum", False), ("secure_sum", True)):
        combine = {"name": name, "weights": "examples", "max_examples": 1000}
        reason = review(job(combine=combine), silo(share_counts=False))
        assert (reason is None) is hides, reason


@pytest.mark.parametrize("name", ["dp_sgd", "gaussian"])
def test_noise_that_repeats_is_not_what_the_policy_requires(name: str) -> None:
    noise = {"dp_sgd": {"max_grad_norm": 1.0, "noise_multiplier": 1.0}, "gaussian": {"noise_multiplier": 1.0}}
    for seed in ({}, {"insecure_test_noise_seed": 1}):
        steps = [{"name": "clip", "max_norm": 1.0}, {"name": name, **noise[name], **seed}]
        reason = review(job(**UNIFORM, privacy=steps), silo(require_privacy=[name]))
        assert (reason is None) is (not seed), reason


def test_a_package_covers_its_modules_and_nothing_else() -> None:
    assert code_allowed("our.models.net", ["our.models"]) and code_allowed("our", ["our"])
    assert not code_allowed("ourselves", ["our"]) and not code_allowed("our", ["our.models"])


def test_only_named_metrics_leave() -> None:
    sums = {"loss": Sums("mean", (6.0, 4.0)), "accuracy": Sums("mean", (3.0, 4.0))}
    assert released(sums, Policy()) == sums
    assert released(sums, Policy(metrics_out=("loss",))) == {"loss": sums["loss"]}
    assert released(sums, Policy(metrics_out=())) == {}


def test_without_counts_the_figures_stay_and_the_rows_are_one() -> None:
    sums = {"loss": Sums("mean", (6.0, 4.0)), "auc": Sums("auc", (2.0, 0.0, 1.0, 1.0))}
    out = released(sums, Policy(share_counts=False))
    assert out["loss"] == Sums("mean", (1.5, 1.0))
    assert out["auc"].count == 1.0 and out["auc"].value == sums["auc"].value
