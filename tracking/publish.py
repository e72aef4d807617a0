"""What is made of a run beyond its points: models while it runs; report, plots and files at its end."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.card import card
from orchestrator.card_facts import facts_of
from orchestrator.core.events import RoundClosed
from orchestrator.voting import told
from tracking import models, weights
from tracking.assessed import said
from tracking.cursor import Cursor, save
from tracking.mapping import Mapper
from tracking.points import RUN
from tracking.server import Server, patiently

MAX_CARD = 4_900
"""Characters of the card that the registry's description has room for."""
NONE = "none: "
"""Begins the cursor's note on a version that could not be logged."""


def keep(run_dir: Path, mapper: Mapper, cursor: Cursor, event: RoundClosed) -> None:
    """Sets a checkpoint aside that is to become a model, at sight."""
    if event.version % _every(mapper) == 0 and str(event.version) not in cursor.models:
        weights.keep(run_dir, event.version)


def publish(run_dir: Path, mapper: Mapper, cursor: Cursor, connect: Callable[[], Server]) -> bool:
    """Does the next thing that is due, if any, and notes it in the cursor. Raises what MLflow raises."""
    due, closed = _due(mapper, cursor), mapper.closed
    if not due and (closed is None or cursor.finished == closed.seq):
        return False
    server = connect()
    with patiently():
        if due:
            _log(run_dir, mapper, cursor, server, due[0])
        elif closed is not None:
            _finish(run_dir, mapper, cursor, server)
            cursor.finished = closed.seq
    cursor.problem = ""
    save(run_dir, cursor)
    return True


def _every(mapper: Mapper) -> int:
    tracking = (mapper.opened.job.get("tracking") if mapper.opened else None) or {}
    return int(tracking.get("every", 10))


def _due(mapper: Mapper, cursor: Cursor) -> list[int]:
    """Versions to log now: every so many, once their figures are known, so that the model shows them; at the end the
    best and the last."""
    known = [
        v for v in mapper.rounds if v % _every(mapper) == 0 and (v + 1 in mapper.rounds or mapper.closed)
    ]
    if mapper.closed is not None and mapper.closed.status != "failed":
        known += [v for v in (mapper.closed.best_version, mapper.closed.version) if v is not None and v >= 0]
    return [version for version in sorted(set(known)) if str(version) not in cursor.models]


def _log(run_dir: Path, mapper: Mapper, cursor: Cursor, server: Server, version: int) -> None:
    try:
        runs = (cursor.experiment_id, cursor.runs[RUN])
        cursor.models[str(version)] = models.log_version(server, run_dir, mapper, version, runs)
    except models.NoModel as error:
        cursor.models[str(version)] = f"{NONE}{error}"
        server.client.set_tag(cursor.runs[RUN], f"siloray.no_model.{version}", str(error))
    save(run_dir, cursor)
    weights.release(run_dir, version)


def _crown(mapper: Mapper, cursor: Cursor, server: Server) -> None:
    """Points the alias ``champion`` at the best version. ``latest`` is MLflow's own word for the newest: versions are
    registered in their order, and the last one at the end. The alias stays where it is if a silo is worse off than
    alone and the job says ``report.do_no_harm: block``; or if the silos' vote (``release``) does not let it go."""
    if mapper.verdict is not None and mapper.verdict.blocked:
        why = f"not promoted: worse than alone: {', '.join(mapper.verdict.harmed)} (report.do_no_harm: block)"
        server.client.set_tag(cursor.runs[RUN], "siloray.promotion", why)
        return
    best = str(mapper.closed.best_version) if mapper.closed else ""
    held = _held_back(mapper, best)
    if held is not None:
        server.client.set_tag(cursor.runs[RUN], "siloray.promotion", f"not promoted: {held}")
        return
    model_id = cursor.models.get(best, NONE)
    if mapper.opened is not None and not model_id.startswith(NONE):
        name = models.registered_name(mapper.opened)
        number = models.numbers_of(server, name)[model_id]
        server.client.set_registered_model_alias(name, "champion", number)


def _label(mapper: Mapper, cursor: Cursor, server: Server) -> None:
    """The silos' votes and scores as tags of the model's version that they attacked."""
    voted = mapper.release
    model_id = cursor.models.get(str(voted.version), NONE) if voted is not None else NONE
    if voted is None or mapper.opened is None or model_id.startswith(NONE):
        return
    name = models.registered_name(mapper.opened)
    number = models.numbers_of(server, name)[model_id]
    votes = {silo: each for silo, each in mapper.votes.items() if each.lineage == voted.lineage}
    tags = {f"siloray.vote.{silo}": said(each) for silo, each in votes.items()}
    for key, text in {"siloray.release": told(voted.model_dump()), **tags}.items():
        server.client.set_model_version_tag(name, number, key, text[:5000])


def _describe(mapper: Mapper, cursor: Cursor, server: Server, version: str, text: str) -> None:
    """The model card as the description of the model's version; all of it is the run's artifact ``card.md``."""
    model_id = cursor.models.get(version, NONE)
    if mapper.opened is None or model_id.startswith(NONE):
        return
    name = models.registered_name(mapper.opened)
    shown = (
        text if len(text) <= MAX_CARD else f"{text[:MAX_CARD]}…\n\nAll of it: artifact `card.md` of the run."
    )
    server.client.update_model_version(name, models.numbers_of(server, name)[model_id], shown)


def _held_back(mapper: Mapper, best: str) -> str | None:
    """Why the silos' vote does not let the best version out; None where it does, or the job asks for none."""
    if not mapper.opened or not mapper.opened.job.get("release"):
        return None
    voted = mapper.release
    made = mapper.rounds.get(voted.version) if voted is not None else None
    remade = made is not None and voted is not None and made.lineage != voted.lineage
    if voted is None or str(voted.version) != best or remade:
        return "the silos have not voted on the best version (release)"
    return None if voted.passed else f"the silos' vote on version {best}: {told(voted.model_dump())}"


def _finish(run_dir: Path, mapper: Mapper, cursor: Cursor, server: Server) -> None:
    """Report, card, plots and the job file; runs that a request made twice go."""
    from tracking import report

    if mapper.opened is None:
        return
    for key, ids in server.runs(cursor.experiment_id, mapper.opened.run_id).items():
        server.delete_runs([each for each in ids if each != cursor.runs.get(key, each)])
    _label(mapper, cursor, server)
    _crown(mapper, cursor, server)
    facts = facts_of(run_dir)
    text = card(facts, weights.digest_of(run_dir, facts.version))
    _describe(mapper, cursor, server, str(facts.version), text)
    with tempfile.TemporaryDirectory(prefix="siloray-") as folder:
        note = report.write(run_dir, Path(folder))
        (Path(folder) / "card.md").write_text(text, encoding="utf-8")
        server.client.log_artifacts(cursor.runs[RUN], folder)
    server.client.set_tag(cursor.runs[RUN], "mlflow.note.content", note)
