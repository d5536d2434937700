r"""Expectations of one-dimensional likelihood terms under a normal, for any log likelihood.

With ``f ~ N(m, s^2)`` and ``l(f) = log p(y | f)``, methods that pass Gaussian messages need

    E = E[l(f)],                                    and dE/dm, d^2 E/dm^2            (variational)
    log Z = log E[exp(a l(f))],  a in (0, 1],       and its first two derivatives    (EP)

Twenty Gauss-Hermite nodes are wrong by per cents once ``s`` is five times the width of the bend in
``l`` (that of a probit term is 1). Here ``f = m + s z`` with

    z(u) = z0 + a asinh((w/a) sinh u)

and the trapezoid rule in ``u``: nodes are ``w du`` apart at the bend ``z0``, grow apart by
``exp(du)`` from node to node, and stop growing at ``a du``, which resolves the normal itself. So
both scales are seen whatever their ratio; 64 nodes give 1e-8 and better up to ``s = 150`` bends.
Where the bend is (probit: at 0, of width 1) is known in closed form, or found by safeguarded
Newton steps to the mode of ``l(f) - (f - m)^2 / (50 s^2)`` and bisection from there to where ``l``
is lower by log 2: the flank of the likelihood's peak, or the bend of one that rises for ever.

Derivatives follow by Stein's identity from ``l'`` (variational) and from the tilted moments (EP):

    dE/dm = E[l'],   d2E/dm2 = E[l' z] / s,   dlogZ/dm = E_t[z] / s,   d2 = (var_t[z] - 1) / s^2.

Cost: 64 evaluations of ``l`` an observation. Probit terms have closed forms (Rasmussen and
Williams 2006, section 3.9), written with ``log_ndtr`` so that no tail underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array

from probkit.inference.gaussian._normal_cdf import hazard_ratio
from probkit.inference.gaussian._normal_cdf import log_ndtr as quick_log_ndtr

NODES = 64
_PROBIT_NODES = 80  # 2e-7 at 150 bends wide, 1e-10 at 20
_REACH = 10.0  # sds on either side that the nodes cover
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

#: A pointwise log likelihood: ``(n,) -> (n,)``, the i-th entry a function of the i-th alone.
Pointwise = Callable[[Array], Array]


class Moments(NamedTuple):
    """A value and its first two derivatives with respect to the normal's mean, each ``(n,)``."""

    value: Array
    d1: Array
    d2: Array


class Rule(NamedTuple):
    """Nodes ``f`` and ``z``, and log weights of the standard normal there; each ``(nodes, n)``."""

    f: Array
    z: Array
    log_weight: Array


def slopes(fn: Pointwise, f: Array) -> tuple[Array, Array]:
    """Values and first derivatives of a pointwise function."""
    return jax.jvp(fn, (f,), (jnp.ones_like(f),))


def curvatures(fn: Pointwise, f: Array) -> tuple[Array, Array, Array]:
    """Values, first and second derivatives of a pointwise function."""
    (value, d1), (_, d2) = jax.jvp(lambda x: slopes(fn, x), (f,), (jnp.ones_like(f),))
    return value, d1, d2


def bend(fn: Pointwise, m: Array, v: Array) -> tuple[Array, Array]:
    """Where a log likelihood bends, and over which width: ``(n,)`` each. See the module's text."""
    wide, s = 25.0 * v, jnp.sqrt(v)

    def climb(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        f, radius = carry
        value, d1, d2 = curvatures(fn, f)
        move = (d1 - (f - m) / wide) / (jnp.abs(d2) + 1.0 / wide)
        new = f + jnp.where(jnp.isfinite(move), jnp.clip(move, -radius, radius), 0.0)
        gain = fn(new) - value - 0.5 * ((new - m) ** 2 - (f - m) ** 2) / wide
        up = gain >= 0.0
        return jnp.where(up, new, f), jnp.where(up, 2.0 * radius, 0.25 * radius)

    peak, _ = jax.lax.fori_loop(0, 24, climb, (m, 2.0 * s))
    top, rise = slopes(fn, peak)
    down = jnp.where(rise > 0, -1.0, 1.0)

    def halve(_: Any, between: tuple[Array, Array]) -> tuple[Array, Array]:
        near, far = between
        middle = 0.5 * (near + far)
        low = fn(peak + down * middle) < top - math.log(2.0)
        return jnp.where(low, near, middle), jnp.where(low, middle, far)

    zero = jnp.zeros_like(m)
    _, drop = jax.lax.fori_loop(0, 30, halve, (zero, 10.0 * s + jnp.abs(peak - m)))
    centre = peak + down * drop
    _, _, d2 = curvatures(fn, centre)
    curvature = jnp.where(jnp.isfinite(d2), jnp.maximum(-d2, 0.0), 0.0) + 1.0 / v
    return centre, jnp.minimum(1.0 / jnp.sqrt(curvature), drop)


def rule(
    m: Array, v: Array, centre: Array, width: Array, nodes: int = NODES, reach: float = 30.0
) -> Rule:
    """The quadrature rule for ``N(m, v)`` with a bend at ``centre`` (in units of ``f``).

    A bend more than ``reach`` sds away is taken to be there: the mass of the normal itself must
    stay resolved where the likelihood's peak does not matter (``expected``: 9).
    """
    s = jnp.sqrt(v)
    z0 = (centre - m) / s
    z0 = jnp.clip(jnp.where(jnp.isfinite(z0), z0, 0.0), -reach, reach)
    w = jnp.clip(width / s, 1e-6, 1.0)
    low, high = jnp.minimum(-_REACH, z0 - _REACH * w), jnp.maximum(_REACH, z0 + _REACH * w)
    a = 1.0 + jnp.maximum(jnp.abs(z0) - _REACH, 0.0) / _REACH
    edge = lambda d: jnp.arcsinh((a / w) * jnp.sinh(d / a))  # noqa: E731
    begin, end = edge(low - z0), edge(high - z0)
    du = (end - begin) / (nodes - 1)
    u = begin + du * jnp.arange(nodes, dtype=m.dtype)[:, None]
    bent = (w / a) * jnp.sinh(u)
    z = z0 + a * jnp.arcsinh(bent)
    log_dz = jnp.log(w * jnp.cosh(u) / jnp.sqrt(1.0 + bent**2) * du)
    return Rule(m + s * z, z, log_dz - 0.5 * z**2 - _HALF_LOG_2PI)


def expected(fn: Pointwise, m: Array, v: Array, at: Rule) -> Moments:
    """``E[l(f)]`` and its derivatives with respect to ``m`` (half the second is that for ``v``)."""
    value, slope = jax.vmap(lambda f: slopes(fn, f))(at.f)
    weight = jnp.exp(at.log_weight)
    big = jnp.finfo(m.dtype).max ** 0.5
    value, slope = jnp.clip(value, -big, big), jnp.clip(slope, -big, big)
    d2 = jnp.sum(weight * slope * at.z, axis=0) / jnp.sqrt(v)
    return Moments(jnp.sum(weight * value, axis=0), jnp.sum(weight * slope, axis=0), d2)


def tilted(fn: Pointwise, m: Array, v: Array, at: Rule, power: float | Array = 1.0) -> Moments:
    """``log E[exp(power l(f))]`` and its derivatives with respect to ``m``."""
    logs = at.log_weight + power * jax.vmap(fn)(at.f)
    log_z = logsumexp(logs, axis=0)
    share = jnp.exp(logs - jax.lax.stop_gradient(log_z))
    mean = jnp.sum(share * at.z, axis=0)
    var = jnp.sum(share * (at.z - mean) ** 2, axis=0)
    return Moments(log_z, mean / jnp.sqrt(v), (var - 1.0) / v)


def probit_tilted(slope: Array, offset: Array, m: Array, v: Array) -> Moments:
    """`tilted` for ``l(f) = log Phi(offset + slope f)``, in closed form."""
    scale = 1.0 / jnp.sqrt(1.0 + slope**2 * v)
    z = (offset + slope * m) * scale
    ratio, excess = hazard(z)
    return Moments(log_ndtr(z), slope * scale * ratio, -((slope * scale) ** 2) * ratio * excess)


def probit_expected(slope: Array, offset: Array, m: Array, v: Array) -> Moments:
    """`expected` for ``l(f) = log Phi(offset + slope f)``, at an eighth of the cost.

    The slope of such a term is bounded, so that the mass of the normal alone must be covered: the
    nodes are ``z = z0 + w sinh u``, the bend at ``z0``, with ends at ten sds.
    """
    s = jnp.sqrt(v)
    flat = jnp.abs(slope) < 1e-12
    steep = jnp.where(flat, 1.0, slope)
    z0 = jnp.clip((-offset / steep - m) / s, -9.0, 9.0)
    w = 1.0 / jnp.maximum(s * jnp.abs(steep), 1.0)
    begin, end = jnp.arcsinh((-_REACH - z0) / w), jnp.arcsinh((_REACH - z0) / w)
    du = (end - begin) / (_PROBIT_NODES - 1)
    grown = jnp.exp(begin + du * jnp.arange(_PROBIT_NODES, dtype=m.dtype)[:, None])
    z = z0 + 0.5 * w * (grown - 1.0 / grown)
    log_peak = jnp.log(0.5 * w * du) - _HALF_LOG_2PI
    weight = jnp.exp(log_peak - 0.5 * z**2) * (grown + 1.0 / grown)
    eta = offset + slope * (m + s * z)
    rise = weight * slope * hazard_ratio(eta)
    value = jnp.sum(weight * quick_log_ndtr(eta), axis=0)
    return Moments(value, jnp.sum(rise, axis=0), jnp.sum(rise * z, axis=0) / s)


def hazard(z: Array) -> tuple[Array, Array]:
    """``r = phi(z) / Phi(z)`` and ``r + z``, which far in the lower tail is small but not zero."""
    far = -25.0 if z.dtype == jnp.float64 else -10.0
    near = jnp.maximum(z, far)
    ratio = jnp.exp(-0.5 * near**2 - _HALF_LOG_2PI - log_ndtr(near))
    x = -jnp.minimum(z, far)
    i = 1.0 / x**2
    tail = (1.0 - i * (2.0 - i * (10.0 - i * (74.0 - i * 706.0)))) / x
    below = z < far
    return jnp.where(below, x + tail, ratio), jnp.where(below, tail, ratio + near)
