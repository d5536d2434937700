r"""The flow family: shape of each margin, affine couplings, then an affine map.

    w = m + L c(h(e)),    h(e) = sinh(t asinh(e) - k),    c affine couplings (`probkit.flows`)

``h`` (Jones and Pewsey 2009) gives every base coordinate a skewness ``k`` and a tail weight ``t``,
the couplings bend, and the affine map is the Gaussian that the flow starts as: all is the identity
at first. The score goes along with the draw, without an inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.flows import AffineCoupling
from probkit.inference.vi._family import (
    Family,
    Params,
    Pushed,
    draw_by_push,
    normal_log_density,
)

_DENSE = 64


@dataclass(frozen=True)
class Flow(Family):
    """An affine coupling flow that starts as the Gaussian of its frame.

    Attributes:
        layers: coupling layers.
        width: hidden units of each layer's net.
    """

    layers: int = 4
    width: int = 32
    dense: bool = True

    @property
    def _couplings(self) -> AffineCoupling:
        return AffineCoupling(self.layers, self.width)

    def init(self, key: Array, start: Params) -> Params:
        w = start["w"]
        size = w.shape[0]
        params = {
            "couplings": self._couplings.init(key, size, w.dtype),
            "skew": jnp.zeros_like(w),
            "tail": jnp.zeros_like(w),
            "loc": w,
            "log_scale": jnp.zeros_like(w),
        }
        if size <= _DENSE:
            params["lower"] = jnp.zeros((size, size), w.dtype)
        return params

    def noise(self, key: Array, n: int, size: int, dtype: Any) -> Array:
        return jax.random.normal(key, (n, size), dtype)

    def push(self, params: Params, noise: Array) -> Pushed:
        x, log_slope, bent = _bend(params, noise)
        g = jax.lax.stop_gradient((-noise - bent) * jnp.exp(-log_slope))
        y, log_det, g = self._couplings.forward_with_score(params["couplings"], x, g)
        log_q = normal_log_density(noise) - jnp.sum(log_slope) - log_det
        log_q = log_q - jnp.sum(params["log_scale"])
        held = jax.lax.stop_gradient(params)
        if "lower" in params:
            g = jax.scipy.linalg.solve_triangular(_factor(held), g, trans=1, lower=True)
        else:
            g = g * jnp.exp(-held["log_scale"])
        return Pushed(params["loc"] + _times(params, y), log_q, jnp.ones((), noise.dtype), g)

    def log_density(self, params: Params, w: Array) -> Array:
        gap = w - params["loc"]
        if "lower" in params:
            y = jax.scipy.linalg.solve_triangular(_factor(params), gap, lower=True)
        else:
            y = gap * jnp.exp(-params["log_scale"])
        x, log_det = self._couplings.inverse(params["couplings"], y)
        noise = _unbend(params, x)
        log_slope = _bend(params, noise)[1]
        total = normal_log_density(noise) - jnp.sum(log_slope) - log_det
        return total - jnp.sum(params["log_scale"])

    def draw(self, params: Params, key: Array, n: int, size: int) -> Array:
        return draw_by_push(self, params, key, n, size)

    def settle(self, new: Params, old: Params, step: Params, prox: bool) -> Params:
        return new


def _bend(params: Params, e: Array) -> tuple[Array, Array, Array]:
    """``h(e)``, ``log h'(e)`` and its derivative, entry by entry."""
    t, root = jnp.exp(params["tail"]), jnp.sqrt(1.0 + e**2)
    grown = jnp.exp(t * _asinh(e, root) - params["skew"])
    sinh, cosh = 0.5 * (grown - 1.0 / grown), 0.5 * (grown + 1.0 / grown)
    log_slope = params["tail"] + jnp.log(cosh / root)
    return sinh, log_slope, t * sinh / (cosh * root) - e / root**2


def _unbend(params: Params, x: Array) -> Array:
    """The inverse of ``h``, entry by entry."""
    root = jnp.sqrt(1.0 + x**2)
    grown = jnp.exp((_asinh(x, root) + params["skew"]) * jnp.exp(-params["tail"]))
    return 0.5 * (grown - 1.0 / grown)


def _asinh(x: Array, root: Array) -> Array:
    # Written out: jnp.arcsinh and its like take several times as long to compile.
    return jnp.sign(x) * jnp.log(jnp.abs(x) + root)


def _factor(params: Params) -> Array:
    return jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["log_scale"]))


def _times(params: Params, y: Array) -> Array:
    if "lower" in params:
        return _factor(params) @ y
    return jnp.exp(params["log_scale"]) * y
