"""Which jobs make sense: a table of sentences, judged on facts that the members declare, not on their names."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator import dp_sgd_legality, noise_legality, round_legality, sum_legality
from orchestrator.contract import Contract
from orchestrator.release import ReleaseSettings
from orchestrator.strategies.apfl import Apfl
from orchestrator.strategies.ditto import Ditto
from orchestrator.strategies.feddyn import FedDyn
from orchestrator.strategies.fedma import FedMA
from orchestrator.strategies.fednova import FedNova
from orchestrator.strategies.meta_sgd import MetaSgd
from orchestrator.strategies.reptile import Reptile
from orchestrator.strategies.server import Sgd
from orchestrator.task import OwnTask, Tabular, Task

if TYPE_CHECKING:
    from orchestrator.job import Job


def refusals(job: "Job") -> Iterator[str]:
    """Reasons why this job cannot run; none if it can."""
    policy = job.policy  # raises its own sentence when the numbers contradict each other
    unknown = sorted(set(job.required_silos) - set(job.silos))
    if unknown:
        yield f"required_silos: {', '.join(unknown)} not among the job's silos"
    strange = sorted(set(job.held_out) - set(job.silos))
    if strange:
        yield f"held_out: {', '.join(strange)} not among the job's silos"
    both = sorted(set(job.held_out) & set(job.required_silos))
    if both:
        yield f"held_out: {', '.join(both)} required in every round (required_silos), but held out of all"
    if not job.training:
        yield "held_out: no silo is left to train"
    if isinstance(job.combine.weights, dict) and set(job.combine.weights) != set(job.training):
        yield "combine.weights: give one number for each silo of the job that trains, and no other"
    if isinstance(job.combine.weights, dict) and min(job.combine.weights.values()) <= 0:
        yield "combine.weights: a weight must be positive"
    if job.needed_silos and policy.max_staleness and policy.buffer_size < len(job.needed_silos):
        yield (
            f"rounds.buffer: {policy.buffer_size} updates cannot hold the {len(job.needed_silos)} required "
            "silos of every round"
        )
    if job.sums is not None:
        yield from sum_legality.refusals(job, job.sums)
    if job.keep.updates and job.noise is not None and job.noise.where == "driver":
        yield "keep.updates: the single updates, which the driver's noise hides, would lie in the run directory"
    if job.contract is not None:
        yield from _contract(job.contract, job.task)
    yield from noise_legality.refusals(job)
    yield from round_legality.refusals(job)
    yield from dp_sgd_legality.refusals(job)
    if job.report.contribution != "none":
        yield from _contribution(job)
    if job.release is not None:
        yield from _release(job, job.release)
    if any(glob in job.private for glob in job.shared):
        yield "shared: a glob stands in 'private' as well"
    if job.strategy.halves and job.local.batch_size < 2:
        yield (
            f"local.batch_size: '{job.strategy.name}' adapts to one half of a batch and learns from the other: give 2 "
            "or more"
        )
    if isinstance(job.strategy, MetaSgd | Ditto | Apfl) and job.local.precision == "fp16":
        yield (
            f"local.precision: fp16 leaves out a batch whose gradient overflows, and '{job.strategy.name}' moves more "
            "than the model by it: use bf16"
        )
    yield from _frozen(job)
    yield from _adapted(job)
    if job.strategy.shares_logits:
        yield from _of_logits(job)
    if job.strategy.alone:
        yield from _alone(job)
    if job.strategy.whole:
        yield from _whole(job)
    if isinstance(job.strategy, FedMA) and not job.strategy.whole:
        yield from _reference(job, job.strategy)


def _contract(contract: Contract, task: Task) -> Iterator[str]:
    """Which column holds the labels of a task of the user's own, nobody knows but its class."""
    if contract.images is not None and isinstance(task, Tabular):
        yield f"contract.images: a '{task.name}' task reads no images"
    for name in ("labels", "min_per_class"):
        if getattr(contract, name) and isinstance(task, OwnTask):
            yield f"contract.{name}: the task's own class knows its labels; give contract.columns.COLUMN.values"


def _release(job: "Job", release: ReleaseSettings) -> Iterator[str]:
    strange = sorted(set(release.veto) - set(job.training))
    if strange:
        yield f"release.veto: {', '.join(strange)} not among the job's silos that train"
    if release.needed(len(job.training)) > len(job.training):
        yield f"release.quorum: {release.quorum} votes cannot come from {len(job.training)} silos that train"
    if job.strategy.shares_logits:
        yield f"release: with '{job.strategy.name}' every silo has a model of its own, and none is released"


def _whole(job: "Job") -> Iterator[str]:
    """Where the driver compares whole updates, one beside the other."""
    what = f"'{job.strategy.name}' at the driver"
    if job.alters_updates:
        yield f"privacy: {what} compares single updates unit by unit: what a privacy step does to them is not matched"
    if job.combine.sealed:
        yield f"combine: {what} compares single updates, which a sealed sum does not show; use at: silo"
    if job.codec.bytes_per_element < 1:
        yield f"codec: {what} compares whole updates, and {job.codec.name} leaves numbers out; use at: silo"
    if job.private or job.frozen or job.shared != ("*",):
        yield f"shared: {what} needs the whole model of every silo; use at: silo"
    if job.policy.max_staleness:
        yield f"rounds.max_staleness: {what} matches one layer per version, so an older version's updates do not fit"
    if job.strategy.server != Sgd():
        yield f"strategy.server: {what} puts the matched layers in place; a server optimizer would move them on"


def _reference(job: "Job", strategy: FedMA) -> Iterator[str]:
    """Of networks trained apart, one must be there to align the others with."""
    if strategy.alone_epochs is None:
        if strategy.reference is not None:
            yield "strategy.reference: without 'alone_epochs' all silos start from one model, which is the reference"
    elif strategy.reference not in job.silos:
        yield "strategy.reference: name the silo with whose network the others align theirs"
    elif strategy.reference not in job.required_silos:
        yield f"required_silos: give '{strategy.reference}', with whose network the others align theirs"
    if strategy.alone_epochs is not None and job.policy.max_staleness:
        yield "rounds.max_staleness: networks trained apart are aligned in versions 0 and 1, which all silos see"


def _alone(job: "Job") -> Iterator[str]:
    """Of what every silo would have to begin with."""
    for section in ("start_from", "adapters", "frozen"):
        if getattr(job, section):
            yield f"strategy.alone_epochs: every silo begins with a network of its own, and '{section}' with the same"


def _frozen(job: "Job") -> Iterator[str]:
    """Of what is not trained, or not yet."""
    for section in ("shared", "private"):
        both = [glob for glob in getattr(job, section) if glob in job.frozen and glob != "*"]
        if both:
            yield f"frozen: '{both[0]}' stands in '{section}' as well"
    if job.unfreeze and not job.frozen:
        yield "unfreeze: nothing is 'frozen'"
    if any(version < 1 for version in job.unfreeze):
        yield "unfreeze: the first version is 0, and what is trained from it on is not frozen"
    if job.unfreeze and job.strategy.keeps_optimizer:
        yield (
            f"unfreeze: '{job.strategy.name}' keeps the local optimizer's state, which is of what was trained before"
        )


def _adapted(job: "Job") -> Iterator[str]:
    if job.adapters is None:
        return
    if job.frozen or job.unfreeze:
        yield "adapters: they freeze everything else by themselves; leave 'frozen' and 'unfreeze' away"
    if job.strategy.whole:
        yield (
            f"adapters: '{job.strategy.name}' needs the whole network; of one with adapters only these are sent"
        )


def _of_logits(job: "Job") -> Iterator[str]:
    """No parameter is shared, so nothing can be said of which are."""
    for section in ("shared", "private", "frozen", "unfreeze", "adapters", "start_from"):
        if getattr(job, section) != type(job).model_fields[section].default:
            yield f"{section}: with '{job.strategy.name}' no parameter leaves a silo"
    if job.task.dataset == job.datasets[-1]:
        yield f"strategy.public: '{job.task.dataset}' is the silos' own data"


def _contribution(job: "Job") -> Iterator[str]:
    what = f"report.contribution: {job.report.contribution}"
    if job.combine.sealed:
        yield f"{what} recombines single silos' updates, and '{job.combine.name}' shows the driver only sums"
    if job.alters_updates:
        yield f"{what} makes and measures models of single silos' updates, which the steps under 'privacy' protect"
    if job.strategy.whole:
        yield f"{what} adds updates up in other coalitions, and '{job.strategy.name}' does not add them up at all"
    if job.strategy.shares_logits:
        yield f"{what} makes models of silos' updates, and with '{job.strategy.name}' these are no parameters"
    if len(job.training) < 2:
        yield f"{what} needs two silos that train"


def warnings(job: "Job") -> Iterator[str]:
    """What is legal but probably not meant."""
    yield from noise_legality.warnings(job)
    yield from round_legality.warnings(job)
    yield from dp_sgd_legality.warnings(job)
    if isinstance(job.strategy, FedNova) and not job.local.optimizer.is_sgd:
        yield (
            f"FedNova averages the gradients that {job.local.optimizer.name} met, not its steps: where all silos have "
            "the same optimizer and make as many steps, fedavg is faster, or server: {name: adam}"
        )
    if job.adapters is not None and job.adapters.trains_a and len(job.silos) > 1:
        yield (
            "adapters: with 'lora' the mean of A times the mean of B is not the mean of the silos' models; 'ffa_lora' "
            "averages exactly, and sends half as much"
        )
    late = sorted(version for version in job.unfreeze if version >= job.rounds.total)
    if late:
        yield f"unfreeze.{late[0]}: the last training is that of version {job.rounds.total - 1}"
    yield from _of_feddyn(job)
    if job.strategy.shares_logits and job.policy.max_staleness > 0:
        yield "where rounds.max_staleness > 0 the consensus is not the mean of what the silos say"
    yield from _of_two_models(job)
    if isinstance(job.strategy, Reptile) and job.strategy.server != Sgd():
        yield "Reptile's epsilon scales what the server optimizer gets: give one of the two, or mean both"
    server = job.strategy.server
    if isinstance(server, Sgd) and server.nesterov and server.delay == 1 and job.policy.max_staleness > 0:
        yield (
            "Nesterov momentum on the driver overshoots where rounds.max_staleness > 0 (arXiv 2401.09135): give "
            f"server.delay, {max(2, len(job.silos) // job.loosest_policy.buffer_size)} or so"
        )
    if isinstance(job.strategy, FedMA) and job.alters_updates:
        yield "FedMA's share of units that stayed is a public number outside the privacy step"
    if isinstance(job.strategy, FedNova) and job.alters_updates:
        yield "FedNova's path is a public number outside the privacy step"


def _of_feddyn(job: "Job") -> Iterator[str]:
    """Where the driver's memory is not the mean of the silos'."""
    if not isinstance(job.strategy, FedDyn) or not job.strategy.alpha:
        return
    if job.policy.max_staleness > 0:
        yield "FedDyn is not known to converge where rounds.max_staleness > 0: the silos' memories are of older models"
    if job.loosest_policy.buffer_size < len(job.silos) and job.combine.weights != "uniform":
        yield (
            "FedDyn's memory on the driver is the mean of the silos' only where all of them are in every round, or "
            "with combine.weights: uniform"
        )
    if job.alters_updates:
        yield "FedDyn: what a privacy step takes from an update, the silo's memory keeps; the driver's does not"


def _of_two_models(job: "Job") -> Iterator[str]:
    """Where a silo's own model, beside the common one, will not be what was meant."""
    strategy = job.strategy
    if not isinstance(strategy, Ditto | Apfl):
        return
    plain = f"{strategy.name}: a silo's own model moves by plain gradient steps"
    own_lr = strategy.lr if isinstance(strategy, Ditto) else None
    lr = own_lr or job.local.optimizer.lr
    if not job.local.optimizer.is_sgd and own_lr is None:
        remedy = "; give strategy.lr" if isinstance(strategy, Ditto) else ""
        yield f"{plain} at {job.local.optimizer.name}'s rate {lr:g}, which may be far too small for them{remedy}"
    if isinstance(strategy, Ditto) and lr * strategy.pull >= 1:
        yield f"{plain}, and lr x lambda = {lr * strategy.pull:g} throws it beyond the common one: keep it below 1"
    if job.private:
        yield f"{strategy.name}: the private layers fit the common model; the silo's own one uses them as they are"
