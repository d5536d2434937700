"""Pictures of how the sampler moved: traces with ranks, pairs with divergences, energies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._report_data import Component
from ._report_mpl import (
    ACCENT,
    CHAINS,
    GRID,
    MUTED,
    WARN,
    axes_at,
    is_discrete,
    new_figure,
    quiet_ticks,
    smooth_density,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CHAINS = 8
MAX_POINTS = 2000


def trace_picture(component: Component, diverging: NDArray | None) -> str:
    """Density by chain, the trace with divergences marked below, and ranks by chain.

    Args:
        component: draws of shape (chain, draw).
        diverging: booleans of the same shape, or None.
    """
    figure = new_figure(9.6, 1.75)
    left = axes_at(figure, (0.1, 0.32, 2.3, 1.35))
    compare = len(component.draws) > 1
    middle = axes_at(figure, (2.95, 0.32, 4.1 if compare else 6.55, 1.35))
    shown = component.draws[:MAX_CHAINS]
    finite = shown[np.isfinite(shown)]
    _densities(left, shown)
    _trace(middle, shown, finite, diverging)
    if compare:
        _ranks(axes_at(figure, (7.35, 0.32, 2.15, 1.35)), shown)
    return to_svg(figure, f"density, trace and ranks of {component.label}")


def _densities(axes: Axes, draws: NDArray) -> None:
    for color, chain in zip(CHAINS, draws, strict=False):
        values = chain[np.isfinite(chain)]
        if not values.size or np.ptp(values) == 0:
            continue
        if is_discrete(values):
            levels, counts = np.unique(values, return_counts=True)
            axes.plot(levels, counts / values.size, "o-", color=color, markersize=2.5, linewidth=1)
        else:
            axes.plot(*smooth_density(values), color=color, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.spines["left"].set_visible(False)
    quiet_ticks(axes, x=5, y=0)


def _trace(axes: Axes, draws: NDArray, finite: NDArray, diverging: NDArray | None) -> None:
    steps = np.arange(draws.shape[1])
    for color, chain in zip(CHAINS, draws, strict=False):
        axes.plot(steps, chain, color=color, linewidth=0.5, alpha=0.75, rasterized=True)
    axes.set_xlim(0, max(draws.shape[1] - 1, 1))
    if finite.size and np.ptp(finite) > 0:
        room = 0.04 * np.ptp(finite)
        low = finite.min() - room * (2.5 if diverging is not None else 1)
        axes.set_ylim(low, finite.max() + room)
        if diverging is not None:
            at = np.flatnonzero(diverging[: len(draws)].any(axis=0))
            marks = np.full(at.size, low + 0.8 * room)
            axes.plot(at, marks, "|", color=WARN, markersize=5, markeredgewidth=0.9)
    quiet_ticks(axes, x=6, y=4)


def _ranks(axes: Axes, draws: NDArray) -> None:
    """Rank histograms, one row a chain, about the dashed line where a perfect chain lies."""
    chains = len(draws)
    if not np.isfinite(draws).all():
        place = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "ranks need finite draws", color=MUTED, **place)
        axes.set_axis_off()
        return
    # Ties in discrete draws are broken at random, or a level would pile up in one bin.
    jitter = np.random.default_rng(0).random(draws.size)
    order = np.lexsort((jitter, draws.ravel()))
    ranks = np.empty(draws.size)
    ranks[order] = (np.arange(draws.size) + 0.5) / draws.size
    bins = int(np.clip(draws.shape[1] // 10, 5, 20))
    edges = np.linspace(0, 1, bins + 1)
    for row, chain in enumerate(ranks.reshape(draws.shape)):
        heights = np.histogram(chain, edges)[0] / (len(chain) / bins)
        base = chains - 1 - row
        level = base + 0.4 * np.minimum(heights, 2.2)
        axes.stairs(level, edges, baseline=base, fill=True, color=CHAINS[row], alpha=0.55)
        axes.plot([0, 1], [base + 0.4, base + 0.4], color=MUTED, linewidth=0.6, dashes=(4, 3))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, chains)
    axes.spines["left"].set_visible(False)
    axes.set_xticks([0, 0.5, 1], ["lowest", "rank", "highest"])
    for tick, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        tick.set_horizontalalignment(side)
    quiet_ticks(axes, y=0)


def pair_picture(components: list[Component], diverging: NDArray | None) -> str:
    """Scatter plots of every pair, divergent draws on top; histograms on the diagonal.

    A component that is positive and spans more than a factor of 20 is drawn by its log10: the
    neck of a funnel is a point otherwise.
    """
    count = len(components)
    cell = min(2.2, 8.6 / count)
    figure = new_figure(9.6, cell * count + 0.55)
    columns = [_axis_values(component) for component in components]
    offset = (9.6 - cell * count) / 2 + 0.2
    flags = None if diverging is None else diverging.ravel()
    for row in range(count):
        for column in range(row + 1):
            bottom = 0.45 + cell * (count - 1 - row)
            box = (offset + cell * column, bottom, cell * 0.92, cell * 0.92)
            axes = axes_at(figure, box)
            if row == column:
                _marginal(axes, columns[row][1], flags)
            else:
                _cloud(axes, columns[column][1], columns[row][1], flags)
            _pair_labels(axes, columns, row, column)
    names = ", ".join(component.label for component in components)
    return to_svg(figure, f"pairwise scatter plots of {names}")


def _axis_values(component: Component) -> tuple[str, NDArray]:
    values = component.draws.ravel()
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.01, 0.99])
    if finite.min() > 0 and high > 20 * low:
        return f"log10 {component.label}", np.log10(values)
    return component.label, values


def _marginal(axes: Axes, values: NDArray, flags: NDArray | None) -> None:
    finite = np.isfinite(values)
    kept = values[finite]
    edges: Any = np.histogram_bin_edges(kept, bins=30)
    axes.hist(kept, edges, density=True, color=ACCENT, alpha=0.55)
    hit = kept[flags[finite]] if flags is not None else kept[:0]
    if hit.size >= 20:
        axes.hist(hit, edges, density=True, histtype="step", color=WARN, linewidth=1.1)
    elif hit.size:
        height = 0.03 * axes.get_ylim()[1]
        axes.plot(hit, np.full(hit.size, height), "|", color=WARN, markersize=7)
    axes.set_xlim(edges[0], edges[-1])


def _cloud(axes: Axes, x: NDArray, y: NDArray, flags: NDArray | None) -> None:
    bad = np.zeros(x.size, dtype=bool) if flags is None else flags
    plain = np.flatnonzero(~bad)
    if plain.size > MAX_POINTS:
        plain = np.random.default_rng(0).choice(plain, MAX_POINTS, replace=False)
    alpha = float(np.clip(400 / max(plain.size, 1), 0.25, 0.8))
    options = {"markeredgewidth": 0, "rasterized": True, "linestyle": "none"}
    axes.plot(x[plain], y[plain], "o", color=ACCENT, alpha=alpha, markersize=2.6, **options)
    hit = np.flatnonzero(bad)[:MAX_POINTS]
    axes.plot(x[hit], y[hit], "o", color=WARN, alpha=0.9, markersize=3.4, **options)
    finite = x[np.isfinite(x)]
    axes.set_xlim(finite.min(), finite.max())


def _pair_labels(axes: Axes, columns: list[tuple[str, NDArray]], row: int, column: int) -> None:
    last = row == len(columns) - 1
    quiet_ticks(axes, x=3 if last else 0, y=3 if column == 0 and row > 0 else 0)
    if last:
        axes.set_xlabel(shortened(columns[column][0]), color=MUTED)
    if column == 0 and row > 0:
        axes.set_ylabel(shortened(columns[row][0]), color=MUTED)
    if row == column:
        axes.spines["left"].set_visible(False)


def energy_picture(energy: NDArray) -> str:
    """The spread of the energy, and of its steps: the second should cover the first."""
    figure = new_figure(9.6, 2.3)
    axes = axes_at(figure, (2.0, 0.4, 5.6, 1.8))
    level = (energy - energy.mean(axis=1, keepdims=True)).ravel()
    steps = np.diff(energy, axis=1).ravel()
    level, steps = level[np.isfinite(level)], steps[np.isfinite(steps)]
    for values, color, name in (
        (level, ACCENT, "energy, centred"),
        (steps, CHAINS[1], "change from draw to draw"),
    ):
        if values.size and np.ptp(values) > 0:
            grid, density = smooth_density(values)
            axes.fill_between(grid, density, color=color, alpha=0.35, linewidth=0)
            axes.plot(grid, density, color=color, linewidth=1.3, label=name)
    both = np.concatenate((level, steps))
    if both.size and np.ptp(both) > 0:
        axes.set_xlim(*np.quantile(both, [0.0005, 0.9995]))
    axes.set_ylim(bottom=0)
    axes.spines["left"].set_visible(False)
    quiet_ticks(axes, x=6, y=0)
    axes.legend(handlelength=1.4, loc="upper right")
    axes.axvline(0, color=GRID, linewidth=0.8, zorder=0)
    return to_svg(figure, "density of the centred energy and of its changes")


def shortened(text: str, limit: int = 26) -> str:
    """A label cut in the middle, so that both the site and the coordinate are seen."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-limit // 2 :]}"
