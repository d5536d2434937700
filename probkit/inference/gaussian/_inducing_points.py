r"""Where inducing points lie: at rows of the data, spread by k-means or by greedy variance.

**k-means**: seeds by k-means++ (each next row drawn with probability proportional to its squared
distance from those chosen; Arthur and Vassilvitskii 2007), some rounds of Lloyd's, on columns
divided by their standard deviations; then each centre becomes the nearest row that is not taken, so
that columns that hold codes (the output of a multi-output kernel, say) go on holding codes. Cost:
O(n m d) a round.

**Greedy variance**: rows one by one, each where the variance given those before,
``k(x, x) - k_Z(x)'K_ZZ^-1 k_Z(x)``, is largest: the pivots of a partial Cholesky factor of the
kernel matrix at given hyperparameters (Burt, Rasmussen and van der Wilk 2020, section 4.2.1). Cost:
O(n m^2), memory O(n m).

Both look at `MOST` rows at the most, drawn at random.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import check_choice, check_count
from probkit.inference.gaussian._problem import Problem

MOST = 20_000
DEFAULT = 128
CHOICES = ("kmeans", "greedy")
_ROUNDS = 8


def check_points(name: str, inducing: Any) -> tuple[int | None, np.ndarray | None]:
    """A number of inducing points, or the points themselves, from what the user gave.

    Raises:
        TypeError, ValueError: neither, or points that repeat or are not finite.
    """
    if inducing is None:
        return None, None
    if np.ndim(inducing) == 0:
        return check_count(f"{name}(inducing)", inducing), None
    points = np.asarray(inducing, np.float64)
    if points.ndim > 2 or not points.size:
        raise ValueError(
            f"{name}(inducing): expected points of shape (m,) or (m, columns), one row a point, "
            f"found shape {points.shape}"
        )
    if not np.all(np.isfinite(points)):
        raise ValueError(f"{name}(inducing): expected finite points, found NaN or infinity")
    distinct = len(np.unique(points.reshape(len(points), -1), axis=0))
    if distinct < len(points):
        raise ValueError(
            f"{name}(inducing): {len(points) - distinct} of {len(points)} points repeat others, "
            "which makes their covariance singular; pass each point once (numpy.unique, axis=0)"
        )
    return len(points), points


def check_fit(name: str, problem: Problem, count: int | None, points: Any) -> int:
    """The number of inducing points for these data.

    Raises:
        ValueError: there are more points than rows, or the points have other columns.
    """
    latent = problem.latent
    have = jax.eval_shape(lambda a: latent.points(a), problem.arrays).shape
    if points is not None and points.shape[1:] != have[1:]:
        raise ValueError(
            f"{name}(inducing): the points have shape {points.shape}, and those of site "
            f"{latent.name!r} have shape {have}; expected {('m', *have[1:])}: the columns that "
            "pk.gp(at=) names, in that order"
        )
    if points is None and count is not None and count > latent.size:
        raise ValueError(
            f"{name}(inducing): expected at most {latent.size} points, the rows of site "
            f"{latent.name!r}, found {count}; with so few rows pk.CVI() needs no inducing points"
        )
    return min(latent.size, DEFAULT) if count is None else count


def some_rows(key: Array, n: int, most: int = MOST) -> Array:
    """All row numbers, or ``most`` of them drawn without replacement."""
    if n <= most:
        return jnp.arange(n)
    return jax.random.choice(key, n, (most,), replace=False)


def kmeans(key: Array, x: Array, count: int) -> Array:
    """Numbers of ``count`` different rows of ``x``, ``(n,)`` or ``(n, d)``, spread over it."""
    x = x.reshape(x.shape[0], -1)
    x = x - jnp.mean(x, axis=0)
    sd = jnp.std(x, axis=0)
    x = x / jnp.where(sd > 0, sd, 1.0)
    first_key, seed_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, x.shape[0])
    keys = jax.random.split(seed_key, count)

    def seed(near: Array, key: Array) -> tuple[Array, Array]:
        # (Where all rows are at a centre already, any will do.)
        chosen = jax.random.categorical(key, jnp.log(near + 1e-30))
        return jnp.minimum(near, _from(x, x[chosen])), chosen

    _, rest = jax.lax.scan(seed, _from(x, x[first]), keys[1:])
    centres = x[jnp.concatenate([first[None], rest])]

    def round_(_: Any, centres: Array) -> Array:
        gap = jnp.sum(centres**2, axis=1) - 2.0 * x @ centres.T
        owner = jnp.argmin(gap, axis=1)
        total = jnp.zeros_like(centres).at[owner].add(x)
        many = jnp.zeros(count, x.dtype).at[owner].add(1.0)[:, None]
        return jnp.where(many > 0, total / jnp.maximum(many, 1.0), centres)

    centres = jax.lax.fori_loop(0, _ROUNDS, round_, centres)

    def snap(free: Array, centre: Array) -> tuple[Array, Array]:
        row = jnp.argmin(jnp.where(free, _from(x, centre), jnp.inf))
        return free.at[row].set(False), row

    return jax.lax.scan(snap, jnp.ones(x.shape[0], bool), centres)[1]


def _from(x: Array, centre: Array) -> Array:
    return jnp.sum((x - centre) ** 2, axis=1)


def greedy(problem: Problem, theta: Array, x: Array, count: int) -> Array:
    """Numbers of ``count`` different rows of ``x``, each where the variance left is largest."""
    latent, arrays = problem.latent, problem.arrays
    left = latent.variance(theta, x, arrays)
    floor = 10.0 * jnp.finfo(left.dtype).eps * jnp.max(left)

    def pick(carry: tuple, i: Array) -> tuple[tuple, Array]:
        left, columns = carry
        row = jnp.argmax(left)
        pivot = jnp.maximum(left[row], floor)
        own = latent.cross_covariance(theta, x[row][None], x, arrays)[0]
        column = (own - columns.T @ columns[:, row]) / jnp.sqrt(pivot)
        # A row that is taken is never taken again, even where nothing is left.
        left = jnp.where(jnp.isneginf(left), left, jnp.maximum(left - column**2, 0.0))
        return (left.at[row].set(-jnp.inf), columns.at[i].set(column)), row

    start = (left, jnp.zeros((count, x.shape[0]), left.dtype))
    return jax.lax.scan(pick, start, jnp.arange(count))[1]


def check_choose(name: str, choose: str) -> str:
    """The way points are chosen, checked."""
    check_choice(f"{name}(choose)", choose, CHOICES)
    return choose
