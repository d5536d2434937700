r"""Arc-cosine kernels of every order: networks with one infinite layer of units ``max(0, u)^n``.

    k_n(x, y) = v / pi |x|^n |y|^n J_n(c),    c = <x, y> / (|x| |y|),    <x, y> = w x.y + b

(Cho and Saul 2009, section 2.1.) With ``theta = arccos c``, ``J_n = P_n(c) (pi - theta) + Q_n(c)
sin theta`` for polynomials with

    P_n' = n^2 P_{n-1},    P_n(1) = (2n - 1)!!,
    Q_n' (1 - c^2) - c Q_n = n^2 Q_{n-1} (1 - c^2) - P_n

from ``P_0 = 1, Q_0 = 0``: since ``dJ_n / dc = n^2 J_{n-1}`` (Price's theorem for the Gaussian
expectation that J_n is). That identity is also the derivative used here, because the one of arccos
is infinite where two points coincide.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike
from numpy.polynomial import polynomial as poly

from probkit.core import check_count
from probkit.models.kernels._kernel import Kernel, vector


class ArcCosine(Kernel):
    """The arc-cosine kernel of any order (0: steps, 1: ReLU, 2: squared ReLU, ...).

    Args:
        order: the power of the units, 0 or more.
        variance: the factor ``v``.
        weight_variance: the factor ``w`` of the inner product.
        bias_variance: the constant ``b`` in it.

    Example:
        >>> from probkit.models import kernels
        >>> round(float(kernels.ArcCosine(order=1, bias_variance=0.0)(2.0, 2.0)), 3)
        4.0
    """

    order: int = eqx.field(static=True, default=1)
    variance: Any = 1.0
    weight_variance: Any = 1.0
    bias_variance: Any = 1.0

    def __check_init__(self) -> None:
        check_count("kernels.ArcCosine(order)", self.order, least=0)

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        a, b = vector(x), vector(y)
        xx, xy, yy = (self._inner(*p) for p in ((a, a), (a, b), (b, b)))
        c, lengths = correlation(xx, xy, yy)
        return self.variance / math.pi * lengths**self.order * angular(self.order, c)

    def _inner(self, x: Array, y: Array) -> Array:
        return self.weight_variance * jnp.dot(x, y) + self.bias_variance


def correlation(xx: Array, xy: Array, yy: Array) -> tuple[Array, Array]:
    """``xy / sqrt(xx yy)`` in [-1, 1] (0 where a variance is 0), and ``sqrt(xx yy)``.

    Within its rounding error of 1 it is 1: arccos would turn an error of eps into one of sqrt(eps).
    Its derivatives are those of the quotient there too: the slopes of a process need them where
    points coincide.
    """
    product = xx * yy
    some = product > 0
    lengths = jnp.sqrt(jnp.where(some, product, 1.0))
    c = jnp.where(some, xy / lengths, 0.0)
    inside = jnp.where(c > 1.0 - 8.0 * jnp.finfo(c.dtype).eps, 1.0, jnp.maximum(c, -1.0))
    c = c + jax.lax.stop_gradient(inside - c)
    return c, jnp.where(some, lengths, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def angular(order: int, c: Array) -> Array:
    """``J_n(c)``; ``J_n(1) = pi (2n - 1)!!`` and ``J_n(-1) = 0``."""
    p, q = _polynomials(order)
    sine = jnp.sqrt(jnp.maximum(1.0 - c * c, 0.0))
    return jnp.polyval(_dense(p), c) * (math.pi - jnp.arccos(c)) + jnp.polyval(_dense(q), c) * sine


@angular.defjvp
def _angular_jvp(order: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    value = angular(order, c)
    if order > 0:
        return value, order**2 * angular(order - 1, c) * dc
    # d (pi - arccos c) / dc = 1 / sin theta is infinite at c = 1, where two points coincide; there
    # no parameter moves c, and the derivative is taken as zero.
    square = 1.0 - c * c
    away = square > 0
    return value, jnp.where(away, 1.0 / jnp.sqrt(jnp.where(away, square, 1.0)), 0.0) * dc


def _dense(coefficients: np.ndarray) -> Array:
    """Highest power first, as polyval wants them."""
    return jnp.asarray(coefficients[::-1].copy(), jnp.result_type(float))


@functools.cache
def _polynomials(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of ``P_n`` and ``Q_n``, lowest power first."""
    if order == 0:
        return np.array([1.0]), np.array([0.0])
    p_before, q_before = _polynomials(order - 1)
    p = poly.polyint(order**2 * p_before)
    p[0] += math.prod(range(1, 2 * order, 2)) - p.sum()
    rest = np.zeros(order + 3)
    known = poly.polysub(poly.polymul(order**2 * q_before, [1.0, 0.0, -1.0]), p)
    rest[: len(known)] = known
    # Coefficients of c^m: (m + 1) q_{m+1} - m q_{m-1} = r_m, from the highest power down.
    q = np.zeros(order + 4)
    for m in range(order + 1, 0, -1):
        q[m - 1] = ((m + 1) * q[m + 1] - rest[m]) / m
    return p, q[:order]
