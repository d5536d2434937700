r"""Importance weights of an approximation: how far it is from its target, and what they correct.

With draws z_i, i = 1..N, of an approximation q and the unnormalised log posterior log p(z),

    log w_i = log p(z_i) - log q(z_i)
    k-hat                the Pareto shape of the largest weights (`probkit.core._psis`)
    ESS/N = (sum w)^2 / (N sum w^2)
    ELBO = mean log w,                 log evidence = log mean w~     (w~ the smoothed weights)
    corrected moments    m~ = sum w~ z / sum w~, and likewise the variances

The two moments' checks compare q's own means and sds with the corrected ones, coordinate by
coordinate in the unconstrained space: k-hat and ESS speak of the weights' tail and hardly notice a
Gaussian whose sd is 0.75 of the right one in one direction (k-hat 0.44, ESS/N 0.7). Where k-hat is
too high for the correction itself to be trusted, they are not judged.

The standard error of k-hat is ``(1 + k) / sqrt(M)``, M the length of the tail: the asymptotic one
of a Pareto shape. Over 60 repetitions of 20,000 Pareto (k = 0 to 1) and lognormal (sigma = 0.5 to
2) weights the actual sd was 0.87 to 1.10 of it.

Sources: Yao, Vehtari, Simpson and Gelman (2018), "Yes, but did it work?", ICML, for k-hat of a
variational fit; Vehtari et al. (2024), JMLR 25, for smoothing. Cost: N draws and densities, in
blocks of one compiled program (the number of draws is no part of it), and O(N d).

Departure: k-hat alone misses a mean-field fit to a correlation of 0.99 in a quarter of all cases at
500 draws; hence ESS/N > 0.1, the moments, and N = 20,000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from probkit.core._check import Check, guarded, judged
from probkit.core._keys import wrap_key
from probkit.core._programs import compiled
from probkit.core._psis import importance_ess, psis
from probkit.core._target import Target
from probkit.core._trees import in_precision

#: Draws that a fit is judged with.
DRAWS = 20_000
K_HAT, ESS_RATIO, MEAN_SHIFT, SD_RATIO = 0.7, 0.1, 0.1, 1.25
_BLOCK_BYTES, _MOST_BYTES = 2**24, 2**28

_ADVICE = {
    "k_hat": (
        "the approximation misses part of the posterior, and reweighting cannot mend that: a "
        "richer approximation (a flow, or full rank), another parametrisation, or NUTS"
    ),
    "ess_ratio": (
        "few draws carry nearly all of the weight: a richer approximation, more optimisation "
        "steps, or NUTS"
    ),
    "mean_shift": (
        "the approximation's mean is off by more than a tenth of a posterior sd: the weights can "
        "correct it, posterior.importance_resample(); or a richer approximation"
    ),
    "sd_ratio": (
        "the approximation's sd is not the posterior's: the weights can correct it, "
        "posterior.importance_resample(); or a richer approximation (mean-field families are too "
        "narrow where parameters are correlated)"
    ),
}


@dataclass(frozen=True)
class Estimate:
    """A figure with its Monte Carlo standard error.

    Example:
        >>> print(Estimate(-31.336, 0.002))
        -31.336 (se 0.002)
    """

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.3f} (se {self.se:.3f})"


@dataclass(frozen=True, eq=False)
class Weights:
    """Draws of an approximation with both log densities, and what they say.

    Attributes:
        points: draws in the unconstrained space, shape ``(n, d)``.
        log_p: unnormalised log posterior at them, shape ``(n,)``.
        log_q: log density of the approximation at them, shape ``(n,)``.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(2000, 1))
        >>> log_q = -0.5 * z[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
        >>> found = Weights(z, log_q - 3.0, log_q)
        >>> found.khat, round(found.log_evidence.value, 3), found.ok
        (0.0, -3.0, True)
    """

    points: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray

    @cached_property
    def log_weights(self) -> NDArray[np.float64]:
        """``log p - log q``; -inf where the target has no mass."""
        return np.asarray(self.log_p, np.float64) - np.asarray(self.log_q, np.float64)

    @cached_property
    def _smoothed(self) -> tuple[NDArray[np.float64], float]:
        weights, bad = _read(self.log_weights)
        if bad or not np.isfinite(weights).any():
            return np.full(weights.size, np.nan), np.inf
        smooth, khat = psis(weights, normalize=False)
        return smooth, float(khat)

    @property
    def khat(self) -> float:
        """Pareto k of the weights: below 0.7 they can be trusted."""
        return self._smoothed[1]

    @property
    def khat_se(self) -> float:
        """Standard error of k-hat."""
        return k_error(self.khat, self.log_weights.size)

    @property
    def ess_ratio(self) -> float:
        """Effective over actual number of draws."""
        weights, bad = _read(self.log_weights)
        usable = not bad and np.isfinite(weights).any()
        return float(importance_ess(weights)) / weights.size if usable else 0.0

    @cached_property
    def smoothed(self) -> NDArray[np.float64]:
        """Log of the smoothed weights, normalised to sum to one; shape ``(n,)``."""
        smooth = self._smoothed[0]
        with np.errstate(invalid="ignore"):
            return smooth - np.asarray(logsumexp(smooth))

    @cached_property
    def elbo(self) -> Estimate:
        """Mean of the log weights: a lower bound of the log evidence."""
        values = self.log_weights
        with np.errstate(invalid="ignore"):
            error = float(np.std(values, ddof=1) / np.sqrt(values.size))
            return Estimate(float(np.mean(values)), error)

    @cached_property
    def log_evidence(self) -> Estimate:
        """Log of the mean smoothed weight; to be trusted where k-hat is below 0.7."""
        smooth = self._smoothed[0]
        value = float(logsumexp(smooth) - np.log(smooth.size))
        with np.errstate(invalid="ignore", over="ignore"):
            relative = np.exp(smooth - value)
            return Estimate(value, float(relative.std(ddof=1) / np.sqrt(smooth.size)))

    @cached_property
    def moments(self) -> dict[str, NDArray[np.float64]]:
        """Means and sds of the draws and of the weighted draws, with their errors, shape ``(d,)``.

        ``shift`` is the difference of the means in corrected sds and ``log_ratio`` the log of the
        draws' sd over the corrected one; ``shift_se`` and ``log_ratio_se`` are their standard
        errors, from each draw's influence on the difference.
        """
        x = np.asarray(self.points, np.float64)
        share = np.exp(self.smoothed)[:, None]
        plain = 1.0 / len(x)
        mean, sd = x.mean(axis=0), x.std(axis=0)
        right = np.sum(share * x, axis=0)
        gap = x - right
        square = np.square(gap)
        variance = np.sum(share * square, axis=0)
        spread = np.sqrt(variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            shift_se = np.sqrt(np.sum(np.square((share - plain) * gap), axis=0)) / spread
            pull = share * (square / variance - 1.0) - plain * (np.square((x - mean) / sd) - 1.0)
            return {
                "mean": right,
                "sd": spread,
                "shift": (mean - right) / spread,
                "shift_se": shift_se,
                "log_ratio": np.log(sd / spread),
                "log_ratio_se": 0.5 * np.sqrt(np.sum(np.square(pull), axis=0)),
            }

    def checks(self, label: Callable[[int], str] | None = None) -> list[Check]:
        """``k_hat``, ``ess_ratio``, ``mean_shift`` and ``sd_ratio``; never raises.

        Args:
            label: name of a coordinate of the unconstrained space; by default its number.
        """
        name = label or (lambda i: f"coordinate {i}")
        return [
            *importance_checks(self.log_weights),
            guarded("mean_shift", MEAN_SHIFT, "<", lambda: self._mean_shift(name)),
            guarded("sd_ratio", SD_RATIO, "<", lambda: self._sd_ratio(name)),
        ]

    @property
    def ok(self) -> bool:
        """Whether every one of `checks` passes."""
        return all(check.ok for check in self.checks())

    def _mean_shift(self, label: Callable[[int], str]) -> Check:
        if not self.khat < K_HAT:
            return _untold("mean_shift", MEAN_SHIFT)
        size = np.abs(self.moments["shift"])
        limit = np.maximum(MEAN_SHIFT, _spread(size.size) * self.moments["shift_se"])
        worst = _worst(size / limit)
        where = f"{label(worst)}, {self.moments['shift'][worst]:+.2f} posterior sds"
        return judged(
            "mean_shift", size[worst], float(limit[worst]), "<", where, _ADVICE["mean_shift"]
        )

    def _sd_ratio(self, label: Callable[[int], str]) -> Check:
        if not self.khat < K_HAT:
            return _untold("sd_ratio", SD_RATIO)
        size = np.abs(self.moments["log_ratio"])
        limit = np.maximum(np.log(SD_RATIO), _spread(size.size) * self.moments["log_ratio_se"])
        worst = _worst(size / limit)
        where = f"{label(worst)}, {np.exp(self.moments['log_ratio'][worst]):.2f} of the right sd"
        value, threshold = float(np.exp(size[worst])), float(np.exp(limit[worst]))
        return judged("sd_ratio", value, threshold, "<", where, _ADVICE["sd_ratio"])


def _worst(ratio: NDArray) -> int:
    """The largest entry; one that is not a number counts as larger than all."""
    return int(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)))


def _spread(count: int) -> float:
    """What |z| of ``count`` independent normals exceeds somewhere with probability below 5 %."""
    return float(np.sqrt(2.0 * np.log(2.0 * count / 0.05)))


def _untold(name: str, threshold: float) -> Check:
    why = "not judged: with this k-hat the weights cannot correct the moments"
    return Check(name, None, float("nan"), threshold, "", why)


def k_error(khat: float, draws: int) -> float:
    """Asymptotic standard error of k-hat from ``draws`` independent draws.

    Example:
        >>> round(k_error(0.7, 20_000), 3)
        0.083
    """
    tail = np.ceil(min(draws / 5.0, 3.0 * np.sqrt(draws)))
    return float((1.0 + max(khat, -0.5)) / np.sqrt(tail))


def importance_checks(log_weights: ArrayLike) -> list[Check]:
    """Checks of importance weights, for an approximation judged against its target.

    Args:
        log_weights: log target minus log approximation at draws of the latter, shape (draw,).

    Returns:
        ``k_hat`` and ``ess_ratio``. Never raises.

    Example:
        >>> importance_checks(np.zeros(1000))[0].value
        0.0
    """
    return [
        guarded("k_hat", K_HAT, "<", lambda: _k_hat(log_weights)),
        guarded("ess_ratio", ESS_RATIO, ">", lambda: _ess_ratio(log_weights)),
    ]


def _k_hat(log_weights: ArrayLike) -> Check:
    weights, bad = _read(log_weights)
    if bad or not np.isfinite(weights).any():
        note = f"{bad or weights.size} of {weights.size} log weights are not finite"
        return judged("k_hat", np.inf, K_HAT, "<", "", _ADVICE["k_hat"], note)
    k = float(psis(weights)[1])
    few = len(weights) < 25
    note = f"only {len(weights)} draws, too few to see a tail" if few and not k < K_HAT else ""
    where = f"se {k_error(k, len(weights)):.2f}" if np.isfinite(k) else ""
    return judged("k_hat", k, K_HAT, "<", where, _ADVICE["k_hat"], note)


def _ess_ratio(log_weights: ArrayLike) -> Check:
    weights, bad = _read(log_weights)
    usable = not bad and np.isfinite(weights).any()
    ratio = float(importance_ess(weights)) / weights.size if usable else 0.0
    return judged("ess_ratio", ratio, ESS_RATIO, ">", "", _ADVICE["ess_ratio"])


def _read(log_weights: ArrayLike) -> tuple[NDArray[np.float64], int]:
    """Log weights as a vector, and how many of them no weight can be (NaN, +inf)."""
    weights = np.asarray(log_weights, dtype=np.float64).reshape(-1)
    if not weights.size:
        raise ValueError("there are no log weights")
    return weights, int(np.sum(np.isnan(weights) | (weights == np.inf)))


def weigh(target: Target, approximation: Any, key: np.ndarray, draws: int | None = None) -> Weights:
    """Draw from an approximation and evaluate both log densities.

    Args:
        target: what is approximated.
        approximation: an `Approximation` with a density; its ``key`` and the shapes of its
            ``params`` determine the compiled program.
        key: raw key data. The draws of one key are a prefix of more draws of the same key.
        draws: how many; by default 20,000, or what 256 MiB hold.

    Raises:
        ValueError: the approximation has no density.

    Example:
        >>> import probkit as pk
        >>> model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
        >>> fit = pk.fit(model, {"y": 0.5}, method=pk.ExactGaussian(), progress=False)
        >>> weigh(fit.target, fit.approximation, np.zeros(2, np.uint32), 2000).ess_ratio > 0.99
        True
    """
    if approximation.log_density is None:
        raise ValueError("weigh: expected an approximation with a density, found one without")
    points, log_p, log_q = draw(target, approximation, key, draws)
    return Weights(points, log_p, log_q)


def draw(
    target: Target, approximation: Any, key: np.ndarray, draws: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws with log p and log q (NaN where there is no density); see `weigh`."""
    program = target.program
    size = program.flat.size
    if draws is None:
        draws = int(np.clip(_MOST_BYTES // (8 * max(size, 1)), 1000, DRAWS))
    sizes = [int(np.prod(s.shape)) for s in program.sites.values()]
    block = _block(max([size, program.workspace(target.arrays), *sizes]))

    def one_block(data: Any, index: Any, params: Any, arrays: dict) -> Any:
        points = approximation.sample(params, jax.random.fold_in(wrap_key(data), index), block)
        unknown = jax.numpy.full_like(points[:, 0], np.nan)
        if approximation.target is not None:
            return points, unknown, unknown  # nobody compares the two forms' densities
        log_p = jax.vmap(Target(program, arrays).flat_log_density)(points)
        if approximation.log_density is None:
            return points, log_p, unknown
        return points, log_p, jax.vmap(lambda x: approximation.log_density(params, x))(points)

    import threadpoolctl

    pieces = []
    # (XLA calls a BLAS whose threads cost more than they give on small matrices.)
    with in_precision(target.dtype), threadpoolctl.threadpool_limits(1, user_api="blas"):
        # The data of a key must not be an array of another fit's dtype.
        data, fixed = np.asarray(key, np.uint32), (approximation.params, target.arrays)
        variant = (approximation.key, approximation.log_density is None, block)
        for index in range(-(-draws // block)):
            args = (data, np.uint32(index), *fixed)
            run = compiled(program, "weights", variant, one_block, args)
            pieces.append([np.asarray(x) for x in run(*args)])
    points, log_p, log_q = (np.concatenate(parts)[:draws] for parts in zip(*pieces, strict=True))
    return points, log_p, log_q


def _block(size: int) -> int:
    """Draws in a block: a power of two, fewer where a draw is large."""
    fit = int(np.clip(_BLOCK_BYTES // (8 * max(size, 1)), 1, 1024))
    return 2 ** (fit.bit_length() - 1)
