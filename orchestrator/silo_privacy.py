"""What each silo's share in the released models has cost it, where noise hides one silo among the others.

Released is every version that the journal has, also one that was made again later: the silos, and whoever looks at the
run, had it. A version is durable before any silo hears of it, so noise that was drawn and not recorded has left
nowhere, and what is drawn in its place is another one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from orchestrator.core.events import RoundClosed
from orchestrator.core.messages import SiloId, Update
from orchestrator.job import Job
from orchestrator.pipeline import by_silo
from orchestrator.privacy.accountant import Query, epsilon, epsilon_rdp
from orchestrator.privacy.mechanisms import Noise

MULTIPLIER = "silo_noise_multiplier"
"""Of one version, as the silo's share in it makes it."""


class SiloPrivacy:
    """The account of one run. Nothing in it where the job adds no noise."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._lost: dict[SiloId, float] = defaultdict(float)
        """Sum over the versions that the silo is in of ``multiplier ** -2``: so Gaussians add up."""

    def take(self, closed: RoundClosed) -> None:
        """A version that was made; to be told of each once."""
        found = {
            each.silo: each.privacy[MULTIPLIER] for each in closed.contributors if MULTIPLIER in each.privacy
        }
        for silo, multiplier in found.items():
            self._lost[silo] += multiplier**-2

    def figures(
        self, updates: Sequence[Update], shares: Sequence[float], settings: Mapping[str, float]
    ) -> dict[SiloId, dict[str, float]]:
        """By silo of a version that is about to be made: its multiplier there, and epsilon with all before it."""
        noise = next((step for step in self.job.steps(settings) if isinstance(step, Noise)), None)
        if noise is None:
            return {}
        own = by_silo(updates, shares)
        multipliers = dict(zip(own, noise.multipliers(list(own.values())), strict=True))
        return {
            silo: {MULTIPLIER: z, **_figures(self._lost[silo] + z**-2, noise.spec.delta)}
            for silo, z in multipliers.items()
        }

    def planned(self) -> dict[str, float]:
        """For a silo that is in every version. Raises `BadInput` where dp-accounting is missing."""
        noise, multiplier = self.job.noise, self.job.facts.noise_multiplier
        if noise is None or multiplier is None:
            return {}
        return {MULTIPLIER: multiplier, **_figures(self.job.rounds.total / multiplier**2, noise.delta)}

    def over(self) -> str | None:
        """Why no further version may be made; None where one more keeps within the target."""
        noise, multiplier = self.job.noise, self.job.facts.noise_multiplier
        if noise is None or noise.target_epsilon is None or multiplier is None:
            return None
        for silo, lost in sorted(self._lost.items()):
            if epsilon([_query(lost + multiplier**-2)], noise.delta) > noise.target_epsilon:
                return f"privacy: one more version would take {silo} beyond target_epsilon {noise.target_epsilon:g}"
        return None


def _query(lost: float) -> Query:
    return Query(1.0, lost**-0.5, 1)


def _figures(lost: float, delta: float) -> dict[str, float]:
    query = [_query(lost)]
    return {
        "silo_epsilon": epsilon(query, delta),
        "silo_epsilon_rdp": epsilon_rdp(query, delta),
        "silo_delta": delta,
    }
