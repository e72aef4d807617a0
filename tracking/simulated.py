"""Figures of simulated runs: who worked when, the metric over virtual time, how late updates were."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tracking.plots import DPI, PALE, plain
from tracking.views import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_BARS = 400
"""A timeline shows so many works; more could not be told apart."""
DASHES = ("-", (0, (5, 1.5)), "-", (0, (2, 1)))
"""So that a curve under another one can be seen."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A silo at work, in virtual seconds."""

    silo: str
    began: float
    ended: float
    used: bool
    """Whether its outcome arrived."""


def timeline(
    policy: str, silos: Sequence[str], bars: Sequence[Bar], closes: Sequence[float], until: float
) -> Figure:
    """One row per silo: coloured while it works, pale while it waits; a line where a version was made. Of a long run
    the beginning, up to the end of some `MANY_BARS` works."""
    until = min(until, sorted(bar.ended for bar in bars)[:MANY_BARS][-1]) if bars else until
    figure = Figure(figsize=(11, 1.6 + 0.34 * len(silos)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for row, silo in enumerate(silos):
        axes.barh(row, until, height=0.62, color=PALE, lw=0)
        own = [bar for bar in bars if bar.silo == silo and bar.began < until]
        for used, colour, hatch in ((True, COLOURS[0], ""), (False, COLOURS[1], "////")):
            kind = [(bar.began, min(bar.ended, until) - bar.began) for bar in own if bar.used == used]
            axes.broken_barh(kind, (row - 0.31, 0.62), color=colour, ec="white", lw=0.6, hatch=hatch)
    for close in (each for each in closes if each <= until):
        axes.axvline(close, color=INK, lw=0.6, alpha=0.45)
    _say_colours(axes)
    axes.set_yticks(range(len(silos)), silos)
    axes.set(xlim=(0, until), xlabel="virtual seconds", ylim=(len(silos) - 0.4, -0.6))
    axes.set_title(f"Who worked when: {policy}", loc="left", fontweight="bold", pad=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _say_colours(axes: "Axes") -> None:
    axes.barh(0, 0, color=COLOURS[0], label="at work")
    axes.barh(0, 0, color=COLOURS[1], hatch="////", ec="white", label="at work in vain")
    axes.barh(0, 0, color=PALE, label="idle")
    axes.plot([], [], color=INK, lw=0.8, alpha=0.6, label="a version is made")


def metric_over_time(
    curves: Mapping[str, Sequence[tuple[float, float]]], metric: str, target: float | None
) -> Figure:
    """The metric of each policy's newest version at each moment."""
    figure = Figure(figsize=(9, 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (policy, points), colour, dash in zip(curves.items(), cycle(COLOURS), cycle(DASHES), strict=False):
        if points:
            axes.step(*zip(*points, strict=True), where="post", color=colour, lw=1.8, ls=dash, label=policy)
    if target is not None:
        axes.axhline(target, color=INK, lw=1, ls="--", label=f"target {target:.4g}")
    axes.set(xlabel="virtual seconds", ylabel=metric, xlim=(0, None))
    axes.set_title(f"{metric} over virtual time", loc="left", fontweight="bold")
    plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def staleness(lates: Mapping[str, Sequence[int]]) -> Figure:
    """For each policy, the shares of its updates by how many versions late they were."""
    figure = Figure(figsize=(9, 3.9), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(lates), 1)
    for index, ((policy, late), colour) in enumerate(zip(lates.items(), cycle(COLOURS), strict=False)):
        counts = Counter(late)
        places = [value + (index - (len(lates) - 1) / 2) * width for value in sorted(counts)]
        heights = [counts[value] / len(late) for value in sorted(counts)]
        axes.bar(places, heights, width, color=colour, label=policy, linewidth=0)
    axes.set(xlabel="staleness (versions late)", ylabel="share of the updates")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("How late updates were", loc="left", fontweight="bold")
    plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
