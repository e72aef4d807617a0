"""What the silo finds out about a model without an update: its figures, what it is worth here, how far attacks get."""

from dataclasses import replace
from time import perf_counter

from orchestrator.core.messages import Assess, Assessed, Attack, Attacked, Evaluate, Evaluated
from orchestrator.core.vector import digest_of
from orchestrator.privacy.fixed_point import shapes_of
from silos.metrics_rule import MetricsRule
from silos.run import Run
from silos.site import Cancelled, Findings
from silos.statements import Statements, seen
from silos.sum_terms import not_told
from silos.sums import Brought, Sums
from silos.working import Working


class Measuring:
    """Each begins, is paid for and is recorded as a training is. Raises `Cancelled`, and `BadInput` of the silo's own
    files."""

    def __init__(self, working: Working, statements: Statements, sums: Sums) -> None:
        self.site, self.working = working.site, working
        self._statements, self._sums = statements, sums
        self._assessed: tuple[str, MetricsRule, Assessed] | None = None
        """Of which run, under which rule, and what was found."""
        self._attacked: tuple[tuple[str, str, str], Findings] | None = None
        """Of which run and model (as the driver names it, and as it came), and how far attacks got, with all that the
        silo knows."""

    def evaluate(self, request: Evaluate, run: Run) -> Evaluated:
        began = perf_counter()
        vectors, rule = self.working.begin(request, run), self.site.metrics_rule
        self.working.spends(request, run, rule.spend)
        measured = rule.of_test(run.trainer.evaluate(self.working.order(request, run, vectors)))
        metrics, summed = run.told(measured, rule), self.site.release_in_sums(measured)
        received = digest_of(request.model) if run.job.sums is not None or request.head else ""
        hidden = not_told(summed, metrics)
        if run.job.sums is not None:
            self._sums.evaluated(request.version, Brought(received, summed, 1, hidden))
        self.working.signs.mark("idle", request.version)
        self.working.go_on(run)
        self.site.guard.left("evaluated", request.run_id, version=request.version, metrics=", ".join(metrics))
        return Evaluated(
            silo=self.site.name,
            version=request.version,
            metrics=metrics,
            seconds=perf_counter() - began,
            received=received,
            summed=shapes_of(summed) if run.job.sums else (),
            hidden=hidden if run.job.sums else (),
            receipt=self._statements.evaluation(request, run.job.digest, received) if request.head else None,
        )

    def assess(self, request: Assess, run: Run) -> Assessed:
        """Once for a version: the same again is answered with what is stored."""
        known, rule = self._assessed, self.site.metrics_rule
        wanted = run.id, rule, request.model_digest
        if known is None or (known[0], known[1], known[2].model_digest) != wanted:
            vectors = self.working.begin(request, run)
            self.working.spends(request, run, rule.spend)
            found = self.site.assess(run.trainer, self.working.order(request, run, vectors))
            if found.own is not None:
                self.site.keep(run.id, found.own, run.card(request, found))
            known = self._assessed = run.id, rule, run.assessed(request, run.ruled(found, rule))
            self.working.signs.mark("idle", request.version)
        self.working.go_on(run)
        models = {name: run.released(each, rule) for name, each in known[2].models.items()}
        metrics = sorted({name for each in models.values() for name in each.metrics})
        self.site.guard.left(
            "assessed",
            request.run_id,
            version=request.version,
            models=", ".join(models),
            metrics=", ".join(metrics),
        )
        curve = tuple((steps, run.told(sums, rule)) for steps, sums in known[2].curve)
        return replace(known[2], models=models, curve=curve, version=request.version)

    def attack(self, request: Attack, run: Run) -> Attacked:
        """Once for a version, as an assessment."""
        if run.job.release is None:
            raise Cancelled("job", "asks for attacks, which the job does not foresee")
        received = digest_of(request.model)
        known, key = self._attacked, (run.id, request.model_digest, received)
        if known is None or known[0] != key:
            vectors = self.working.begin(request, run)
            found = self.site.attack(run.trainer, self.working.order(request, run, vectors))
            known = self._attacked = key, found
            self.working.signs.mark("idle", request.version)
        self.working.go_on(run)
        reply = run.attacked(request, known[1])
        if request.head:
            receipt = self._statements.vote(request, run.job.digest, reply, received)
            reply = replace(reply, receipt=receipt)
        self.site.guard.left(
            "attacked",
            request.run_id,
            version=request.version,
            vote=reply.vote,
            scores=reply.scores,
            received=received,
            **(seen(reply.receipt) if reply.receipt else {}),
        )
        return reply
