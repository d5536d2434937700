r"""The mode check: does the approximation miss a mode of the posterior?

k-hat and ESS only see where the approximation q puts its draws: a mode that q has lost leaves them
good. This check looks elsewhere.

1. Maxima of log p are looked for where q and the maxima already found do not explain p
   (`_mode_search`).
2. Maxima closer than 1.5 Laplace standard deviations are one; points that are no maxima (a Newton
   decrement above 0.5) are dropped. With Hessian -A at the maximum m, the Laplace scale is A^{-1}.
3. At each maximum 200 draws of a multivariate t with 5 degrees of freedom, centre m and scale
   A^{-1}. Together with the N draws of q that judge the fit they are one sample of the mixture

       g(z) = (N q(z) + 200 sum_k t_k(z)) / (N + 200 K),    w(z) = p(z)/g(z),   v(z) = q(z)/g(z)

   whose weights w and v estimate p's and q's mass of any region (deterministic-mixture importance
   sampling, Owen and Zhou 2000, JASA 95).
4. z belongs to the maximum k with the largest ``p(m_k) (1 + |L_k'(z - m_k)|^2 / 5)^{-(5+d)/2}``.
   The figure is p's mass in the regions where q has under a fifth of p's; above 5 % the check
   fails. It is inconclusive where a single draw holds over a tenth of a region's mass. (A k-hat
   says less here: a lost mode itself may raise that of p/q, and regions have weights of different
   sizes, which together look like a heavy tail.)

Cost: that of the search, d + 1 gradients and 200 densities a maximum (32 at the most), in four
compiled programs; nothing in more than 500 dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.special import gammaln, logsumexp

from probkit.core import Approximation, Check, Target, Weights, judged, wrap_key
from probkit.core._programs import compiled
from probkit.core._trees import in_precision
from probkit.inference.vi._mode_search import search

_MODES, _DRAWS, _MOST_DIMS = 32, 200, 500
_MERGE, _DECREMENT, _FREEDOM = 1.5, 0.5, 5.0
_SHARE, _LOST, _SMALL, _ONE = 0.2, 0.05, 0.02, 0.1

_ADVICE = (
    "the posterior has modes that the approximation misses: several starts, a mixture or a flow "
    "(pk.VI(family='mixture'), pk.VI(family='flow')), or a tempered method; reweighting cannot "
    "find them"
)


@dataclass(frozen=True, eq=False)
class Modes:
    """Maxima of the posterior and how much of it lies around each.

    Attributes:
        points: shape ``(k, d)``, unconstrained.
        target_mass: share of the posterior in each one's region, shape ``(k,)``.
        fitted_mass: share of the approximation there, shape ``(k,)``.
        trusted: whether no mass of importance hangs on a single draw.
    """

    points: np.ndarray
    target_mass: np.ndarray
    fitted_mass: np.ndarray
    trusted: bool

    @property
    def missed(self) -> np.ndarray:
        """Which of them the approximation misses, shape ``(k,)``."""
        return self.fitted_mass < _SHARE * self.target_mass

    @property
    def lost(self) -> float:
        """The posterior's mass around those."""
        return float(np.sum(self.target_mass[self.missed]))


def mode_check(
    target: Target, approximation: Approximation, key: np.ndarray, weights: Weights
) -> list[Check]:
    """The entry ``modes`` of the verdict: the posterior's mass around modes that are missed.

    Args:
        target: what is approximated.
        approximation: an approximation with a density.
        key: raw key data.
        weights: draws of the approximation with both log densities.

    Example:
        >>> import probkit as pk
        >>> from probkit.core import weigh
        >>> target = pk.Target.from_log_density(lambda z: -0.5 * z["x"] ** 2, {"x": 0.0})
        >>> fit = pk.fit(target, method=pk.Laplace(), progress=False)
        >>> mode_check(target, fit.approximation, np.zeros(2, np.uint32), fit.weights)[0].ok
        True
    """
    size = target.program.flat.size
    if size > _MOST_DIMS:
        why = f"not judged: modes are looked for in {_MOST_DIMS} dimensions at most, here {size}"
        return [Check("modes", None, float("nan"), _LOST, "", why)]
    found = find_modes(target, approximation, key, weights)
    if found is None:
        why = "not judged: no start led to a maximum of the log density"
        return [Check("modes", None, float("nan"), _LOST, "", why)]
    count, missed = len(found.points), int(np.sum(found.missed))
    where = f"{missed} of {count} modes missed" if count > 1 else ""
    if not found.trusted:
        why = "inconclusive: single draws hold so much weight that no mode's mass can be told"
        return [Check("modes", None, found.lost, _LOST, where, why)]
    if found.lost > _LOST:
        where += f", one near {_place(target, found)}"
    return [judged("modes", found.lost, _LOST, "<", where, _ADVICE)]


def _place(target: Target, found: Modes) -> str:
    """The largest missed mode in words: its first coordinates, unconstrained."""
    worst = int(np.argmax(np.where(found.missed, found.target_mass, -1.0)))
    labels = target.program.flat.labels()[:3]
    pairs = zip(labels, found.points[worst], strict=False)
    more = ", ..." if target.program.flat.size > 3 else ""
    return ", ".join(f"{name} = {value:.3g}" for name, value in pairs) + more


def find_modes(
    target: Target, approximation: Approximation, key: np.ndarray, weights: Weights
) -> Modes | None:
    """Maxima of the log density with p's and q's mass around each; None if none was found."""
    import threadpoolctl

    found = _Maxima(target, approximation, key)
    if not np.isfinite(weights.log_weights).any():
        return None
    with in_precision(target.dtype), threadpoolctl.threadpool_limits(1, user_api="blas"):
        search(target, approximation, key, weights, found.add)
    if not len(found.points):
        return None
    return _masses(found.points, found.values, found.around, weights)


# -- 1. maxima ------------------------------------------------------------------------------------


class _Maxima:
    """The distinct maxima so far, best first: points, log densities, and what is around them."""

    def __init__(self, target: Target, approximation: Approximation, key: np.ndarray):
        self._explore = lambda points: _explore(target, approximation, key, points)
        self.points = np.zeros((0, target.program.flat.size), target.dtype)
        self.values = np.zeros(0)
        self.around: dict[str, np.ndarray] = {}

    def add(self, points: np.ndarray, values: np.ndarray) -> tuple[int, Any]:
        """Take the new ones; see `search`."""
        before = len(self.values)
        for start in range(0, len(points), _MODES):
            rows = self._new(points[start : start + _MODES], values[start : start + _MODES])
            if len(rows):
                self._take(
                    points[start : start + _MODES][rows], values[start : start + _MODES][rows]
                )
        return len(self.values) - before, self.log_gaussians

    def _new(self, points: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Rows more than 1.5 Laplace sds from all known maxima."""
        if not len(self.values):
            return np.arange(len(points))
        square = np.stack([_square(points, *at) for at in self._pairs()])
        return np.flatnonzero(square.min(axis=0) > _MERGE**2)

    def _take(self, points: np.ndarray, values: np.ndarray) -> None:
        fresh = self._explore(points)
        points = np.concatenate([self.points, points])
        values = np.concatenate([self.values, values])
        around = {
            k: np.concatenate([self.around[k], v]) if self.around else v for k, v in fresh.items()
        }
        order = np.argsort(-values, kind="stable")
        points, values, around = (
            points[order],
            values[order],
            {k: v[order] for k, v in around.items()},
        )
        keep = _distinct(points, values, around)[:_MODES]
        self.points, self.values = points[keep], values[keep]
        self.around = {k: v[keep] for k, v in around.items()}

    def _pairs(self) -> Any:
        return zip(self.points, self.around["white"], strict=True)

    def log_gaussians(self, z: np.ndarray) -> np.ndarray:
        """Log of the largest of the Gaussians at the maxima, each as high as p is there."""
        if not len(self.values):
            return np.full(len(z), -np.inf)
        heights = [
            v - 0.5 * _square(z, *at) for v, at in zip(self.values, self._pairs(), strict=True)
        ]
        return np.max(heights, axis=0)


# -- 2. around each maximum -----------------------------------------------------------------------


def _explore(
    target: Target, approximation: Approximation, key: np.ndarray, points: np.ndarray
) -> dict[str, np.ndarray]:
    """Laplace factors, Newton decrements and t draws with log p and log q at each maximum."""
    program = target.program
    assert approximation.log_density is not None
    log_q = approximation.log_density

    def one(key: Array, x: Array, params: Any, arrays: dict) -> dict[str, Array]:
        fn = Target(program, arrays).flat_log_density
        slope, bend = jax.grad(fn)(x), jax.hessian(fn)(x)
        values, vectors = jnp.linalg.eigh(-jnp.where(jnp.isfinite(bend), bend, 0.0))
        floor = 1e-6 * jnp.max(jnp.abs(values)) + jnp.finfo(x.dtype).tiny
        roots = jnp.sqrt(jnp.maximum(jnp.abs(values), floor))
        decrement = 0.5 * jnp.sum(jnp.square((vectors.T @ slope) / roots))
        noise = jax.random.normal(key, (_DRAWS, x.shape[0] + int(_FREEDOM)), x.dtype)
        normal, rest = noise[:, : x.shape[0]], noise[:, x.shape[0] :]
        mixing = jnp.mean(jnp.square(rest), axis=1, keepdims=True)
        draws = x + (normal / jnp.sqrt(mixing) / roots) @ vectors.T
        return {
            "white": vectors * roots,  # (z - x) @ white has the identity as Laplace covariance
            "decrement": decrement,
            "draws": draws,
            "log_p": jax.vmap(fn)(draws),
            "log_q": jax.vmap(lambda z: log_q(params, z))(draws),
        }

    def all_of(data: Any, points: Array, params: Any, arrays: dict) -> Any:
        keys = jax.random.split(jax.random.fold_in(wrap_key(data), 1), _MODES)
        # One after the other: the Hessians of all at once would be the largest arrays of the fit.
        return jax.lax.map(lambda row: one(row[0], row[1], params, arrays), (keys, points))

    filled = np.broadcast_to(points[:1], (_MODES, points.shape[1])).copy()
    filled[: len(points)] = points
    args = (np.asarray(key, np.uint32), filled, approximation.params, target.arrays)
    run = compiled(program, "modes", approximation.key, all_of, args)
    return {k: np.asarray(v, np.float64)[: len(points)] for k, v in run(*args).items()}


def _distinct(points: np.ndarray, values: np.ndarray, around: dict[str, np.ndarray]) -> list[int]:
    """Maxima that are maxima, and more than 1.5 Laplace sds from every better one."""
    kept: list[int] = []
    for i in range(len(points)):
        if not around["decrement"][i] < _DECREMENT:
            continue
        gaps = [
            min(np.linalg.norm((points[i] - points[j]) @ around["white"][n]) for n in (i, j))
            for j in kept
        ]
        if all(gap > _MERGE for gap in gaps):
            kept.append(i)
    return kept


# -- 3. masses ----------------------------------------------------------------------------------


def _masses(
    points: np.ndarray, values: np.ndarray, around: dict[str, np.ndarray], weights: Weights
) -> Modes:
    """p's and q's mass of each maximum's region, from one mixture sample."""
    count, size = points.shape
    z = np.concatenate([weights.points, around["draws"].reshape(-1, size)]).astype(np.float64)
    log_p = np.concatenate([weights.log_p, around["log_p"].reshape(-1)]).astype(np.float64)
    log_q = np.concatenate([weights.log_q, around["log_q"].reshape(-1)]).astype(np.float64)
    # Where a density is not a number there is no mass that could be told.
    log_p, log_q = (np.where(np.isfinite(x), x, -np.inf) for x in (log_p, log_q))
    square = np.stack([_square(z, m, w) for m, w in zip(points, around["white"], strict=True)])
    region = np.argmax(values[:, None] - _power(size) * np.log1p(square / _FREEDOM), axis=0)
    log_t = _log_t(square, around["white"])
    rows = len(weights.points)
    parts = np.concatenate([log_q[None] + np.log(rows), log_t + np.log(_DRAWS)])
    mixture = logsumexp(parts, axis=0)
    share_p = np.exp(log_p - mixture - logsumexp(log_p - mixture))
    share_q = np.exp(log_q - mixture)
    mass_p = np.bincount(region, share_p, minlength=count)
    mass_q = np.bincount(region, share_q, minlength=count)
    top = np.zeros(count)
    np.maximum.at(top, region, share_p)
    trusted = bool(np.all((top < _ONE * mass_p)[mass_p > _SMALL]))
    return Modes(points, mass_p, mass_q / mass_q.sum(), trusted)


def _power(size: int) -> float:
    return 0.5 * (_FREEDOM + size)


def _square(z: np.ndarray, centre: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Squared Laplace distance of rows of ``z`` from a maximum."""
    return np.sum(np.square((z - centre) @ white), axis=1)


def _log_t(square: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Log density of each maximum's t, shape ``(k, n)``, at squared distances ``(k, n)``."""
    size = white.shape[1]
    top = _power(size)
    constant = gammaln(top) - gammaln(0.5 * _FREEDOM) - 0.5 * size * np.log(_FREEDOM * np.pi)
    # The whitening factor is a rotation with scaled columns.
    log_det = np.sum(np.log(np.linalg.norm(white, axis=1)), axis=1)
    return constant + log_det[:, None] - top * np.log1p(square / _FREEDOM)
