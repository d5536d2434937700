r"""The commonest log densities, with what is known beforehand computed beforehand.

    Normal        -(x - m)^2 / 2 s^2 - log s - log(2 pi) / 2
    HalfNormal    the same with m = 0, and + log 2
    Cauchy        -log(1 + (x - m)^2 / s^2) - log s - log pi
    HalfCauchy    the same with m = 0, and + log 2
    StudentT      -(n + 1) / 2 log(1 + (x - m)^2 / n s^2) - log s + c(n)
    Exponential   log r - r x
    Bernoulli     -log(1 + exp((1 - 2 x) eta)),   by its logits, which may be infinite

Values are taken to lie in the support. Parameters that are plain numbers, as most priors' are, are
folded in Python, in double precision: such a term is two or three operations where NumPyro's has a
dozen, and small models wait for operations to be traced and compiled. Other distributions, and
subclasses of these, are left to NumPyro.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist

_HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


def closed_form(d: Any) -> Callable[[Any], Array] | None:
    """The log density of a distribution, one term an element; None if it is NumPyro's to give."""
    make = _FORMS.get(type(d))
    return None if make is None else make(d)


def _number(x: Any) -> bool:
    return isinstance(x, (int, float, np.number))


def _gap(x: Any, loc: Any) -> Array:
    gap = x if _number(loc) and loc == 0 else x - loc
    return jnp.asarray(gap, jnp.result_type(gap, float))


def _square(x: Any, loc: Any, scale: Any) -> tuple[Array, Any]:
    """``((x - loc) / scale)^2`` and ``log scale``."""
    if _number(scale):
        squared = jax.lax.square(_gap(x, loc))
        return squared * float(scale) ** -2 if scale != 1 else squared, math.log(scale)
    if scale.size < jnp.size(x):
        # Where elements share a scale nothing is divided element by element: the gradient of
        # ((x - m) / s)^2 divides every element twice, which is a tenth of a linear regression's
        # time. (The reciprocal is squared, not the scale, so that nothing overflows earlier.)
        return jax.lax.square(_gap(x, loc)) * jax.lax.square(1.0 / scale), jnp.log(scale)
    return jax.lax.square(_gap(x, loc) * (1.0 / scale)), jnp.log(scale)


def _normal(loc: Any, scale: Any, constant: float) -> Callable[[Any], Array]:
    def log_density(x: Any) -> Array:
        if _number(scale):
            half = -0.5 * float(scale) ** -2
            return half * jax.lax.square(_gap(x, loc)) - (math.log(scale) + constant)
        squared, log_scale = _square(x, loc, scale)
        return -0.5 * squared - log_scale - constant

    return log_density


def _cauchy(loc: Any, scale: Any, constant: float) -> Callable[[Any], Array]:
    def log_density(x: Any) -> Array:
        squared, log_scale = _square(x, loc, scale)
        return -jax.lax.log1p(squared) - (log_scale + constant)

    return log_density


def _student(d: Any) -> Callable[[Any], Array] | None:
    if not _number(d.df):
        return None
    n = float(d.df)
    constant = math.lgamma(0.5 * n) - math.lgamma(0.5 * (n + 1.0)) + 0.5 * math.log(n * math.pi)

    def log_density(x: Any) -> Array:
        squared, log_scale = _square(x, d.loc, d.scale)
        return -0.5 * (n + 1.0) * jax.lax.log1p(squared / n) - (log_scale + constant)

    return log_density


def _exponential(d: Any) -> Callable[[Any], Array]:
    rate = d.rate
    log_rate = math.log(rate) if _number(rate) else jnp.log(rate)
    return lambda x: log_rate - rate * jnp.asarray(x)


def _bernoulli(d: Any) -> Callable[[Any], Array]:
    return lambda x: -jax.nn.softplus((1.0 - 2.0 * x) * d.logits)


_FORMS: dict[type, Callable[[Any], Callable[[Any], Array] | None]] = {
    dist.Normal: lambda d: _normal(d.loc, d.scale, _HALF_LOG_TAU),
    dist.HalfNormal: lambda d: _normal(0.0, d.scale, _HALF_LOG_TAU - math.log(2.0)),
    dist.Cauchy: lambda d: _cauchy(d.loc, d.scale, math.log(math.pi)),
    dist.HalfCauchy: lambda d: _cauchy(0.0, d.scale, math.log(0.5 * math.pi)),
    dist.StudentT: _student,
    dist.Exponential: _exponential,
    dist.BernoulliLogits: _bernoulli,
}
