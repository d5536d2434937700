r"""Isotropic kernels as functions of the squared distance, smooth at distance zero.

With ``s = sum_d ((x_d - y_d) / l_d)^2``:

    RBF         k = v exp(-s / 2)
    Matern-nu   k = v h_nu(2 nu s),     h_nu(t) = 2^(1-nu) / Gamma(nu) t^(nu/2) K_nu(sqrt t)

(Rasmussen and Williams 2006, equations 4.9 and 4.14.) For half-integer ``nu = p + 1/2``, ``h`` is
``exp(-u)`` times a polynomial in ``u = sqrt t`` (their 4.16). Its derivative obeys

    d h_nu / dt = -h_{nu-1}(t) / (4 (nu - 1)),

since ``(u^nu K_nu(u))' = -u^nu K_{nu-1}(u)``; it is used in place of automatic differentiation
through the square root, whose derivatives at zero are infinite or, with a guard, silently wrong
from the second order on. Derivative observations need these.
"""

from __future__ import annotations

import abc
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.models.kernels._distance import squared_distance, squared_distances
from probkit.models.kernels._kernel import Kernel, pairs


class Radial(Kernel):
    """A kernel that is a function of the scaled squared distance ``s``. Abstract.

    Attributes:
        lengthscale: in the inputs' units: one number, or one a coordinate.
        variance: of the function's values.
    """

    lengthscale: Any = 1.0
    variance: Any = 1.0

    @abc.abstractmethod
    def profile(self, s: Array) -> Array:
        """The correlation at scaled squared distances ``s`` of any shape."""

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.variance * self.profile(squared_distance(x, y, self.lengthscale))


@pairs.register
def _of_radial(kernel: Radial, a: Array, b: Array) -> Array:
    return kernel.variance * kernel.profile(squared_distances(a, b, kernel.lengthscale))


class RBF(Radial):
    """The squared exponential kernel, ``variance * exp(-s / 2)``: infinitely smooth functions.

    Args:
        lengthscale: in the inputs' units: one number, or one a coordinate.
        variance: of the function's values.

    Example:
        >>> from probkit.models import kernels
        >>> float(kernels.RBF(variance=4.0)(0.0, 0.0))
        4.0
    """

    def profile(self, s: Array) -> Array:
        return jnp.exp(-0.5 * s)


class Matern12(Radial):
    """The exponential (Ornstein-Uhlenbeck) kernel: continuous, nowhere differentiable functions.

    Args:
        lengthscale: in the inputs' units: one number, or one a coordinate.
        variance: of the function's values.
    """

    def profile(self, s: Array) -> Array:
        return half_integer(0, s)


class Matern32(Radial):
    """The Matern kernel with nu = 3/2: functions with one derivative. See `Matern12`."""

    def profile(self, s: Array) -> Array:
        return half_integer(1, 3.0 * s)


class Matern52(Radial):
    """The Matern kernel with nu = 5/2: functions with two derivatives. See `Matern12`."""

    def profile(self, s: Array) -> Array:
        return half_integer(2, 5.0 * s)


class Matern92(Radial):
    """The Matern kernel with nu = 9/2: functions with four derivatives. See `Matern12`."""

    def profile(self, s: Array) -> Array:
        return half_integer(4, 9.0 * s)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def half_integer(p: int, t: Array) -> Array:
    """``h_nu(t)`` for ``nu = p + 1/2`` and ``t = 2 nu s >= 0``; ``h(0) = 1``."""
    u = jnp.sqrt(t)
    total = jnp.zeros_like(u)
    for power in range(p, -1, -1):
        total = total * u + _coefficient(p, power)
    return total * jnp.exp(-u)


@half_integer.defjvp
def _half_integer_jvp(p: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    if p > 0:
        # 4 (nu - 1) with nu = p + 1/2
        return half_integer(p, t), -half_integer(p - 1, t) / (4.0 * p - 2.0) * dt
    # The exponential kernel has a cusp at zero. There dt is zero for every hyperparameter, and the
    # derivative taken as zero; elsewhere d exp(-sqrt t) / dt = -exp(-sqrt t) / (2 sqrt t).
    away = t > 0
    u = jnp.sqrt(jnp.where(away, t, 1.0))
    slope = jnp.where(away, -jnp.exp(-u) / (2.0 * u), 0.0)
    return half_integer(0, t), slope * dt


def _coefficient(p: int, power: int) -> float:
    """Of ``u ** power``: ``p!/(2p)! (p+i)! / (i! (p-i)!) 2^(p-i)`` with ``i = p - power``."""
    i = p - power
    ratio = math.factorial(p) / math.factorial(2 * p)
    ratio *= math.factorial(p + i) / (math.factorial(i) * math.factorial(p - i))
    return ratio * 2.0 ** (p - i)
