r"""Maps from a free parameter ``u`` to a scale ``s > 0``, and the proximal step of the entropy.

    linear     s = c u             softplus   s = log(1 + e^u)          exp   s = e^u

Curved maps can cost stochastic gradients their rate; the linear one keeps it, if the entropy's
barrier ``-log s`` is handled by its proximal operator (Domke 2020, section 4; Kim, Oh, Wu, Ma and
Gardner 2023):

    prox(u) = (u + sqrt(u^2 + 4 g)) / 2,    g the step size of that entry.

Departure: they have c = 1. One step size serves means and scales, and the gradient in a scale is
the noisier of the two; with c = 0.6 its noise is damped as softplus damps it (whose slope is 0.63
where s = 1), whatever the size of s.

Which wins where is measured by ``benchmarks/vi_scales.py``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

#: c, the slope of the linear map.
SLOPE = 0.6
SCALE_MAPS = ("linear", "softplus", "exp")

# A step of a linear scale never goes further than this towards zero: its entropy is infinite there.
_SHRINK = 0.3


def scale_of(kind: str, u: Array) -> Array:
    """The scale of a free parameter."""
    if kind == "linear":
        return SLOPE * u
    return jax.nn.softplus(u) if kind == "softplus" else jnp.exp(u)


def free_of(kind: str, s: Array) -> Array:
    """The free parameter of a scale: the inverse of `scale_of`."""
    if kind == "linear":
        return s / SLOPE
    return s + jnp.log(-jnp.expm1(-s)) if kind == "softplus" else jnp.log(s)


def settle_scale(kind: str, new: Array, old: Array, step: Array, prox: bool) -> Array:
    """A free parameter after an optimiser's step, kept valid; see `Family.settle`."""
    if kind != "linear":
        return new
    if prox:
        return 0.5 * (new + jnp.sqrt(new**2 + 4.0 * step))
    return jnp.maximum(new, _SHRINK * old)
