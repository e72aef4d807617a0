"""Personalisation: closed forms (notes, oracles 39 and 41), and what stays at the silo, byte for byte."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.core.errors import BadJob
from orchestrator.core.messages import Update
from orchestrator.core.protocols import LocalRun, Phase
from orchestrator.job import Job
from orchestrator.strategies.apfl import Apfl
from orchestrator.strategies.ditto import Ditto
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.fedbn import FedBN
from orchestrator.strategies.fedper import FedPer
from orchestrator.strategies.fedrep import FedRep
from silos.state import SiloState
from silos.trainer import TorchTrainer
from tests.support.blob_federation import blob_job, blob_sites
from tests.support.blobs import Blobs
from tests.support.federation import LossyChannel, federate
from tests.support.quadratic import STEPS, Zeros, descend, desk, job_of, problems, silo_makers
from tests.unit.test_trainer import bits, trained

torch.set_num_threads(1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def alone(name: str, rounds: int, **options: Any) -> np.ndarray:
    """Where plain steps lead a silo that never hears of the others."""
    problem = problems(**options)[name]
    return desk(FedAvg(), {name: replace(problem, steps=problem.steps * rounds)}, 1)[-1]


# Ditto


@pytest.mark.parametrize("strategy", [Ditto(pull=0.5), Apfl(), FedPer(), FedRep(), FedBN()])
def test_the_common_model_is_fedavgs_to_the_bit(strategy: Any) -> None:
    """Also FedBN's where there is nothing to keep (oracle 39)."""
    made = problems(steps=STEPS)
    assert desk(strategy, made, 10)[-1].tobytes() == desk(FedAvg(), made, 10)[-1].tobytes()


def test_41_ditto_without_a_pull_is_what_the_silo_learns_alone() -> None:
    made, memory = problems(steps=STEPS), {name: Zeros(5) for name in problems()}
    desk(Ditto(pull=0), made, 10, memory=memory)
    for name in made:
        assert distance(memory[name]["model"], alone(name, 10, steps=STEPS)) < 1e-13


@pytest.mark.parametrize("pull", [0.1, 2.0])
def test_41_ditto_ends_between_alone_and_common(pull: float) -> None:
    """``(A + lambda I)^-1 (A b + lambda params)``, where ``params`` has come to rest."""
    made, memory = problems(steps=STEPS), {name: Zeros(5) for name in problems()}
    common = desk(Ditto(pull=pull), made, 1500, memory=memory)[-1]
    for name, problem in made.items():
        limit = np.linalg.solve(problem.a + pull * np.eye(5), problem.a @ problem.b + pull * common)
        assert distance(memory[name]["model"], limit) < 1e-11
        assert Ditto().personal(memory[name], common) is memory[name]["model"]
    assert Ditto().personal(Zeros(5), common) is None, "a silo that never trained has the common one"


def test_lambda_is_called_so_in_a_job() -> None:
    for name in ("lambda", "pull"):
        made = job_of(["a"], strategy={"name": "ditto", name: 0.25})
        assert made.strategy == Ditto(pull=0.25)
    assert Job.model_validate_json(made.model_dump_json()).digest == made.digest


# APFL


def test_apfl_with_a_share_of_one_is_what_the_silo_learns_alone() -> None:
    made, memory = problems(steps=STEPS), {name: Zeros(5) for name in problems()}
    common = desk(Apfl(alpha=1, adaptive=False), made, 10, memory=memory)[-1]
    for name in made:
        assert distance(Apfl().personal(memory[name], common), alone(name, 10, steps=STEPS)) < 1e-13


def test_apfl_with_a_share_of_none_is_the_common_model() -> None:
    made, memory = problems(steps=STEPS), {name: Zeros(5) for name in problems()}
    common = desk(Apfl(alpha=0, adaptive=False), made, 10, memory=memory)[-1]
    for name in made:
        assert Apfl().personal(memory[name], common).tobytes() == common.tobytes()


def test_apfl_by_hand() -> None:
    """Two steps of a second training: the share moves at the first, the silo's model at both."""
    problem, start = replace(problems()["s1"], steps=2, lr=0.1), np.linspace(-1, 1, 5)
    memory = Zeros(5)
    memory["model"], memory["alpha"] = np.linspace(0, 1, 5), np.array([0.25])
    v, w, alpha = memory["model"], start.copy(), 0.25
    for step in range(2):
        gradient = problem.gradient(alpha * v + (1 - alpha) * w)
        slope = gradient @ (v - w)
        v, w = v - 0.1 * alpha * gradient, w - 0.1 * problem.gradient(w)
        alpha -= 0.1 * slope if step == 0 else 0
    descend(Apfl(), problem, LocalRun(start.copy(), start, {}, memory))
    assert distance(memory["model"], v) < 1e-14 and memory["alpha"] == pytest.approx([alpha], abs=1e-14)
    assert 0.25 < memory["alpha"][0] < 1, "towards the better one"


def test_apfl_gives_more_to_itself_where_silos_differ() -> None:
    """It comes to the silo's own optimum; the share stays within 0 and 1."""
    made, memory = problems(steps=5), {name: Zeros(5) for name in problems()}
    common = desk(Apfl(), made, 400, memory=memory)[-1]
    for name, problem in made.items():
        mixed = Apfl().personal(memory[name], common)
        assert distance(mixed, problem.b) < 0.1 * distance(common, problem.b)
        assert 0 <= memory[name]["alpha"][0] <= 1


# FedPer, FedRep, FedBN


def trainer(strategy: dict[str, Any], task: Any = None, **sections: Any) -> TorchTrainer:
    local = {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}, **sections.pop("local", {})}
    made = job_of(["a", "b"], local=local, strategy=strategy, **sections)
    return TorchTrainer(made, "a", task or Blobs(), "cpu")


def private_names(made: TorchTrainer) -> set[str]:
    return {entry.name for entry in made.flat.entries if not entry.shared}


HEAD, BN = (
    {"head.weight", "head.bias"},
    {f"bn.{n}" for n in ("weight", "bias", "running_mean", "running_var")},
)


@pytest.mark.parametrize(
    ("strategy", "private"),
    [
        ({"name": "fedper"}, HEAD),
        ({"name": "fedrep"}, HEAD),
        ({"name": "fedper", "head": ["body.*", "head.*"]}, HEAD | {"body.weight", "body.bias"}),
        ({"name": "fedrep", "head": ["body.weight"]}, {"body.weight"}),
        ({"name": "fedbn"}, BN),
    ],
    ids=str,
)
def test_what_stays(strategy: dict[str, Any], private: set[str]) -> None:
    assert private_names(trainer(strategy)) == private
    assert private_names(trainer(strategy, private=["bn.*"])) == private | BN, "besides what the job names"


def test_fedper_is_fedavg_with_a_private_head() -> None:
    ours, plain = trainer({"name": "fedper"}), trainer({"name": "fedavg"}, private=["head.*"])
    assert bits(trained(ours, 0, {})) == bits(trained(plain, 0, {}))


def test_fedbn_needs_a_layer_of_normalisation() -> None:
    class Plain(Blobs):
        def model(self) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.InstanceNorm1d(4), nn.Linear(4, 2))

    with pytest.raises(BadJob, match="has none: that is fedavg"):
        trainer({"name": "fedbn"}, Plain())
    with pytest.raises(BadJob, match="leave no parameter to train together"):
        trainer({"name": "fedper", "head": ["*"]})


def test_fedrep_trains_the_head_and_then_the_body() -> None:
    """Written out: an epoch of the head under the received body, an epoch of the body under the new head."""
    made = trainer({"name": "fedrep", "head_epochs": 2}, Blobs(), local={"epochs": 1})
    state: dict[str, Any] = {}
    result = trained(made, 0, state)
    assert result.num_steps == 5, "steps of the common layers"
    heads = trainer({"name": "fedrep", "head_epochs": 2}, Blobs(), local={"steps": 1, "epochs": None})
    first: dict[str, Any] = {}
    trained(heads, 0, first)
    assert first["private/"].tobytes() == state["private/"].tobytes(), "the body's steps leave the head alone"
    assert FedRep(head_epochs=2).phases(Phase(steps=7)) == (
        Phase("own", epochs=2),
        Phase("shared", steps=7),
    )
    assert FedRep().phases(Phase(steps=7)) == (Phase("own", steps=7), Phase("shared", steps=7))


# What stays at the silo

PERSONAL = [
    {"name": "ditto", "lambda": 0.5},
    {"name": "apfl"},
    {"name": "fedper"},
    {"name": "fedrep"},
    {"name": "fedbn"},
]


class Listening:
    """A silo whose words are written down."""

    def __init__(self, silo: Any, said: list[Any]) -> None:
        self.silo, self.said = silo, said

    def handle(self, request: Any) -> Any:
        reply = self.silo.handle(request)
        self.said.append(reply)
        return reply


def private_bytes(state: dict[str, np.ndarray]) -> set[bytes]:
    """Eight bytes from each place of what is private: two numbers of a trained network do not recur by chance."""
    vectors = [part for name, part in state.items() if part.dtype == np.float32 and part.size > 1]
    return {
        part[i : i + 2].tobytes() for part in vectors for i in range(part.size - 1) if np.all(part[i : i + 2])
    }


@pytest.mark.parametrize("strategy", PERSONAL, ids=lambda each: each["name"])
def test_nothing_private_is_in_any_reply(strategy: dict[str, Any], tmp_path: Path) -> None:
    job, said = blob_job(3, strategy=strategy), []
    sites = dict(blob_sites(job, tmp_path / "silos"))
    states: list[dict[str, np.ndarray]] = []

    class Looking(Listening):
        def handle(self, request: Any) -> Any:
            reply = super().handle(request)
            if isinstance(reply, Update):
                states.append(SiloState(tmp_path / "silos" / reply.silo / "run").after(reply.version))
            return reply

    makers = {n: lambda make=make: Looking(make(), said) for n, make in silo_makers(sites).items()}
    ended = federate(job, makers, tmp_path, limit_s=120.0)
    assert ended.outcome.status == "done"
    updates = [reply for reply in said if isinstance(reply, Update)]
    shared = sites["a"].trainers[0].num_shared
    assert len(updates) == 6 and {each.size for each in updates} == {shared}
    assert {each.packet_bytes for each in updates} == {4 * shared}
    secrets = set().union(*map(private_bytes, states))
    assert len(secrets) > 15
    sent = b"".join(array.tobytes() for each in updates for array in (each.packet or {}).values())
    assert len(sent) == 4 * shared * 6, "small enough to come with the reply"
    assert not [secret for secret in secrets if secret in sent]
    names = {name for state in states for name in state}
    assert any(name.startswith(("strategy/", "private/")) for name in names)


@pytest.mark.parametrize("strategy", PERSONAL, ids=lambda each: each["name"])
def test_work_that_never_counted_leaves_no_trace(strategy: dict[str, Any], tmp_path: Path) -> None:
    """A silo's process ends after it trained version 1 and kept its state: it trains again from what counted."""
    ended, states = {}, {}
    job = blob_job(3, strategy=strategy)
    for name, losses in (("calm", {}), ("lossy", {("a", "Train", 2): "after", ("b", "Train", 3): "before"})):
        folder = tmp_path / name
        seen: dict[str, Any] = {}

        def during(driver: Any, channel: Any, event: Any, folder: Path = folder, seen: Any = seen) -> None:
            if type(event).__name__ == "VersionEvaluated":
                for silo in job.silos:
                    state = SiloState(folder / "silos" / silo / "run").after(2)
                    seen[silo] = {part: array.tobytes() for part, array in state.items()}

        sites = dict(blob_sites(job, folder / "silos"))
        ended[name] = federate(
            job,
            silo_makers(sites),
            folder,
            limit_s=120.0,
            channel=lambda start, losses=losses: LossyChannel(start, losses),
            during=during,
        )
        states[name] = seen
    assert ended["lossy"].bits == ended["calm"].bits
    assert states["calm"]["a"] and states["lossy"] == states["calm"]


def test_what_a_personal_model_costs(tmp_path: Path) -> None:
    """Ditto and APFL keep one more model at the silo, and go through the network twice; the update is as large."""
    sizes = {}
    for name in ("fedavg", "ditto", "apfl"):
        task = Blobs()
        calls: list[int] = []
        plain = task.loss
        task.loss = lambda model, batch, plain=plain, calls=calls: (calls.append(1), plain(model, batch))[1]  # type: ignore[method-assign]
        made, state = trainer({"name": name}, task), {}
        result = trained(made, 0, state)
        kept = {n: part.size for n, part in state.items() if n.startswith("strategy/")}
        sizes[name] = len(calls), result.parts["delta"].size, kept
    shared = made.flat.num_shared
    assert sizes == {
        "fedavg": (5, shared, {}),
        "ditto": (10, shared, {"strategy/model": shared}),
        "apfl": (10, shared, {"strategy/model": shared, "strategy/alpha": 1}),
    }
