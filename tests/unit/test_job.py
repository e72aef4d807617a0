"""The job document: its sections are the objects that run, its digest is its identity."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.core import document
from orchestrator.core.errors import BadInput
from orchestrator.job import Job, json_schema, load_job
from orchestrator.strategies.fedprox import FedProx
from orchestrator.strategies.server import Adam
from tests.support.quadratic import job_of

EXAMPLES = sorted(Path("examples").glob("*/*.yaml"))


def test_sections_are_the_objects_that_run() -> None:
    job = job_of("ab", strategy={"name": "fedprox", "mu": 0.3, "server": {"name": "adam", "lr": 0.1}})
    assert job.strategy == FedProx(mu=0.3, server=Adam(lr=0.1))
    assert job.codec.name == "raw" and job.combine.weights == "examples" and job.privacy == ()


def test_a_job_survives_json() -> None:
    job = job_of(
        "ab",
        strategy={"name": "fednova"},
        privacy=[{"name": "clip", "max_norm": 2}],
        combine={"weights": {"a": 1, "b": 2}},
    )
    again = Job.model_validate_json(job.model_dump_json())
    assert again == job and again.digest == job.digest
    assert Job.model_validate(json.loads(json.dumps(job.model_dump(mode="json")))).digest == job.digest


def test_the_digest_is_of_the_meaning() -> None:
    plain = job_of("ab")
    assert (
        job_of("ab", seed=0, strategy={"name": "fedavg", "server": {"name": "sgd", "lr": 1}}).digest
        == plain.digest
    )
    assert job_of("ab", rounds={"mode": "sync"}).digest == plain.digest, "defaults are written out"
    others = [job_of("ab", seed=1), job_of("ba"), job_of("ab", codec={"name": "bf16"}), job_of("ab", total=6)]
    assert len({each.digest for each in (plain, *others)}) == 5


def test_another_process_gives_the_same_digest() -> None:
    code = "from tests.support.quadratic import job_of; print(job_of('ab', required_silos=['b', 'a']).digest)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == job_of("ab", required_silos=["b", "a"]).digest


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_examples_are_in_order(file: Path) -> None:
    assert load_job(file).digest
    jsonschema.validate(document._read(file), json_schema())


def test_the_schema_refuses_what_the_job_refuses() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "silos": [], "rounds": {"total": 1}}, json_schema())


def test_a_wrong_key_gets_its_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    written = yaml.safe_load(Path("examples/heart_disease/job.yaml").read_text())
    file.write_text(yaml.safe_dump({**written, "strategi": {"name": "fedavg"}}))
    with pytest.raises(BadInput, match=r"strategi: unknown key; did you mean 'strategy'\?"):
        load_job(file)


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"privacy": [{"name": "clip", "max_norm": "inf"}]}, "privacy.0.max_norm: "),
        (
            {"privacy": [{"name": "dp_sgd", "max_grad_norm": 1, "noise_multiplier": "inf"}]},
            "noise_multiplier: ",
        ),
        ({"combine": {"name": "mean", "weights": {"a": 1, "b": "inf"}}}, "combine.weights.b: "),
        ({"combine": {"name": "fixed_point_sum", "range": "inf"}}, "combine.range: "),
        ({"combine": {"name": "fixed_point_sum", "range": 0}}, "greater than 0"),
        ({"combine": {"name": "fixed_point_sum", "range": -1}}, "greater than 0"),
        ({"rounds": {"patience_s": "inf"}}, "rounds.patience_s: "),
        ({"release": {"max_exposure": "inf"}}, "release.max_exposure: "),
    ],
)
def test_numbers_that_json_does_not_have_are_in_no_job(sections: dict[str, Any], place: str) -> None:
    """The driver's process gets the job as JSON, where infinity would be nothing: another job than was agreed on."""
    with pytest.raises(ValueError, match=place):
        job_of("ab", **sections)


def test_the_published_schema_is_this_one() -> None:
    """Written by ``siloray schema > docs/job.schema.json``."""
    assert json.loads(Path("docs/job.schema.json").read_text(encoding="utf-8")) == json_schema()


def test_cohorts_are_drawn_by_the_seed() -> None:
    silos = [f"s{i}" for i in range(10)]
    job = job_of(silos, seed=3, rounds={"cohort": 4})
    draws = [job.sample(version, silos, 4) for version in range(200)]
    assert draws == [job.sample(version, silos, 4) for version in range(200)]
    assert draws != [
        job_of(silos, seed=4, rounds={"cohort": 4}).sample(version, silos, 4) for version in range(200)
    ]
    assert all(len(draw) == 4 for draw in draws)
    times = [sum(silo in draw for draw in draws) for silo in silos]
    assert min(times) > 50 and max(times) < 110, "each about 80 times in 200"


def test_importing_the_driver_brings_in_neither_ray_nor_mlflow_nor_torch() -> None:
    code = (
        "import sys, orchestrator.driver; print([m for m in ('ray', 'mlflow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
