r"""The search for maxima of a posterior, away from where an approximation already is.

Far from all modes the widest mode's tail is the whole density, so that climbs from random starts
end there: in 10 dimensions the basin of a mode three times as narrow may be met by one start in a
thousand. Log densities are cheaper than climbs, and tell which starts are worth one:

1. A pool of points: draws of the prior, some of them drawn in towards their mean, and draws of q
   moved away from its mean by factors of 1 to 30; log p and log q at all of them.
2. What is known at a point: the larger one of q, scaled to p, and of the Gaussians at the maxima
   found so far, ``p(m_k) exp(-|L_k'(z - m_k)|^2 / 2)``. A point with p above e^2 times that is
   unexplained: it lies in the basin of an unknown maximum, or q's tails are too thin there.
3. Rounds of climbs (`_climb`): in the first one half of the starts are any points of the pool, and
   half are unexplained, of which half are those with the largest log p less what is known and half
   are any; later ones have only the latter two. Each round's new maxima are known to the next. The
   search ends after a round that finds none (the first does not count), or after five.

Cost: 16,000 densities p and q (2,000 in more than 100 dimensions), and some 60 gradients for each
of 64 to 128 starts a round, two rounds where there is nothing to find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Target, Weights, wrap_key
from probkit.core._programs import compiled
from probkit.core._weighing import blocks
from probkit.inference.vi._climb import climb

_POOL, _SMALL, _ROUNDS, _PIECE = 8192, 100, 5, 512
_FEWEST, _MOST = 64, 128
_UNEXPLAINED, _SAME = 2.0, 0.02
_WIDER = 2**21  # blocks of draws are numbered from here: keys of their own


@dataclass(frozen=True, eq=False)
class Pool:
    """Points with both log densities, those of q scaled to p."""

    points: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray


def pool_of(
    target: Target, approximation: Approximation, key: np.ndarray, weights: Weights
) -> Pool:
    """Draws of the prior, and draws of q moved away from its mean (module text, 1)."""
    rng = np.random.default_rng([*np.asarray(key).ravel().tolist(), 1])
    finite = weights.points[np.isfinite(weights.log_p)]
    centre = finite.mean(axis=0, dtype=np.float64).astype(target.dtype)
    count = _POOL if len(centre) <= _SMALL else _POOL // 8
    factors = np.exp(rng.uniform(0.0, np.log(30.0), count)).astype(target.dtype)
    one = np.ones(1, target.dtype)
    moved = blocks(target, approximation, key, centre, one, factors, _WIDER, count)
    drawn = _prior(target, approximation, key, rng.uniform(0.3, 1.0, count).astype(target.dtype))
    points, log_p = (np.concatenate([drawn[i], moved[i]]) for i in (0, 1))
    log_q = np.concatenate([drawn[2], moved[2][:, 0]]).astype(np.float64)
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf).astype(np.float64)
    return Pool(points, log_p, np.where(np.isfinite(log_q), log_q, -np.inf) + _level(weights))


def _level(weights: Weights) -> float:
    """What is to be added to log q to compare it with log p: the log evidence as q sees it."""
    ratio = weights.log_weights
    return float(np.median(ratio[np.isfinite(ratio)]))


def _prior(
    target: Target, approximation: Approximation, key: np.ndarray, shrink: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws of the prior with log p and log q; every other one is drawn in towards their mean."""
    program, log_q = target.program, approximation.log_density
    assert log_q is not None

    def all_of(data: Any, shrink: Any, params: Any, arrays: dict) -> Any:
        keys = jax.random.split(jax.random.fold_in(wrap_key(data), 2), len(shrink))
        points = jax.vmap(lambda k: program.flat.ravel(program.prior_point(k, arrays)))(keys)
        # A prior draw may be far outside of what the arithmetic bears.
        points = jnp.where(jnp.isfinite(points), points, 0.0).astype(target.dtype)
        centre = jnp.median(points, axis=0)
        shrink = jnp.where(jnp.arange(len(shrink)) % 2 == 0, shrink, 1.0)[:, None]
        points = centre + shrink * (points - centre)
        fn = Target(program, arrays).flat_log_density
        both = lambda z: (fn(z), log_q(params, z))  # noqa: E731
        return points, *jax.lax.map(both, points, batch_size=_PIECE)

    args = (np.asarray(key, np.uint32), shrink, approximation.params, target.arrays)
    run = compiled(program, "mode_pool", approximation.key, all_of, args)
    points, log_p, log_q_at = (np.asarray(x) for x in run(*args))
    return points, log_p, log_q_at


def search(
    target: Target,
    approximation: Approximation,
    key: np.ndarray,
    weights: Weights,
    known: Callable[[np.ndarray, np.ndarray], tuple[int, Callable[[np.ndarray], np.ndarray]]],
) -> None:
    """Look for maxima in rounds, and hand each round's to ``known``.

    Args:
        target, approximation, weights: as in `mode_check`.
        key: raw key data.
        known: takes the ends of the climbs, shape ``(n, d)``, and their log densities; returns how
            many maxima they added, and a function of points ``(n, d)``: the log of what the
            Gaussians at all maxima so far say.
    """
    pool = pool_of(target, approximation, key, weights)
    rng = np.random.default_rng([*np.asarray(key).ravel().tolist(), 2])
    size = pool.points.shape[1]
    count = int(np.clip(16 * size, _FEWEST, _MOST))
    finite = weights.points[np.isfinite(weights.log_p)]
    scale = finite.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0).astype(target.dtype)
    explained = pool.log_q
    usable = np.flatnonzero(np.isfinite(pool.log_p))
    for number in range(_ROUNDS if len(usable) else 0):
        rows = _chosen(rng, pool.log_p[usable] - explained[usable], count, number == 0)
        ends = _climbed(target, pool.points[usable[rows]], scale)
        added, gaussians = known(*_thinned(*ends, scale))
        if number and not added:
            break
        explained = np.maximum(explained, gaussians(pool.points))


def _chosen(rng: np.random.Generator, gain: np.ndarray, count: int, first: bool) -> np.ndarray:
    """Rows of the pool to climb from (module text, 3)."""
    gain = np.where(np.isnan(gain), -np.inf, gain)
    half = count // 2
    order = np.argsort(-gain)
    unknown = order[: max(int(np.sum(gain > _UNEXPLAINED)), half)]
    fresh = np.append(order[: half // 2], rng.choice(unknown, half - half // 2))
    rest = (
        rng.integers(len(gain), size=count - half) if first else rng.choice(unknown, count - half)
    )
    return np.append(fresh, rest)


def _climbed(
    target: Target, starts: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the climbs from the starts and their log densities, where they are finite."""
    program = target.program

    def all_of(starts: Array, scale: Array, arrays: dict) -> Any:
        return climb(Target(program, arrays).flat_log_density, starts, scale)

    args = (starts.astype(target.dtype), scale, target.arrays)
    points, values, _ = (
        np.asarray(x) for x in compiled(program, "climb", len(starts), all_of, args)(*args)
    )
    good = np.isfinite(values) & np.isfinite(points).all(axis=1)
    return points[good], values[good].astype(np.float64)


def _thinned(
    points: np.ndarray, values: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best first, near copies left out."""
    kept: list[int] = []
    for i in np.argsort(-values):
        gaps = np.abs(points[kept] - points[i]) / scale
        if not np.any(np.all(gaps < _SAME, axis=1)):
            kept.append(int(i))
    return points[kept], values[kept]
