"""Pareto-smoothed importance sampling.

Given log weights ``lw_s``, s = 1..S, the ``M = ceil(min(S/5, 3 sqrt(S/r_eff)))`` largest weights
are replaced by the quantiles ``(i - 1/2)/M`` of a generalised Pareto distribution fitted to their
excesses over the next largest weight, and truncated at the largest raw weight. The shape k of
that fit (k-hat) says how far the weights can be trusted: below 0.5 they have a finite variance,
below 0.7 the smoothed estimate is useful, above 1 even the mean does not exist.

The fit is the profile quasi-Bayes estimate over ``theta = -k/sigma``:

    theta_i = 1/x_(M) + (1 - sqrt(m/(i - 1/2))) / (3 x_(M/4)),    m = 30 + floor(sqrt(M))
    k(theta) = mean log(1 - theta x),   l(theta) = M (log(-theta/k) - k - 1)
    theta^ = sum_i theta_i w_i,         w_i proportional to exp l(theta_i)
    k^ = (M k(theta^) + 5) / (M + 10)                       (weak prior at k = 1/2)

Sources: Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling",
JMLR 25; Zhang and Stephens (2009), Technometrics 51, for the fit.

Cost: per set of weights O(S) and one M x m fit (about 0.2 ms for S = 4000).

Departures: when the M + 1 largest weights are within 1 % of each other (weights that are constant
up to rounding, for one), nothing is smoothed and k-hat is 0, because such a tail is bounded; a
fit that fails, or a tail of fewer than 5, gives k-hat = inf.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]

_MIN_TAIL = 5
_LEVEL = 0.01


def psis(
    log_weights: ArrayLike, r_eff: float | ArrayLike = 1.0, *, normalize: bool = True
) -> tuple[Array, Array]:
    """Smooth importance weights along axis 0.

    Args:
        log_weights: shape (draw, *shape), in any normalisation; ``-inf`` is a weight of zero.
        r_eff: relative efficiency of the draws (effective over actual number), scalar or
            ``shape``; 1 for independent draws. It sets how long the tail is.
        normalize: make the weights sum to one; otherwise they keep their scale.

    Returns:
        The smoothed log weights, of the same shape, and k-hat of shape ``shape``. Weights with a
        NaN, ``+inf``, or no positive weight at all give NaN for both.

    Raises:
        ValueError: no draws, or an `r_eff` that is not positive or has another shape.

    Example:
        >>> import numpy as np
        >>> smooth, k = psis(np.random.default_rng(0).normal(size=1000))
        >>> bool(k < 0.7), round(float(np.exp(smooth).sum()), 6)
        (True, 1.0)
    """
    weights = np.array(log_weights, dtype=np.float64)
    if weights.ndim < 1 or weights.shape[0] == 0:
        raise ValueError(
            f"psis: expected log weights of shape (draw, ...) with at least one draw, found shape "
            f"{weights.shape}."
        )
    flat = weights.reshape(weights.shape[0], -1)
    share = efficiency(r_eff, weights.shape[1:])
    khat = np.empty(flat.shape[1])
    for j in range(flat.shape[1]):
        flat[:, j], khat[j] = _smooth(flat[:, j], share[j])
    if normalize:
        with np.errstate(invalid="ignore"):
            flat = flat - logsumexp(flat, axis=0)
    return flat.reshape(weights.shape), khat.reshape(weights.shape[1:])


def importance_ess(log_weights: ArrayLike) -> Array:
    """Effective number of independent draws in importance weights, along axis 0.

    ``(sum w)^2 / sum w^2``, between 1 and the number of draws; NaN where a weight is NaN.

    Example:
        >>> import numpy as np
        >>> float(importance_ess(np.zeros(100)))
        100.0
    """
    weights = np.asarray(log_weights, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        normed = np.exp(weights - weights.max(axis=0))
        return np.asarray(normed.sum(axis=0) ** 2 / np.square(normed).sum(axis=0))


def unseen_share(log_weights: ArrayLike) -> float:
    """Share of the total weight in the part of the fitted tail that no draw has reached.

    The tail's M weights above u have the mean ``u + sigma/(1 - k)`` under the fitted Pareto
    distribution; what this exceeds their own mean by is missing from every weighted sum. Infinite
    where k >= 1. It tells a long tail from a heavy one: k-hat is the same for a tail with a half
    and with a thousandth of the weight.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> tail = -0.8 * np.log(rng.random(4000))  # a Pareto tail with k = 0.8
        >>> unseen_share(tail) > 0.05, unseen_share(np.logaddexp(5.0, tail)) < 0.01
        (True, True)
    """
    weights = np.asarray(log_weights, dtype=np.float64)
    with np.errstate(all="ignore"):
        weights = np.sort(np.exp(weights - weights.max()))
    length = int(np.ceil(min(weights.size / 5, 3 * np.sqrt(weights.size))))
    if length < _MIN_TAIL or not np.isfinite(weights[-1]):
        return np.inf
    base, tail = weights[-length - 1], weights[-length:]
    if base > 1.0 - _LEVEL:
        return 0.0
    k, sigma = _fit_pareto(tail - base)
    if not k < 1.0:
        return np.inf
    return float(max(base + sigma / (1.0 - k) - tail.mean(), 0.0) * length / weights.sum())


def efficiency(r_eff: float | ArrayLike, shape: tuple[int, ...]) -> Array:
    """Relative efficiencies as a flat array, one for each set of weights."""
    values = np.asarray(r_eff, dtype=np.float64)
    if values.ndim and values.shape != shape:
        raise ValueError(
            f"r_eff: expected a scalar or shape {shape}, found shape {values.shape}; give one "
            "relative efficiency for each set of weights."
        )
    if np.any(values <= 0) or np.any(np.isinf(values)):
        raise ValueError(
            "r_eff: expected positive finite relative efficiencies, found "
            f"{float(values.min()):g} to {float(values.max()):g}."
        )
    return np.broadcast_to(values, shape).reshape(-1)


def _smooth(log_weights: Array, r_eff: float) -> tuple[Array, float]:
    """Smooth one vector of log weights, keeping its scale."""
    size = len(log_weights)
    top = log_weights.max()
    if not np.isfinite(top) or np.isnan(r_eff):
        return np.full(size, np.nan), np.nan
    shifted = log_weights - top
    length = int(np.ceil(min(size / 5, 3 * np.sqrt(size / r_eff))))
    place = max(size - 1 - length, 0)
    threshold = np.partition(shifted, place)[place]
    if threshold > -_LEVEL and size > 1:
        return log_weights.copy(), 0.0
    # Weights that underflow against the largest one are no part of its tail.
    threshold = max(threshold, np.log(np.finfo(np.float64).tiny))
    (tail,) = np.nonzero(shifted > threshold)
    if len(tail) < _MIN_TAIL:
        return log_weights.copy(), np.inf
    tail = tail[np.argsort(shifted[tail])]
    base = np.exp(threshold)
    k, sigma = _fit_pareto(np.exp(shifted[tail]) - base)
    if not np.isfinite(k):
        return log_weights.copy(), np.inf
    probabilities = (np.arange(len(tail)) + 0.5) / len(tail)
    shifted[tail] = np.log(_pareto_quantile(probabilities, k, sigma) + base)
    return np.minimum(shifted, 0.0) + top, k


def _fit_pareto(excess: Array) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution for sorted positive excesses."""
    n = len(excess)
    m = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    with np.errstate(all="ignore"):
        grid = (1.0 - np.sqrt(m / (np.arange(m) + 0.5))) / (3.0 * quartile) + 1.0 / excess[-1]
        k = np.log1p(-grid[:, None] * excess).mean(axis=1)
        profile = n * (np.log(-grid / k) - k - 1.0)
        weights = np.exp(profile - profile.max())
        theta = float(np.sum(grid * weights) / np.sum(weights))
        shape = float(np.log1p(-theta * excess).mean())
        scale = -shape / theta if theta != 0.0 else np.nan
    if not scale > 0:
        return np.nan, np.nan
    return (n * shape + 5.0) / (n + 10.0), scale


def _pareto_quantile(probabilities: Array, k: float, sigma: float) -> Array:
    tail = -np.log1p(-probabilities)
    # (May be beyond what a float holds: the caller cuts quantiles off at the largest weight.)
    with np.errstate(over="ignore"):
        return sigma * (tail if abs(k) < 1e-15 else np.expm1(k * tail) / k)
