r"""Squared distances, of two points and of all pairs of two sets.

    s_ij = |u_i - w_j|^2,    u = a / l,   w = b / l

The values are sums of squared differences, so that equal points are at distance zero to the last
bit (the expanded square loses half of the digits there, and a Matern kernel shows it). The
derivative is taken from the expanded square,

    ds_ij = 2 u_i . du_i + 2 w_j . dw_j - 2 du_i . w_j - 2 u_i . dw_j,

whose transpose is a handful of matrix products: O(n m d) for all length scales together, without an
array of ``n x m x d``. What cancels in it is relative to the whole matrix.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.models.kernels._kernel import vector

_BLOCK = 16  # coordinates that one pass over the pairs adds up


def squared_distance(x: ArrayLike, y: ArrayLike, lengthscale: Any) -> Array:
    """``sum_d ((x_d - y_d) / l_d)^2`` of two points; one length scale, or one a coordinate."""
    gap = vector(x) - vector(y)
    _check(lengthscale, len(gap))
    if jnp.ndim(lengthscale) == 0:
        # The distance itself is then a constant to the length scale's derivative: in d dimensions
        # that is d times less work on the way back.
        return jnp.sum(gap * gap) / lengthscale**2
    gap = gap / lengthscale
    return jnp.sum(gap * gap)


def squared_distances(a: Array, b: Array, lengthscale: Any) -> Array:
    """`squared_distance` of all pairs: ``(n, m)`` of points ``(n,)`` or ``(n, d)``."""
    a, b = jax.vmap(vector)(a), jax.vmap(vector)(b)
    _check(lengthscale, a.shape[1])
    if jnp.ndim(lengthscale) == 0:
        return between(a, b) / lengthscale**2
    return between(a / lengthscale, b / lengthscale)


def _check(lengthscale: Any, d: int) -> None:
    """Length scales of another number would be broadcast against the coordinates, unnoticed."""
    shape = jnp.shape(lengthscale)
    if shape not in ((), (1,), (d,)):
        raise ValueError(
            f"expected one length scale, or one for each of the points' {d} coordinates, found "
            f"shape {shape}; list every input in at=[...], or give {d} of them"
        )


@jax.custom_jvp
def between(u: Array, w: Array) -> Array:
    """``|u_i - w_j|^2``, shape ``(n, m)``, of ``(n, d)`` and ``(m, d)``."""
    d = u.shape[1]
    if d <= _BLOCK:
        return _added(u, w.T)
    count = -(-d // _BLOCK)
    wide = ((0, 0), (0, count * _BLOCK - d))
    blocks = [jnp.moveaxis(jnp.pad(x, wide).reshape(len(x), count, _BLOCK), 1, 0) for x in (u, w)]
    start = jnp.zeros((len(u), len(w)), jnp.result_type(u, w))
    add = lambda total, pair: (total + _added(pair[0], pair[1].T), None)  # noqa: E731
    return jax.lax.scan(add, start, tuple(blocks))[0]


def _added(u: Array, w: Array) -> Array:
    """The sum over a few coordinates, written out: one pass over the pairs."""
    total = jnp.zeros((len(u), w.shape[1]), jnp.result_type(u, w))
    for k in range(u.shape[1]):
        total = total + (u[:, k, None] - w[k]) ** 2
    return total


@between.defjvp
def _between_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (u, w), (du, dw) = primals, tangents
    own = jnp.sum(u * du, axis=1)[:, None] + jnp.sum(w * dw, axis=1)
    return between(u, w), 2.0 * (own - du @ w.T - u @ dw.T)
