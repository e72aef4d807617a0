"""A model version as an MLflow model: rebuilt from the job, filled from a checkpoint, exported without pickle.

No silo's data is touched: the architecture comes from the job and the input's shape, the example is all zeros.
"""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator import starting
from orchestrator.checkpoints import Unusable
from orchestrator.core.events import ModelReady, RoundClosed, RunOpened
from orchestrator.job import Job
from orchestrator.run_key import run_key
from silos.rebuilt import NoModel, module_of
from silos.weights import parameters_digest as digest_of
from tracking import weights
from tracking.mapping import Mapper
from tracking.server import Server, is_refusal

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("torch", "numpy", "mlflow")


def log_version(server: Server, run_dir: Path, mapper: Mapper, version: int, runs: tuple[str, str]) -> str:
    """Logs and registers one version, unless it is there; returns the logged model's id.

    ``runs``: ids of the experiment and of the job's run in MLflow. Raises NoModel, and what MLflow raises when it
    cannot be reached.
    """
    try:
        if mapper.opened is None or mapper.ready is None:
            raise NoModel("the run has no model yet")
        job = Job.model_validate(mapper.opened.job)
        if job.strategy.shares_logits:
            raise NoModel(f"with {job.strategy.name} every silo has a model of its own, which stays there")
        tags = tags_of(mapper.opened, mapper.ready, mapper.rounds.get(version), version)
        model_id = _find(server, runs[0], tags)
        if model_id is None:
            state = weights.load(run_dir, version)
            tags["siloray.parameters_digest"] = digest_of(state)
            job = Job.model_validate(mapper.opened.job)
            start = starting.load(run_dir, run_key(run_dir)) if job.start_from is not None else None
            model_id = _log(
                server, module_of(job, mapper.ready.model, state, start), mapper.ready, tags, runs
            )
        register(server, registered_name(mapper.opened), model_id, runs[1])
    except NoModel:
        raise
    except Unusable as error:
        raise NoModel(f"its checkpoint: {error}") from None
    except Exception as error:
        if _may_pass(error):
            raise
        raise NoModel(f"{type(error).__name__}: {error}".split("\n")[0][:500]) from error
    return model_id


def example_of(model: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Two rows of zeros in the shape of an input."""
    return np.zeros((2, *model["input_shape"]), model["input_dtype"])


def tags_of(opened: RunOpened, ready: ModelReady, made: RoundClosed | None, version: int) -> dict[str, str]:
    """Where the weights come from and who contributed; ``made`` is the round that made the version."""
    private = [
        each["name"] for each in ready.model["entries"] if not each["shared"] and not each.get("frozen")
    ]
    tags = {
        "siloray.run_id": opened.run_id,
        "siloray.version": str(version),
        "siloray.job_digest": opened.job_digest,
        "siloray.contributors": ", ".join(f"{c.silo}: {c.weight:.4g}" for c in made.contributors)
        if made
        else "",
        "siloray.lineage": made.lineage if made else "",
        **_start_tags(ready),
        "siloray.private": f"initial values from the seed: {', '.join(private)}" if private else "",
    }
    return {key: value[:5000] for key, value in tags.items() if value}


def _start_tags(ready: ModelReady) -> dict[str, str]:
    """What the run started from, and who is in that."""
    if ready.started_from is None:
        return {}
    source = ready.started_from.source
    return {
        "siloray.start_from": f"{source.run_id}, version {source.version}" if source.run_id else source.name,
        "siloray.start_sha256": source.sha256,
        "siloray.start_digest": ready.started_from.digest,
        "siloray.start_left": ", ".join(ready.started_from.left),
        "siloray.start_contributors": ", ".join(source.contributors),
    }


def registered_name(opened: RunOpened) -> str:
    """The registered model's name."""
    return str((opened.job.get("tracking") or {}).get("model") or opened.name)


def register(server: Server, name: str, model_id: str, run: str) -> None:
    """Makes a logged model the newest version of ``name``, with its own tags, unless it is a version already."""
    client = server.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if model_id not in numbers_of(server, name):
        tags = {
            key: value for key, value in client.get_logged_model(model_id).tags.items() if "siloray" in key
        }
        client.create_model_version(
            name, f"models:/{model_id}", run, tags, model_id=model_id, await_creation_for=0
        )


def numbers_of(server: Server, name: str) -> dict[str, str]:
    """The registry's version numbers by id of the logged model."""
    found = server.client.search_model_versions(f"name = '{name}'")
    return {str(each.source).rpartition("/")[2]: str(each.version) for each in found}


def _find(server: Server, experiment_id: str, tags: dict[str, str]) -> str | None:
    """The id of the model logged with these weights; what an attempt left unfinished is deleted."""
    wanted = ("siloray.run_id", "siloray.version", "siloray.lineage")
    query = " AND ".join(f"tags.`{key}` = '{tags[key]}'" for key in wanted if key in tags)
    found = server.client.search_logged_models([experiment_id], query)
    ready = [each for each in found if each.status == "READY"]
    for each in found:
        if each not in ready[:1]:
            server.client.delete_logged_model(each.model_id)
    return str(ready[0].model_id) if ready else None


def _log(
    server: Server,
    module: "nn.Module",
    ready: ModelReady,
    tags: dict[str, str],
    runs: tuple[str, str],
) -> str:
    import mlflow.pytorch
    import torch

    torch.set_num_threads(1)
    mlflow.set_tracking_uri(server.uri)
    mlflow.set_registry_uri(server.uri)
    mlflow.set_experiment(experiment_id=runs[0])
    example = example_of(ready.model)
    model = mlflow.models.Model.log(
        artifact_path=None,
        flavor=mlflow.pytorch,
        name=f"version-{tags['siloray.version']}",
        run_id=runs[1],
        step=int(tags["siloray.version"]),
        tags={**tags, "mlflow.source.name": "siloray"},
        pytorch_model=module,
        signature=_signature(module, example),
        input_example=example,
        pip_requirements=[f"{name}=={_release(name)}" for name in PACKAGES],
        serialization_format="pt2",
    )
    return str(model.model_id)


def _signature(module: "nn.Module", example: "np.ndarray[Any, Any]") -> Any:
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with torch.no_grad():
        output = module(torch.from_numpy(example)).numpy()
    inputs, outputs = (Schema([TensorSpec(each.dtype, (-1, *each.shape[1:]))]) for each in (example, output))
    return ModelSignature(inputs, outputs)


def _may_pass(error: Exception) -> bool:
    """The server or the network failed, not the model."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException | OSError) and not is_refusal(error)


def _release(package: str) -> str:
    """Installed version without the local part (``+cu132``), which no registry has."""
    return importlib.metadata.version(package).partition("+")[0]
