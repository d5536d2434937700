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


# JAX traces an operator such as ``*`` as a function of its own, at several times the cost of the
# primitive, which takes numbers of its array's dtype.


def _times(a: Any, x: Array) -> Array:
    return jax.lax.mul(x, x.dtype.type(a)) if _number(a) else a * x


def _plus(x: Array, a: Any) -> Array:
    return jax.lax.add(x, x.dtype.type(a)) if _number(a) else x + a


def _less(x: Array, a: Any) -> Array:
    return jax.lax.sub(x, x.dtype.type(a)) if _number(a) else x - a


def _log(x: Any) -> Any:
    return math.log(x) if _number(x) else jnp.log(x)


def _precision(scale: Any) -> Any:
    """``1 / scale^2``. (The reciprocal is squared, not the scale: it overflows no earlier.)"""
    return float(scale) ** -2 if _number(scale) else jax.lax.square(1.0 / jnp.asarray(scale))


def _normal(loc: Any, scale: Any, constant: float) -> Callable[[Any], Array]:
    # What depends on the scale alone comes first: where elements share a scale nothing is divided,
    # and no logarithm taken, element by element, on the way back either. (The gradient of
    # ((x - m) / s)^2 divides every element twice, a tenth of a linear regression's time.)
    half, rest = -0.5 * _precision(scale), _log(scale) + constant
    return lambda x: _less(_times(half, jax.lax.square(_gap(x, loc))), rest)


def _cauchy(loc: Any, scale: Any, constant: float) -> Callable[[Any], Array]:
    inverse, rest = _precision(scale), _log(scale) + constant

    def log_density(x: Any) -> Array:
        inside = _times(inverse, jax.lax.square(_gap(x, loc)))
        return jax.lax.neg(_plus(jax.lax.log1p(inside), rest))

    return log_density


def _student(d: Any) -> Callable[[Any], Array] | None:
    if not _number(d.df):
        return None
    n = float(d.df)
    constant = math.lgamma(0.5 * n) - math.lgamma(0.5 * (n + 1.0)) + 0.5 * math.log(n * math.pi)
    inverse, rest = _precision(d.scale) / n, _log(d.scale) + constant
    power = -0.5 * (n + 1.0)

    def log_density(x: Any) -> Array:
        inside = _times(inverse, jax.lax.square(_gap(x, d.loc)))
        return _less(_times(power, jax.lax.log1p(inside)), rest)

    return log_density


def _exponential(d: Any) -> Callable[[Any], Array]:
    rate = d.rate
    log_rate = _log(rate)
    return lambda x: log_rate - rate * jnp.asarray(x)


def _bernoulli(d: Any) -> Callable[[Any], Array]:
    return lambda x: -_softplus((1.0 - 2.0 * x) * d.logits)


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    """``log(1 + exp(x))``, whose slope shares its exponential."""
    return jnp.maximum(x, 0.0) + jax.lax.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    small = jnp.exp(-jnp.abs(x))
    slope = jnp.where(x >= 0, 1.0, small) / (1.0 + small)
    return _softplus(x), slope * moved


_FORMS: dict[type, Callable[[Any], Callable[[Any], Array] | None]] = {
    dist.Normal: lambda d: _normal(d.loc, d.scale, _HALF_LOG_TAU),
    dist.HalfNormal: lambda d: _normal(0.0, d.scale, _HALF_LOG_TAU - math.log(2.0)),
    dist.Cauchy: lambda d: _cauchy(d.loc, d.scale, math.log(math.pi)),
    dist.HalfCauchy: lambda d: _cauchy(0.0, d.scale, math.log(0.5 * math.pi)),
    dist.StudentT: _student,
    dist.Exponential: _exponential,
    dist.BernoulliLogits: _bernoulli,
}
