"""The summary table of a posterior: one row a component, the mean first.

Figures are those of `_diagnostics`; the interval is by default the narrowest one that holds
``hdi_prob`` of the draws (the highest-density interval of a distribution with one mode), found
over the order statistics: min over i of x_(i + k) - x_(i), k = floor(hdi_prob N).

Cost: one sort a component on top of the diagnostics. pandas is imported when called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probkit.core import nearest

from ._checks import Labels, plain_label
from ._diagnostics import diagnose, never_varies

if TYPE_CHECKING:
    import pandas as pd

STATS = (
    "mean",
    "sd",
    "median",
    "hdi",
    "eti",
    "mcse_mean",
    "mcse_sd",
    "ess_bulk",
    "ess_tail",
    "ess_mean",
    "r_hat",
)
DEFAULT_STATS = ("mean", "sd", "hdi", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")


def picked(values: Mapping[str, Any], var_names: str | Sequence[str] | None) -> dict[str, Any]:
    """The values of some sites; of all by default.

    Raises:
        ValueError: there is no such site.
    """
    names = [var_names] if isinstance(var_names, str) else var_names
    for name in names or ():
        if name not in values:
            raise ValueError(f"summary: the posterior has no site {name!r}.{nearest(name, values)}")
    return {k: v for k, v in values.items() if names is None or k in names}


def summarise(
    draws: Mapping[str, ArrayLike],
    labels: Labels | None = None,
    hdi_prob: float = 0.94,
    stats: Sequence[str] = DEFAULT_STATS,
    constants: bool = False,
) -> pd.DataFrame:
    """Means, intervals and diagnostics of every component of every site.

    Args:
        draws: by site, shape (chain, draw, *shape), in constrained space.
        labels: name of a component from its site and index; by default ``theta[3]``.
        hdi_prob: probability that the intervals hold, between 0 and 1. 0.94 is ArviZ's.
        stats: columns to compute, in their order, out of ``mean``, ``sd``, ``median``, ``hdi``
            (narrowest interval), ``eti`` (equal tails), ``mcse_mean``, ``mcse_sd``, ``ess_bulk``,
            ``ess_tail``, ``ess_mean``, ``r_hat``.
        constants: whether to keep real components that never vary while others of their site do,
            such as the diagonal of a correlation matrix. A site that never varies at all stays.

    Returns:
        A data frame of floats, not rounded, indexed by component. ``hdi`` makes the columns
        ``hdi94_low`` and ``hdi94_high`` (the figure is the per cent held), and so does ``eti``.
        The components that were left out are in ``attrs["constant"]``.

    Raises:
        TypeError: an unknown entry of `stats`, or draws that are not numbers.
        ValueError: `hdi_prob` outside (0, 1), or draws without chain and draw axes.

    Example:
        >>> import numpy as np
        >>> table = summarise({"mu": np.random.default_rng(0).normal(size=(4, 500))})
        >>> list(table.columns[:4])
        ['mean', 'sd', 'hdi94_low', 'hdi94_high']
    """
    import pandas as pd

    from probkit.core._errors import check_between, check_options

    check_options("summarise(stats=)", stats, STATS)
    probability = check_between("summarise(hdi_prob=)", hdi_prob, 0.0, 1.0)
    labels = labels or plain_label
    index: list[str] = []
    left_out: list[str] = []
    columns: dict[str, list[NDArray]] = {}
    for name, values in draws.items():
        array = _numeric(name, values)
        kept = np.full(array.shape[2:], True) if constants else _informative(array)
        for i in np.ndindex(array.shape[2:]):
            (index if kept[i] else left_out).append(labels(name, tuple(i)))
        array = array[:, :, kept]
        for column, figures in _columns(array, tuple(stats), probability).items():
            columns.setdefault(column, []).append(figures)
    frame = pd.DataFrame({k: np.concatenate(parts) for k, parts in columns.items()}, index=index)
    frame.attrs["constant"] = left_out
    return frame


def _informative(array: NDArray) -> NDArray[np.bool_]:
    """The components to report: all, but for constants beside others that vary.

    (A whole number that keeps its value is a finding, not a constant of the model.)
    """
    if not array.size or array.dtype.kind != "f":
        return np.full(array.shape[2:], True)
    still = never_varies(array)
    return np.asarray(~still if not still.all() else np.full(still.shape, True))


def hdi(draws: ArrayLike, prob: float = 0.94) -> NDArray[np.float64]:
    """Narrowest interval holding `prob` of all draws together: shape ``(*shape, 2)``.

    Args:
        draws: shape (chain, draw, *shape). NaN in a component makes its interval NaN.
        prob: probability held, between 0 and 1.

    Example:
        >>> import numpy as np
        >>> hdi(np.arange(100.0).reshape(1, 100) ** 2, 0.5)
        array([   0., 2500.])
    """
    array = np.asarray(draws, dtype=np.float64)
    shape = array.shape[2:]
    ordered = np.sort(array.reshape(array.shape[0] * array.shape[1], -1), axis=0)
    size = len(ordered)
    if not size:
        return np.full((*shape, 2), np.nan)
    reach = min(int(np.floor(prob * size)), size - 1)
    with np.errstate(invalid="ignore"):
        low = (ordered[reach:] - ordered[: size - reach]).argmin(axis=0)
    columns = np.arange(ordered.shape[1])
    bounds = np.stack([ordered[low, columns], ordered[low + reach, columns]], axis=-1)
    # Sorting puts NaN last, so the last entry tells.
    bounds[np.isnan(ordered[-1])] = np.nan
    return bounds.reshape(*shape, 2)


def _numeric(name: str, values: ArrayLike) -> NDArray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"summarise: expected real numbers for site {name!r}, found dtype {array.dtype}; "
            "leave the site out, or turn it into numbers."
        )
    if array.ndim < 2:
        raise ValueError(
            f"summarise: expected draws of shape (chain, draw, ...) for site {name!r}, found "
            f"shape {array.shape}; a single chain is draws[None]."
        )
    return array


def _columns(array: NDArray, stats: tuple[str, ...], probability: float) -> dict[str, NDArray]:
    """The columns of one site, each of one entry a component."""
    figures = diagnose(array)
    # Means and spreads exist for fewer draws than diagnostics do.
    wide = array.astype(np.float64).reshape(array.shape[0] * array.shape[1], -1)
    out: dict[str, NDArray] = {}
    percent = f"{100 * probability:g}"
    tail = (1.0 - probability) / 2.0
    for name in stats:
        if name == "mean":
            out[name] = wide.mean(axis=0)
        elif name == "sd":
            out[name] = wide.std(axis=0, ddof=1) if len(wide) > 1 else np.full(wide.shape[1], 0.0)
        elif name == "median":
            out[name] = np.median(wide, axis=0)
        elif name == "hdi":
            bounds = hdi(array, probability).reshape(-1, 2)
            out[f"hdi{percent}_low"], out[f"hdi{percent}_high"] = bounds.T
        elif name == "eti":
            bounds = np.quantile(wide, [tail, 1.0 - tail], axis=0)
            out[f"eti{percent}_low"], out[f"eti{percent}_high"] = bounds
        else:
            out[name] = figures[name].reshape(-1)
    return out
