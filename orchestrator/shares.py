"""What each silo brought to the model, as running sums over the rounds, and the models of coalitions made of them.

A silo's sum holds its updates as they went into each version: share times delta, times the factor with which the
server step followed the mean (its rate; FedNova's scale). A coalition's model is the initial one plus its members'
sums, scaled to the weight of all: ``theta_0 + sum_S S_i / sum_S p_i``. With a server optimizer that remembers
(momentum, Adam) the sums do not explain all of the way; `unexplained` says how much they leave.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from orchestrator.core.protocols import State
from orchestrator.core.vector import Parts, Vector
from orchestrator.privacy.clip import norm_of

PREFIX = "shares/"
"""Begins the names of these vectors in a checkpoint."""


def without_shares(state: State) -> State:
    """The strategy's own vectors of a checkpoint."""
    return {name: vector for name, vector in state.items() if not name.startswith(PREFIX)}


class Shares:
    """One vector of the model's size for each silo, one for the initial model, and one for each update of a round."""

    def __init__(self, silos: Sequence[str]) -> None:
        self.silos = tuple(silos)
        self.sums: dict[str, Vector] = {}
        self.initial: Vector = np.empty(0, np.float32)
        self.weights = np.zeros(len(silos), np.float32)
        """Of each silo's updates, summed over the rounds."""
        self._room: list[Vector] = []

    def begin(self, state: State) -> None:
        """Version 0."""
        self.initial = _model(state)
        self.sums = {silo: np.zeros_like(self.initial) for silo in self.silos}

    def restore(self, state: State) -> None:
        """From a checkpoint."""
        self.initial, self.weights = state[f"{PREFIX}initial"], np.array(state[f"{PREFIX}weights"])
        self.sums = {silo: np.array(state[f"{PREFIX}of/{silo}"]) for silo in self.silos}

    def vectors(self) -> dict[str, Vector]:
        """For a checkpoint."""
        sums = {f"{PREFIX}of/{silo}": vector for silo, vector in self.sums.items()}
        return {**sums, f"{PREFIX}initial": self.initial, f"{PREFIX}weights": self.weights}

    def room(self, count: int, size: int) -> list[Vector]:
        """Memory for the terms of a round's mean."""
        if len(self._room) < count or self._room[0].size != size:
            self._room = [np.empty(size, np.float32) for _ in range(count)]
        return self._room[:count]

    def add(
        self,
        silos: Sequence[str],
        weights: Sequence[float],
        before: State,
        after: State,
        layout: Mapping[str, int],
    ) -> None:
        """A round's terms, which lie in the room, made this step."""
        terms, size = self._room[: len(silos)], before["params"].size
        moved, mean = after["params"] - before["params"], np.zeros(size, np.float32)
        for term in terms:
            mean += term[:size]
        squared = float(np.dot(mean, mean))
        factor = np.float32(float(np.dot(moved, mean)) / squared if squared else 0.0)
        start = _start_of("buffers", layout)
        for silo, weight, term in zip(silos, weights, terms, strict=True):
            self.sums[silo][:size] += factor * term[:size]
            if start:
                self.sums[silo][size:] += term[start : start + layout["buffers"]]
            self.weights[self.silos.index(silo)] += weight

    def model(self, coalition: Collection[str], num_params: int) -> Parts:
        """Parameters and buffers that these silos alone would have come to; the initial ones for nobody."""
        vector = self.initial.copy()
        weight = sum(self._weight(silo) for silo in coalition)
        for silo in self.silos if weight else ():
            if silo in coalition:
                vector += self.sums[silo] / np.float32(weight)
        parts = {"params": vector[:num_params]}
        return {**parts, "buffers": vector[num_params:]} if vector.size > num_params else parts

    def _weight(self, silo: str) -> float:
        """Share of all that was added."""
        total = float(self.weights.sum())
        return float(self.weights[self.silos.index(silo)]) / total if total else 0.0

    def unexplained(self, state: State) -> float:
        """Share of the way from the initial parameters that the sums do not make."""
        size = state["params"].size
        way = state["params"] - self.initial[:size]
        left = way.copy()
        for vector in self.sums.values():
            left -= vector[:size]
        length = norm_of(way)
        return norm_of(left) / length if length else 0.0


def _start_of(part: str, layout: Mapping[str, int]) -> int:
    """Where the part lies in a packed update; 0 where it has none, for the first part is the delta."""
    names = list(layout)
    return sum(list(layout.values())[: names.index(part)]) if part in names else 0


def _model(state: State) -> Vector:
    return np.concatenate([state[name] for name in ("params", "buffers") if name in state])
