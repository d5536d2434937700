"""Pictures that compare the model's predictions with the data: PPC, LOO-PIT, Pareto k.

LOO-PIT of observation i is the probability, under the prediction for y_i made without y_i, of a
value at or below y_i. With smoothed importance weights w_is (sum one over s; see ``_psis``) and
predictive draws y~_is,

    PIT_i = sum_s w_is (1[y~_is < y_i] + u_i 1[y~_is = y_i]),      u_i uniform on (0, 1),

the second term for discrete outcomes (Czado, Gneiting and Held 2009, Biometrics 65). For a
calibrated model the PITs are near uniform; shown is their empirical distribution function minus
the uniform one, with a band that holds 95 % of the curves of truly uniform values whole, found by
simulation (Sailynoja, Burkner and Vehtari 2022, Statistics and Computing 32, section 2).

Cost: one sort of draws x observations, for at most ``MAX_OBSERVATIONS`` observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from ._psis import psis
from ._report_data import MAX_OBSERVATIONS, ReportData, component_label, thinned
from ._report_mpl import (
    ACCENT,
    CHAINS,
    INK,
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
    import xarray
    from matplotlib.axes import Axes

MAX_INTERVALS = 60
MAX_CURVES = 60
_FEW = 40  # below this a density of the observations says more about its bandwidth than of them
_BAND_DRAWS = 1000


@dataclass(frozen=True)
class Predicted:
    """An observed variable beside its replicates, entries that were not observed left out.

    Attributes:
        name: the variable.
        observed: shape (n,).
        replicates: shape (draw, n), all chains stacked.
        labels: one for each observation, ``y[Choate]``.
    """

    name: str
    observed: NDArray
    replicates: NDArray
    labels: list[str]


def matched_predictions(data: ReportData) -> tuple[list[Predicted], list[str]]:
    """Observed variables that have replicates of the same shape, and notes on those that fail."""
    found: list[Predicted] = []
    notes = []
    replicates = data.groups["posterior_predictive"]
    for key, observed in data.groups["observed_data"].items():
        name = str(key)
        if name not in replicates:
            notes.append(f"{name} has no posterior predictive draws.")
        elif observed.dtype.kind not in "iufb" or replicates[name].dtype.kind not in "iufb":
            notes.append(f"{name} does not hold numbers.")
        else:
            try:
                found.append(_matched(name, observed, replicates[name]))
            except ValueError as error:
                notes.append(f"{name}: {error}")
    return found, notes


def _matched(name: str, observed: xarray.DataArray, drawn: xarray.DataArray) -> Predicted:
    sample = [dim for dim in ("chain", "draw") if dim in drawn.dims]
    if set(drawn.dims) - set(sample) == set(observed.dims):
        drawn = drawn.transpose(*sample, *observed.dims)
    if drawn.shape[len(sample) :] != observed.shape or not sample:
        raise ValueError(
            f"the observed shape is {dict(observed.sizes)}, the predicted one {dict(drawn.sizes)}."
        )
    flat = np.asarray(observed.values, dtype=np.float64).ravel()
    seen = np.flatnonzero(np.isfinite(flat))
    if not seen.size:
        raise ValueError("no entry was observed.")
    values = drawn.values.reshape(-1, flat.size)
    shown = thinned(seen, MAX_INTERVALS)
    indices = [np.unravel_index(i, observed.shape) for i in shown]
    labels = [component_label(observed, tuple(int(j) for j in index)) for index in indices]
    return Predicted(name, flat[seen], np.asarray(values[:, seen], dtype=np.float64), labels)


def ppc_picture(predicted: Predicted) -> str:
    """Left, the distribution of all observations; right, each one with its 50 and 90 % interval.

    An outcome of zeros and ones has no such intervals: there the right shows, for observations
    grouped by their predicted probability, the observed share of ones.
    """
    figure = new_figure(9.6, 2.75)
    left = axes_at(figure, (0.45, 0.45, 3.8, 2.15))
    right = axes_at(figure, (4.95, 0.45, 4.5, 2.15))
    if is_discrete(predicted.observed) and is_discrete(predicted.replicates[:50]):
        _counts(left, predicted)
    elif predicted.observed.size < _FEW:
        _steps(left, predicted)
    else:
        _curves(left, predicted)
    if is_binary(predicted):
        _shares(right, predicted)
    else:
        _intervals(right, predicted)
    return to_svg(figure, f"posterior predictive check of {predicted.name}")


def _steps(axes: Axes, predicted: Predicted) -> None:
    """Empirical distribution functions, for few observations."""
    rows = thinned(np.arange(len(predicted.replicates)), MAX_CURVES)
    shares = np.arange(1, predicted.observed.size + 1) / predicted.observed.size
    options = {"color": ACCENT, "alpha": 0.25, "linewidth": 0.8, "rasterized": True}
    for row in rows:
        axes.step(np.sort(predicted.replicates[row]), shares, where="post", **options)
    axes.plot([], [], color=ACCENT, alpha=0.6, linewidth=1.0, label="replicated data")
    ordered = np.sort(predicted.observed)
    axes.step(ordered, shares, where="post", color=INK, linewidth=1.8, label=predicted.name)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share at or below")
    quiet_ticks(axes, x=6, y=4)
    axes.legend(handlelength=1.4, loc="lower right")


def _curves(axes: Axes, predicted: Predicted) -> None:
    rows = thinned(np.arange(len(predicted.replicates)), MAX_CURVES)
    observed = predicted.observed
    low, high = observed.min(), observed.max()
    for row in rows:
        values = predicted.replicates[row]
        values = values[np.isfinite(values)]
        if values.size > 1 and np.ptp(values) > 0:
            grid, density = smooth_density(values)
            axes.plot(grid, density, color=ACCENT, alpha=0.22, linewidth=0.8, rasterized=True)
    axes.plot([], [], color=ACCENT, alpha=0.6, linewidth=1.0, label="replicated data")
    if observed.size > 1 and low < high:
        axes.plot(*smooth_density(observed), color=INK, linewidth=1.8, label=predicted.name)
        # One wild replicate of a heavy-tailed model would squeeze all else into a spike.
        middle = np.quantile(predicted.replicates[rows], [0.005, 0.995])
        axes.set_xlim(min(low, middle[0]), max(high, middle[1]))
    axes.plot(observed, np.zeros(observed.size), "|", color=INK, markersize=7, alpha=0.6)
    axes.set_ylim(bottom=0)
    axes.spines["left"].set_visible(False)
    quiet_ticks(axes, x=6, y=0)
    axes.legend(handlelength=1.4, loc="upper right")


def _counts(axes: Axes, predicted: Predicted) -> None:
    """Bars for how often each value was observed, and where 90 % of replicates put that."""
    rows = thinned(np.arange(len(predicted.replicates)), 1000)
    drawn = predicted.replicates[rows].astype(int)
    low = int(min(predicted.observed.min(), np.quantile(drawn, 0.001)))
    high = int(max(predicted.observed.max(), np.quantile(drawn, 0.999)))
    levels = np.arange(low, high + 1)
    observed = np.bincount(predicted.observed.astype(int) - low, minlength=levels.size)
    replicated = np.stack([(drawn == level).sum(axis=1) for level in levels], axis=1)
    bounds = np.quantile(replicated, [0.05, 0.5, 0.95], axis=0)
    axes.bar(levels, observed, width=0.8, color=ACCENT, alpha=0.4, label=f"{predicted.name}")
    axes.vlines(levels, bounds[0], bounds[2], color=INK, linewidth=1.4)
    label = "replicated data, median and 90 %"
    axes.plot(levels, bounds[1], "o", color=INK, markersize=3.5, label=label)
    axes.set_ylim(0, 1.25 * max(bounds[2].max(), observed.max()))
    quiet_ticks(axes, x=min(levels.size, 10), y=4)
    if levels.size <= 10:
        axes.set_xticks(levels)
    axes.legend(handlelength=1.4, loc="upper right")


def is_binary(predicted: Predicted) -> bool:
    """Whether data and replicates hold nothing but zeros and ones."""
    return bool(
        np.isin(predicted.observed, (0, 1)).all() and np.isin(predicted.replicates, (0, 1)).all()
    )


def _shares(axes: Axes, predicted: Predicted) -> None:
    """Observed share of ones against the predicted one, in up to ten groups of equal size."""
    chance = predicted.replicates.mean(axis=0)
    order = np.argsort(chance, kind="stable")
    groups = np.array_split(order, int(np.clip(chance.size // 10, 1, 10)))
    for group in groups:
        x = float(chance[group].mean())
        low, high = np.quantile(predicted.replicates[:, group].mean(axis=1), [0.05, 0.95])
        share = float(predicted.observed[group].mean())
        axes.vlines(x, low, high, color=ACCENT, linewidth=2.2, alpha=0.6)
        axes.plot(x, share, "o", color=INK if low <= share <= high else WARN, markersize=4)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7, dashes=(4, 3))
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("observed share")
    quiet_ticks(axes, x=5, y=5)


def _intervals(axes: Axes, predicted: Predicted) -> None:
    positions = thinned(np.arange(predicted.observed.size), MAX_INTERVALS)
    observed = predicted.observed[positions]
    bounds = np.nanquantile(predicted.replicates[:, positions], [0.05, 0.25, 0.75, 0.95], axis=0)
    at = np.arange(positions.size)
    inside = (observed >= bounds[0]) & (observed <= bounds[3])
    axes.vlines(at, bounds[0], bounds[3], color=ACCENT, linewidth=1.2, alpha=0.6)
    axes.vlines(at, bounds[1], bounds[2], color=ACCENT, linewidth=3.2, alpha=0.6)
    axes.plot(at[inside], observed[inside], "o", color=INK, markersize=3.2)
    axes.plot(at[~inside], observed[~inside], "o", color=WARN, markersize=4)
    axes.set_xlim(-0.7, positions.size - 0.3)
    quiet_ticks(axes, y=5)
    names = [label[len(predicted.name) + 1 : -1] for label in predicted.labels]
    if positions.size <= 12 and all(0 < len(name) <= 14 for name in names):
        tight = sum(map(len, names)) > 50
        axes.set_xticks(at, names, rotation=16 if tight else 0, ha="right" if tight else "center")
    else:
        axes.set_xticks([])
        axes.set_xlabel("observations", color=MUTED)


def statistics_rows(predicted: Predicted) -> list[tuple[str, float, float, float, float]]:
    """Mean, sd, least and greatest: observed, 5 % and 95 % of the replicates, P(rep >= obs)."""
    rows = thinned(np.arange(len(predicted.replicates)), 2000)
    drawn = predicted.replicates[rows]
    out = []
    for name, function in (("mean", np.mean), ("sd", np.std), ("min", np.min), ("max", np.max)):
        value = float(function(predicted.observed))
        replicated = function(drawn, axis=1)
        # Half of the ties, so that a discrete statistic that always fits gets 0.5.
        share = float(np.mean(replicated > value) + 0.5 * np.mean(replicated == value))
        low, high = np.quantile(replicated, [0.05, 0.95])
        out.append((name, value, float(low), float(high), share))
    return out


def loo_pit(data: ReportData, name: str) -> NDArray:
    """Leave-one-out probability integral transforms of an observed variable, shape (n,).

    Raises:
        ValueError: replicates, data and log likelihoods do not have the same draws or shape.
    """
    import xarray

    lik = data.log_likelihood[name]
    drawn = data.groups["posterior_predictive"][name]
    observed = data.groups["observed_data"][name]
    if "chain" not in drawn.dims and "chain" in lik.dims and lik.sizes["chain"] == 1:
        drawn = drawn.expand_dims("chain")
    dims = [dim for dim in lik.dims if dim not in ("chain", "draw")]
    if set(drawn.dims) == set(lik.dims) and set(observed.dims) == set(dims):
        # Imputed entries are in the replicates but not in the likelihood.
        lik, drawn, observed = xarray.align(lik, drawn, observed, join="inner")
        observed = observed.transpose(*dims)
        drawn = drawn.transpose(*lik.dims)
    if drawn.shape != lik.shape or observed.shape != lik.shape[2:] or lik.size == 0:
        raise ValueError(
            f"the log likelihood has sizes {dict(lik.sizes)}, the replicates "
            f"{dict(drawn.sizes)}, the data {dict(observed.sizes)}"
        )
    draws = lik.shape[0] * lik.shape[1]
    logs = lik.values.reshape(draws, -1)
    values = np.asarray(observed.values, dtype=np.float64).ravel()
    usable = np.flatnonzero(np.isfinite(values) & np.isfinite(logs).all(axis=0))
    if not usable.size:
        raise ValueError("no observation has a finite log likelihood")
    kept = thinned(usable, MAX_OBSERVATIONS)
    weights = np.exp(psis(-logs[:, kept])[0])
    replicates = drawn.values.reshape(draws, -1)[:, kept]
    below = np.sum(weights * (replicates < values[kept]), axis=0)
    equal = np.sum(weights * (replicates == values[kept]), axis=0)
    return np.clip(below + np.random.default_rng(0).random(kept.size) * equal, 0.0, 1.0)


def loo_pit_picture(pit: NDArray, name: str) -> tuple[str, bool]:
    """The PITs' distribution function less the uniform one, with its band; and if it stays in."""
    grid = np.linspace(0, 1, 202)[1:-1]
    curve = np.searchsorted(np.sort(pit), grid, side="right") / pit.size - grid
    low, high = (bound - grid for bound in uniform_band(pit.size, grid))
    inside = bool(np.all((low <= curve + 1e-12) & (curve <= high + 1e-12)))
    figure = new_figure(9.6, 2.3)
    axes = axes_at(figure, (2.0, 0.45, 5.6, 1.75))
    band = {"color": CHAINS[5], "alpha": 0.2, "linewidth": 0}
    axes.fill_between([0, *grid, 1], [0, *low, 0], [0, *high, 0], **band)
    axes.plot([0, 1], [0, 0], color=MUTED, linewidth=0.7, dashes=(4, 3))
    color = ACCENT if inside else WARN
    axes.plot([0, *grid, 1], [0, *curve, 0], color=color, linewidth=1.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("LOO-PIT")
    axes.set_ylabel("ECDF − uniform")
    quiet_ticks(axes, x=5, y=5)
    return to_svg(figure, f"LOO-PIT of {name} against the uniform distribution"), inside


def uniform_band(count: int, grid: NDArray, level: float = 0.95) -> tuple[NDArray, NDArray]:
    """Lowest and highest empirical distribution of ``count`` uniforms, as a whole, over ``grid``.

    At a point p the number below is binomial(count, p); the band is its central interval of one
    and the same probability 1 - g at all points. g is the (1 - level) quantile, over simulated
    curves, of a curve's smallest two-sided tail probability. Counts between grid points are
    multinomial, so a curve costs O(grid) at any count; the table of tails O(count x grid).
    """
    rng = np.random.default_rng(20220329)
    shares = np.diff(np.concatenate(([0.0], grid, [1.0])))
    counts = np.cumsum(rng.multinomial(count, shares, size=_BAND_DRAWS)[:, :-1], axis=1)
    below = bdtr(np.arange(count + 1.0)[:, None], count, grid)
    above = 1.0 - np.concatenate((np.zeros((1, grid.size)), below[:-1]))
    tails = np.minimum(2 * np.minimum(below, above), 1.0)
    smallest = tails[counts, np.arange(grid.size)].min(axis=1)
    # A whisker below, as the tails of discrete counts tie, and a tie is inside.
    half = 0.5 * np.quantile(smallest, 1 - level, method="lower") * (1 - 1e-9)
    low = np.argmax(below >= half, axis=0)
    high = count - np.argmax(above[::-1] >= half, axis=0)
    return low / count, high / count


def khat_picture(khat: NDArray, good: float, name: str) -> str:
    """Pareto k of each observation; those at or above the threshold stand out."""
    figure = new_figure(9.6, 2.0)
    axes = axes_at(figure, (2.0, 0.4, 5.6, 1.5))
    at = np.arange(khat.size)
    bad = ~(khat < good)
    dense = khat.size > 300
    axes.plot(at[~bad], khat[~bad], "o", color=ACCENT, markersize=3, alpha=0.7, rasterized=dense)
    axes.plot(at[bad], khat[bad], "o", color=WARN, markersize=4.5)
    axes.axhline(good, color=MUTED, linewidth=0.8, dashes=(4, 3))
    axes.set_ylabel("Pareto k")
    axes.set_xlabel("observation")
    finite = khat[np.isfinite(khat)]
    axes.set_ylim(min(0.0, finite.min(initial=0.0)) - 0.08, max(1.0, finite.max(initial=0)) + 0.08)
    axes.set_xlim(-0.02 * khat.size - 0.5, 1.02 * khat.size - 0.5)
    quiet_ticks(axes, x=6, whole=True)
    quiet_ticks(axes, y=4)
    return to_svg(figure, f"Pareto k of leave-one-out for {name}")
