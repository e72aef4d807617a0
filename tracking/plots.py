"""Figures of a run for people: learning curves, who contributed, where the time went, what was sent.

Pure: a history in, matplotlib figures out. Silos have the colours that they have in MLflow.
"""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestrator.history import History
from tracking.views import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE = "#D9D9D9"
MANY = 16
"""Above so many silos single ones are not told apart."""
PHASES = {"wait": "waiting for silos", "transfer": "transfer", "fold": "fold", "step": "server step"}
DPI = 130


def figures_of(history: History) -> dict[str, Figure]:
    """All figures by name; those that a run has nothing for are left out."""
    makers: dict[str, Callable[[History], Figure]] = {}
    if any(each.overall for each in history.figures.values()):
        makers["curves"] = curves
    if history.rounds:
        makers |= {"contributions": contributions, "seconds": seconds, "traffic": traffic}
    return {name: make(history) for name, make in makers.items()}


def curves(history: History) -> Figure:
    """Each metric over versions: pooled, and silo by silo."""
    metrics = sorted({name for each in history.figures.values() for name in each.overall})
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(max(6.5, 4.6 * columns), 3.6 * rows + 0.9), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, metric in zip(grid, metrics, strict=False):
        _curve(axes, history, metric)
    for axes in islice(grid, len(metrics), None):
        axes.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return figure


def contributions(history: History) -> Figure:
    """Each silo's share of every version; below it, where any was late, by how many versions."""
    late = any(each.staleness for closed in history.rounds.values() for each in closed.contributors)
    figure = Figure(figsize=(9, 5.6 if late else 3.9), dpi=DPI, layout="constrained")
    axes = figure.subplots(2 if late else 1, 1, sharex=True, squeeze=False)[:, 0]
    versions, silos = sorted(history.rounds), history.silos
    _stack(
        axes[0], versions, [(silo, _given(history, silo, "weight")) for silo in silos], _colours(len(silos))
    )
    axes[0].set(ylabel="share of the update", ylim=(0, None))
    axes[0].set_title("Who made each version", loc="left", fontweight="bold")
    if late:
        for silo, colour in zip(silos, _colours(len(silos)), strict=True):
            axes[1].plot(
                versions, _given(history, silo, "staleness", None), ".", color=colour, ms=6, alpha=0.8
            )
        axes[1].set(ylabel="staleness\n(versions late)")
        axes[1].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("model version")
    _legend(figure, axes[0], silos)
    return figure


def seconds(history: History) -> Figure:
    """Where the time of each round went at the driver, and what of it the slowest silo trained."""
    figure = Figure(figsize=(9, 3.9), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    versions = sorted(history.rounds)
    known = [
        (word, [history.rounds[v].seconds.get(phase, 0.0) for v in versions])
        for phase, word in PHASES.items()
    ]
    _stack(axes, versions, known, (PALE, *COLOURS[1:4]))
    slowest = [
        max((c.seconds.get("train", 0.0) for c in history.rounds[v].contributors), default=0.0)
        for v in versions
    ]
    axes.plot(versions, slowest, color=INK, lw=1.4, ls="--", label="training, slowest silo")
    axes.set(ylabel="seconds per round", xlabel="model version", ylim=(0, None))
    axes.set_title("Where the time went", loc="left", fontweight="bold")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def traffic(history: History) -> Figure:
    """Bytes from and to the silos, round by round."""
    figure = Figure(figsize=(9, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    versions = sorted(history.rounds)
    up = [history.rounds[version].bytes_up for version in versions]
    down = [history.rounds[version].bytes_down for version in versions]
    axes.plot(versions, down, color=COLOURS[0], lw=1.8, label="to the silos (models)", **_marks(versions))
    axes.plot(
        versions, up, color=COLOURS[1], lw=1.8, ls="--", label="from the silos (updates)", **_marks(versions)
    )
    axes.set(ylabel="bytes per round", xlabel="model version", ylim=(0, 1.15 * max(*up, *down, 1)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.set_title("What was sent", loc="left", fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def human_bytes(value: float) -> str:
    """``1.5 MB``; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _curve(axes: "Axes", history: History, metric: str) -> None:
    versions, silos = sorted(history.figures), history.silos
    for silo, colour in zip(silos, _colours(len(silos)), strict=True):
        own = [
            (v, history.figures[v].silos[silo][metric]) for v in versions if metric in _own(history, v, silo)
        ]
        if own:
            label = silo if len(silos) <= MANY else None
            axes.plot(*zip(*own, strict=True), color=colour, lw=1.3, alpha=0.9, label=label)
    pooled = [
        (v, history.figures[v].overall[metric]) for v in versions if metric in history.figures[v].overall
    ]
    axes.plot(*zip(*pooled, strict=True), color=INK, lw=2.4, label="all silos, pooled", zorder=4)
    if history.best is not None and metric in history.figures[history.best].overall:
        value = history.figures[history.best].overall[metric]
        style = {"color": "#F0E442", "mec": INK, "ms": 13, "ls": "none", "zorder": 5}
        axes.plot([history.best], [value], marker="*", label=f"best version ({history.best})", **style)  # type: ignore[arg-type]
    axes.set_title(metric, loc="left", fontweight="bold")
    axes.set_xlabel("model version")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)


def _own(history: History, version: int, silo: str) -> dict[str, float]:
    return history.figures[version].silos.get(silo, {})


def _given(history: History, silo: str, what: str, absent: float | None = 0.0) -> list[Any]:
    """An attribute of the silo's contribution to each version; summed where it gave several."""
    rows = []
    for version in sorted(history.rounds):
        own = [getattr(each, what) for each in history.rounds[version].contributors if each.silo == silo]
        rows.append(sum(own) if own else absent)
    return rows


def _stack(
    axes: "Axes", versions: Sequence[int], rows: list[tuple[str, list[float]]], colours: Sequence[Any]
) -> None:
    """Bars, one behind the other; without gaps where there are many."""
    bottom = [0.0] * len(versions)
    width = 0.82 if len(versions) <= 60 else 1.0
    for (label, heights), colour in zip(rows, colours, strict=True):
        axes.bar(versions, heights, width, bottom=bottom, color=colour, label=label, linewidth=0)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xlim(min(versions) - 0.6, max(versions) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)


def _legend(figure: Figure, axes: "Axes", silos: Sequence[str]) -> None:
    if len(silos) <= MANY:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)


def _colours(count: int) -> list[Any]:
    if count <= MANY:
        return list(islice(cycle(COLOURS), count))
    from matplotlib import colormaps

    return [colormaps["viridis"](index / (count - 1)) for index in range(count)]


def _marks(versions: Sequence[int]) -> dict[str, Any]:
    return {"marker": "o", "ms": 3} if len(versions) <= 40 else {}


def plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
