r"""Infinitely wide networks: their Gaussian process (NNGP) and neural tangent kernel (NTK).

A network with ``depth`` hidden layers, ``u_1 = s_w / sqrt(d) W x + s_b b`` and ``u_{l+1} = s_w /
sqrt(width) W phi(u_l) + s_b b`` (weights and biases standard normal), tends with growing width to a
Gaussian process with covariance ``K_{depth+1}``, and its gradient descent to regression with
``T_{depth+1}``:

    K_1 = s_w^2 x.y / d + s_b^2,     K_{l+1} = s_w^2 E[phi(u) phi(v)] + s_b^2
    T_1 = K_1,                       T_{l+1} = K_{l+1} + s_w^2 T_l E[phi'(u) phi'(v)]

with ``(u, v)`` normal with covariance ``K_l`` (Lee et al. 2018, equation 5; Jacot et al. 2018,
theorem 1). The expectations are closed forms:

    relu    E[phi phi] = sqrt(kxx kyy) J_1(c) / (2 pi),   E[phi' phi'] = J_0(c) / (2 pi)
    erf     E[phi phi] = 2/pi asin(2 kxy / sqrt((1 + 2 kxx)(1 + 2 kyy)))
            E[phi' phi'] = 4/pi / sqrt((1 + 2 kxx)(1 + 2 kyy) - 4 kxy^2)

(J as in the arc-cosine kernels; Williams 1998, equation 11.) Cost: O(depth) a pair of points.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.core import check_choice, check_count
from probkit.models.kernels._arccosine import angular, correlation
from probkit.models.kernels._kernel import Kernel, vector

_ACTIVATIONS = ("relu", "erf")


class NNGP(Kernel):
    """The Gaussian process of an infinitely wide network.

    Args:
        depth: number of hidden layers, at least 1.
        activation: ``"relu"`` or ``"erf"``.
        weight_variance: ``s_w^2``, that of the weights before division by the width.
        bias_variance: ``s_b^2``.

    Example:
        >>> from probkit.models import kernels
        >>> round(float(kernels.NNGP(depth=1, weight_variance=2.0, bias_variance=0.0)(1.0, 1.0)), 3)
        2.0
    """

    depth: int = eqx.field(static=True, default=2)
    activation: str = eqx.field(static=True, default="relu")
    weight_variance: Any = 1.0
    bias_variance: Any = 1.0

    def __check_init__(self) -> None:
        _check("kernels.NNGP", self.depth, self.activation)

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return _recursion(self, x, y)[0]


class NTK(Kernel):
    """The neural tangent kernel of an infinitely wide network; arguments as those of `NNGP`."""

    depth: int = eqx.field(static=True, default=2)
    activation: str = eqx.field(static=True, default="relu")
    weight_variance: Any = 1.0
    bias_variance: Any = 1.0

    def __check_init__(self) -> None:
        _check("kernels.NTK", self.depth, self.activation)

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return _recursion(self, x, y)[1]


def _check(where: str, depth: int, activation: str) -> None:
    check_count(f"{where}(depth)", depth)
    check_choice(f"{where}(activation)", activation, _ACTIVATIONS)


def _recursion(kernel: Any, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Covariance and tangent kernel of the last layer."""
    a, b = vector(x), vector(y)
    w, bias = kernel.weight_variance, kernel.bias_variance
    moments = relu_moments if kernel.activation == "relu" else erf_moments
    xx, xy, yy = (w * jnp.dot(*p) / len(a) + bias for p in ((a, a), (a, b), (b, b)))
    tangent = xy
    for _ in range(kernel.depth):
        both, slopes = moments(xx, xy, yy)
        own = [moments(v, v, v)[0] for v in (xx, yy)]
        xx, xy, yy = w * own[0] + bias, w * both + bias, w * own[1] + bias
        tangent = xy + w * tangent * slopes
    return xy, tangent


def relu_moments(xx: Array, xy: Array, yy: Array) -> tuple[Array, Array]:
    """``E[phi(u) phi(v)]`` and ``E[phi'(u) phi'(v)]`` for ``phi = max(0, .)``."""
    c, lengths = correlation(xx, xy, yy)
    return lengths * angular(1, c) / (2 * math.pi), angular(0, c) / (2 * math.pi)


def erf_moments(xx: Array, xy: Array, yy: Array) -> tuple[Array, Array]:
    """``E[phi(u) phi(v)]`` and ``E[phi'(u) phi'(v)]`` for ``phi = erf``."""
    square = (1.0 + 2.0 * xx) * (1.0 + 2.0 * yy)
    # (|2 kxy| < sqrt(square), strictly: the arc sine has a finite derivative.)
    both = 2.0 / math.pi * jnp.arcsin(2.0 * xy / jnp.sqrt(square))
    return both, 4.0 / math.pi / jnp.sqrt(square - 4.0 * xy * xy)
