"""Convergence diagnostics of Markov chains, vectorised over the components of a site.

Draws are arrays of shape ``(chain, draw, *shape)``; every function returns ``shape``.
Let a chain be cut in halves (so M = 2 chain sequences of n = draw // 2 draws), with sequence
means ``m_j`` and variances ``s_j^2`` (divisor n - 1).

    B = n var_j(m_j),    W = mean_j(s_j^2),    var+ = (n - 1)/n W + B/n            (eqs. 1-3)
    R-hat = sqrt(var+ / W)                                                          (eq. 4)
    rho_t = 1 - (W - mean_j acov_j(t)) / var+,                                      (eq. 10)
    P_k   = rho_2k + rho_2k+1, cut at the first P_k <= 0, made non-increasing,
    tau   = -1 + 2 sum_k P_k  (plus the even half of the first dropped pair),       (eq. 13)
    ESS   = M n / max(tau, 1/log10(M n))                                            (eq. 11)
    z     = Phi^-1((rank - 3/8) / (M n + 1/4))                                      (eq. 14)

`rhat` is the larger of R-hat of ``z`` and of ``z`` of ``|x - median|``; `ess_bulk` is ESS of
``z``; `ess_tail` is the smaller ESS of the indicators ``x <= q_05`` and ``x <= q_95``;
`ess_mean` is ESS of ``x``. E-BFMI of a chain of energies E is mean (E_t - E_t-1)^2 / var(E).

Sources: Vehtari, Gelman, Simpson, Carpenter and Burkner (2021), "Rank-normalization, folding,
and localization: an improved R-hat", Bayesian Analysis 16 (equation numbers as above);
Geyer (1992) for the pairs; Betancourt (2016), arXiv:1604.00695, for E-BFMI.

Cost: per component O(N log N) for N = chain x draw (two sorts and four FFTs); components are
taken in blocks, so working memory stays at some tens of MB however many there are.

Departures: one chain alone gets the R-hat of its two halves (there is nothing better, and it
does find drift). A component that never varies, exactly, has ESS = N and no R-hat (NaN: 0/0);
one that varies by 1e-9 is no constant, so every figure here is free of the unit of measurement.
A component that holds a NaN gives NaN, and so do fewer than 4 draws a chain. Everything is
computed in float64, whatever the draws are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

MIN_DRAWS = 4
"""Fewer draws a chain than this leave nothing to estimate an autocovariance from."""

_BLOCK = 2**20
_NAMES = ("r_hat", "ess_bulk", "ess_tail", "ess_mean", "mcse_mean", "mcse_sd")


def never_varies(draws: ArrayLike) -> NDArray[np.bool_]:
    """Which components keep one value over all chains and draws, up to rounding: shape ``shape``.

    Args:
        draws: shape (chain, draw, *shape).

    Example:
        >>> never_varies(np.ones((2, 5, 3)))
        array([ True,  True,  True])
    """
    array = np.asarray(draws)
    with np.errstate(invalid="ignore"):
        low, high = array.min(axis=(0, 1)), array.max(axis=(0, 1))
        if array.dtype.kind != "f":
            return np.asarray(high == low)
        size = np.maximum(np.abs(low), np.abs(high))
        return np.asarray(high - low <= 8 * np.finfo(array.dtype).eps * size)


def diagnose(draws: ArrayLike) -> dict[str, Array]:
    """All diagnostics of one site at once, sharing the sorts: faster than one call for each.

    Args:
        draws: shape (chain, draw, *shape).

    Returns:
        Arrays of shape ``shape`` by name: ``mean``, ``sd``, ``r_hat``, ``ess_bulk``, ``ess_tail``,
        ``ess_mean``, ``mcse_mean``, ``mcse_sd``.

    Raises:
        ValueError: the array has no chain and draw axes.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(4, 500, 3))
        >>> diagnose(x)["r_hat"].shape
        (3,)
    """
    return _over_blocks(_all, draws, ("mean", "sd", *_NAMES))


def rhat(draws: ArrayLike) -> Array:
    """Rank-normalised split R-hat, the larger of bulk and folded. Shape: ``shape``.

    Near 1 when all half chains have the same location and spread; below 1.01 is good.

    Example:
        >>> import numpy as np
        >>> bool(rhat(np.random.default_rng(0).normal(size=(4, 500))) < 1.01)
        True
    """
    return _over_blocks(lambda x: {"r": _rank_rhat(x, _z_scale(_split(x)))}, draws, ("r",))["r"]


def ess_bulk(draws: ArrayLike) -> Array:
    """Effective number of draws for the centre of the distribution. Shape: ``shape``.

    Example:
        >>> import numpy as np
        >>> bool(ess_bulk(np.random.default_rng(0).normal(size=(4, 500))) > 1000)
        True
    """
    return _over_blocks(lambda x: {"ess": _ess(_z_scale(_split(x)))}, draws, ("ess",))["ess"]


def ess_tail(draws: ArrayLike) -> Array:
    """Effective number of draws for the 5 % and 95 % quantiles, the smaller. Shape: ``shape``.

    Example:
        >>> import numpy as np
        >>> bool(ess_tail(np.random.default_rng(0).normal(size=(4, 500))) > 1000)
        True
    """
    return _over_blocks(lambda x: {"ess": _tail_ess(x)}, draws, ("ess",))["ess"]


def ess_mean(draws: ArrayLike) -> Array:
    """Effective number of draws for the mean of the raw values. Shape: ``shape``.

    Example:
        >>> import numpy as np
        >>> bool(ess_mean(np.random.default_rng(0).normal(size=(4, 500))) > 1000)
        True
    """
    return _over_blocks(lambda x: {"ess": _ess(_split(x))}, draws, ("ess",))["ess"]


def mcse_mean(draws: ArrayLike) -> Array:
    """Monte Carlo standard error of the mean, in the units of the draws. Shape: ``shape``.

    Example:
        >>> import numpy as np
        >>> bool(mcse_mean(np.random.default_rng(0).normal(size=(4, 500))) < 0.03)
        True
    """
    return diagnose(draws)["mcse_mean"]


def mcse_sd(draws: ArrayLike) -> Array:
    """Monte Carlo standard error of the standard deviation, in the draws' units.

    By the delta method on the variance; NaN where the component never varies. Shape: ``shape``.

    Example:
        >>> import numpy as np
        >>> bool(mcse_sd(np.random.default_rng(0).normal(size=(4, 500))) < 0.03)
        True
    """
    return _over_blocks(lambda x: {"mcse": _mcse_sd(x)}, draws, ("mcse",))["mcse"]


def ebfmi(energy: ArrayLike) -> Array:
    """Estimated Bayesian fraction of missing information, one figure a chain.

    Args:
        energy: Hamiltonian at each draw, shape (chain, draw).

    Returns:
        Shape (chain,). Below 0.3 the momentum is refreshed too weakly for the energy's spread.

    Raises:
        ValueError: the array is not two-dimensional.

    Example:
        >>> import numpy as np
        >>> ebfmi(np.random.default_rng(0).normal(size=(4, 500))).shape
        (4,)
    """
    energies = np.asarray(energy, dtype=np.float64)
    if energies.ndim != 2:
        raise ValueError(
            f"ebfmi: expected energies of shape (chain, draw), found shape {energies.shape}; "
            "pass the 'energy' entry of the sample statistics as it is."
        )
    if energies.shape[1] < MIN_DRAWS:
        return np.full(energies.shape[0], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.square(np.diff(energies, axis=1)).mean(axis=1)
        return steps / energies.var(axis=1, ddof=1)


def _over_blocks(
    function: Callable[[Array], dict[str, Array]], draws: ArrayLike, names: tuple[str, ...]
) -> dict[str, Array]:
    """Apply `function` to (component, chain, draw) blocks and put the components back in shape."""
    array = np.asarray(draws)
    if array.ndim < 2:
        raise ValueError(
            f"diagnostics: expected draws of shape (chain, draw, ...), found shape {array.shape}; "
            "a single chain is draws[None]."
        )
    chains, length = array.shape[:2]
    shape = array.shape[2:]
    count = math.prod(shape)
    flat = array.reshape(chains, length, count)
    out = {name: np.full(count, np.nan) for name in names}
    if length >= MIN_DRAWS and chains > 0:
        width = max(1, _BLOCK // (chains * length))
        for start in range(0, count, width):
            block = np.moveaxis(flat[:, :, start : start + width], 2, 0)
            block = np.ascontiguousarray(block, dtype=np.float64)
            # Infinite or constant components give 0/0 on the way: the NaN that results is the
            # documented answer, not an accident to warn of.
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                values = function(block)
            missing = np.isnan(block).any(axis=(1, 2))
            for name in names:
                out[name][start : start + width] = np.where(missing, np.nan, values[name])
    return {name: value.reshape(shape) for name, value in out.items()}


def _all(x: Array) -> dict[str, Array]:
    halves = _split(x)
    z = _z_scale(halves)
    sd = x.std(axis=(1, 2), ddof=1)
    mean_ess = _ess(halves)
    return {
        "mean": x.mean(axis=(1, 2)),
        "sd": sd,
        "r_hat": _rank_rhat(x, z),
        "ess_bulk": _ess(z),
        "ess_tail": _tail_ess(x),
        "ess_mean": mean_ess,
        "mcse_mean": sd / np.sqrt(mean_ess),
        "mcse_sd": _mcse_sd(x),
    }


def _split(x: Array) -> Array:
    """Cut every chain in halves; the middle draw of an odd number belongs to neither."""
    half = x.shape[-1] // 2
    return np.concatenate([x[..., :half], x[..., -half:]], axis=-2)


def _z_scale(x: Array) -> Array:
    """Normal scores of the average ranks within each component (eq. 14)."""
    flat = x.reshape(x.shape[0], -1)
    size = flat.shape[1]
    order = np.argsort(flat, axis=1)
    ordered = np.take_along_axis(flat, order, axis=1)
    # Ranks are multiples of one half, so all scores come from one table of 2N - 1 entries.
    table = ndtri((0.5 * np.arange(2, 2 * size + 1) - 0.375) / (size + 0.25))
    scores = table[_twice_average_rank(ordered) - 2]
    out = np.empty_like(flat)
    np.put_along_axis(out, order, scores, axis=1)
    return out.reshape(x.shape)


def _twice_average_rank(ordered: Array) -> NDArray[np.int64]:
    """Twice the rank of each entry of sorted rows, equal values sharing their mean rank."""
    rows, size = ordered.shape
    twice = np.tile(np.arange(2, 2 * size + 2, 2), (rows, 1))
    tied = np.zeros(ordered.shape, dtype=bool)
    tied[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    later = np.flatnonzero(tied)
    if later.size:
        # Runs of equal values: the later members are consecutive, the first sits just before.
        opens = np.flatnonzero(np.diff(later, prepend=-2) != 1)
        starts = later[opens] - 1
        lengths = np.diff(opens, append=later.size) + 1
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        flat = twice.reshape(-1)
        flat[np.repeat(starts, lengths) + offsets] = np.repeat(flat[starts] + lengths - 1, lengths)
    return twice


def _rhat(x: Array) -> Array:
    n = x.shape[-1]
    between = n * x.mean(axis=2).var(axis=1, ddof=1)
    within = x.var(axis=2, ddof=1).mean(axis=1)
    return np.sqrt((between / within + n - 1) / n)


def _rank_rhat(x: Array, z: Array) -> Array:
    halves = _split(x)
    middle = np.median(halves.reshape(len(x), -1), axis=1)
    folded = np.abs(halves - middle[:, None, None])
    return np.maximum(_rhat(z), _rhat(_z_scale(folded)))


def _mean_autocovariance(x: Array) -> Array:
    """Autocovariance at every lag (divisor n), averaged over the sequences: shape (k, n)."""
    n = x.shape[-1]
    # Zero padding to at least 2n keeps the circular convolution from wrapping round.
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(x - x.mean(axis=-1, keepdims=True), n=size, axis=-1)
    # The inverse transform is linear, so the sequences are averaged before it.
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    return np.fft.irfft(power, n=size, axis=-1)[:, :n] / n


def _ess(x: Array) -> Array:
    """Effective sample size of (component, sequence, draw) arrays by Geyer's pairs."""
    count, sequences, n = x.shape
    total = sequences * n
    autocovariance = _mean_autocovariance(x)
    within = autocovariance[:, 0] * n / (n - 1.0)
    plus = autocovariance[:, 0].copy()
    if sequences > 1:
        plus += x.mean(axis=2).var(axis=1, ddof=1)
    rho = 1.0 - (within[:, None] - autocovariance) / plus[:, None]
    rho[:, 0] = 1.0
    # The last two lags rest on one and two products: they are never used.
    last_pair = max(0, (n - 3) // 2)
    pairs = rho[:, 0 : 2 * last_pair + 1 : 2] + rho[:, 1 : 2 * last_pair + 2 : 2]
    stop = ~(pairs > 0)
    cut = np.where(stop.any(axis=1), stop.argmax(axis=1), last_pair)
    monotone = np.minimum.accumulate(pairs, axis=1)
    kept = np.arange(last_pair + 1) < cut[:, None]
    rows = np.arange(count)
    even = rho[rows, 2 * cut]
    # Half of the first dropped pair still counts, unless it belongs to a negative pair.
    rest = np.where((even > 0) | (pairs[rows, cut] >= 0), even, 0.0)
    tau = -1.0 + 2.0 * np.where(kept, monotone, 0.0).sum(axis=1) + rest
    ess = total / np.maximum(tau, 1.0 / np.log10(total))
    ess = np.where(np.isnan(plus) | np.isnan(rho[:, 1]), np.nan, ess)
    constant = x.max(axis=(1, 2)) == x.min(axis=(1, 2))
    return np.where(constant, float(total), ess)


def _quantile(ordered: Array, probability: float) -> Array:
    """Linear interpolation between order statistics of each row (type 7)."""
    position = (ordered.shape[1] - 1) * probability
    low = int(np.floor(position))
    high = min(low + 1, ordered.shape[1] - 1)
    below, above = ordered[:, low], ordered[:, high]
    # Between two equal values the quantile must be that value to the bit: it is compared with it.
    return np.where(below == above, below, below + (above - below) * (position - low))


def _tail_ess(x: Array) -> Array:
    ordered = np.sort(x.reshape(len(x), -1), axis=1)
    ess = [
        _ess(_split((x <= _quantile(ordered, p)[:, None, None]).astype(np.float64)))
        for p in (0.05, 0.95)
    ]
    return np.minimum(*ess)


def _mcse_sd(x: Array) -> Array:
    squares = np.square(x - x.mean(axis=(1, 2), keepdims=True))
    variance = squares.mean(axis=(1, 2))
    spread = np.square(squares).mean(axis=(1, 2)) - variance**2
    return np.sqrt(spread / _ess(_split(squares)) / variance / 4)
