r"""Quadrature nodes for terms that are not smooth: panels that are cut where they need it.

A log likelihood with a kink (absolute errors, a quantile's loss, Huber's loss, a clipped
function) spoils any rule whose nodes do not know where it is. Here the range is cut into panels
of ten Gauss and Legendre nodes each. Every row begins with eight equal ones; then the panel that
is worst is cut in two, again and again. What tells a panel's error are the last two coefficients
``c`` of the Legendre series, on it, of

    g = l' phi and (l - l_0) phi   (expectations),      g = exp(a l) phi   (tilted integrals),

by ``|c|^2 / max |g|``: the last coefficients of a smooth function are about the root of its
error, those of a kink fall off slowly. Two points next to the panel's ends see kinks beyond the
outer nodes. By turns, the cut is in the middle, where the tangents of ``l`` at the two ends meet,
and where the secants of ``l'`` there meet. The second is exact for two straight lines, the third
for a line and a parabola, and both converge quadratically to any other kink. Between kinks
functions are smooth, and a panel there needs no further cut. ``exp(a l)`` may be a thousand times
narrower than the normal: its worst panels lead to its peak.

Against a dense rule whose panels shrink towards the kinks, absolute errors (one, and five in a
row's term), a quantile's and Huber's loss and a bent link, with sds of .1 to 100 times the term's
width: within 1e-8 of the largest value, and of moments. (A clipped function under a normal a
hundred times its width was off by 1e-3 in a derivative with fewer cuts.) Cost: 12
evaluations of the term and its slope for each half of a cut, and 10 a panel, about four times
those of the smooth rule.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.inference.gaussian._tilted import Pointwise, Rule, slopes

NODES = 10
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
#: Sds on either side that are covered: where the normal has its mass, and where a term may draw it.
_NEAR, _FAR = 12.0, 40.0
#: Cuts for the terms of one observation, and for each further one of the same entry, up to so many.
_CUTS, _CUTS_FAR, _MORE, _MOST = 40, 56, 8, 20
_EVEN = 7  # cuts that make eight equal panels
_END = 1.0 - 1e-9  # a kink nearer to a panel's end is at the end


class _Panels(NamedTuple):
    """Panels of every row, ``(panels, n)``, and two places each where they may be cut."""

    low: Array
    high: Array
    log_error: Array
    places: Array


@functools.cache
def _legendre() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes on [-1, 1] with two more next to the ends, weights of the nodes, and the coefficients.

    The last rows give a function's last two Legendre coefficients from its values at all points.
    """
    x, w = np.polynomial.legendre.leggauss(NODES)
    all_ = np.concatenate([[-_END], x, [_END]])
    last = np.linalg.inv(np.polynomial.legendre.legvander(all_, NODES + 1))[-2:]
    return all_, w, last


def _meeting(values: Array, slopes: Array, x: Array) -> Array:
    """Where the lines through a panel's first and last node meet, in (-1, 1); else the middle.

    ``values`` are at the nodes ``x``, ``slopes`` per unit of ``x``; the first and last row count.
    """
    (a, b), end = (slopes[0], slopes[-1]), x[-1]
    at = ((values[-1] - values[0]) - end * (a + b)) / (a - b)
    clear = jnp.abs(a - b) > 1e-9 * (jnp.abs(a) + jnp.abs(b))
    return jnp.where(clear & (jnp.abs(at) < end), at, 0.0)


def panel_rule(
    fn: Pointwise, m: Array, v: Array, count: int, power: float | Array | None = None
) -> Rule:
    """The rule for ``N(m, v)`` and terms that may have kinks anywhere.

    Args:
        fn: the pointwise log likelihood.
        m: means of the normals, ``(n,)``.
        v: their variances.
        count: observations that a row's term is the sum of, at the most.
        power: of `tilted` integrals; for expectations of ``l`` and ``l'`` None.
    """
    s, (x, w, last) = jnp.sqrt(v), (jnp.asarray(a, m.dtype) for a in _legendre())
    reach = _NEAR if power is None else _FAR
    cuts = (_CUTS if power is None else _CUTS_FAR) + _MORE * (min(count, _MOST) - 1)

    def look(low: Array, high: Array) -> tuple[Array, Array]:
        """A panel's log error, and the two places where it may be cut, ``(2, n)``."""
        centre, half = 0.5 * (low + high), 0.5 * (high - low)
        z = centre + half * x[:, None]
        value, slope = jax.vmap(lambda f: slopes(fn, f))(m + s * z)
        log_density = -0.5 * z**2
        if power is not None:
            log_density += power * value
        top = jnp.max(log_density, axis=0)
        density, error = jnp.exp(log_density - top), 0.0
        parts = (
            [density] if power is not None else [density * (value - value[0]), density * slope * s]
        )
        for g in parts:
            ends, size = jnp.sum(jnp.abs(last @ g), axis=0), jnp.max(jnp.abs(g), axis=0)
            error += jnp.where(size > 0, ends**2 / jnp.where(size > 0, size, 1.0), 0.0)
        error = top + jnp.log(half * error)
        # Lines in units of the half panel, so that nothing is lost where it is narrow.
        one = _meeting(value, slope * s * half, x)
        steps = (slope[1] - slope[0]) / (x[1] - x[0]), (slope[-1] - slope[-2]) / (x[1] - x[0])
        two = _meeting(slope, jnp.stack(steps), x)
        return jnp.where(jnp.isnan(error), -jnp.inf, error), centre + half * jnp.stack([one, two])

    def cut(t: Array, p: _Panels) -> _Panels:
        worst = jnp.argmax(jnp.where(t < _EVEN, p.high - p.low, p.log_error), axis=0)

        def take(a: Array) -> Array:
            return jnp.take_along_axis(a, jnp.broadcast_to(worst, (1, *a.shape[1:])), axis=0)[0]

        low, high, places = take(p.low), take(p.high), take(p.places)
        turn = jnp.where(t < _EVEN, 0, t % 3)
        at = jnp.where(turn == 0, 0.5 * (low + high), jnp.where(turn == 1, places[0], places[1]))
        errors, found = jax.vmap(look)(jnp.stack([low, at]), jnp.stack([at, high]))
        here = jnp.arange(cuts + 1)

        def put(old: Array, left: Array, right: Array) -> Array:
            at = here.reshape(-1, *(1,) * (old.ndim - 1))
            return jnp.where(at == worst, left, jnp.where(at == t + 1, right, old))

        return _Panels(
            put(p.low, low, at),
            put(p.high, at, high),
            put(p.log_error, errors[0], errors[1]),
            put(p.places, found[0], found[1]),
        )

    whole = jnp.full((cuts + 1, *m.shape), reach, m.dtype)
    none = jnp.full_like(whole, -jnp.inf)
    # Panels that are not there yet have no width; the first is cut whatever its error is.
    middle = jnp.zeros((cuts + 1, 2, *m.shape), m.dtype)
    first = _Panels(whole.at[0].set(-reach), whole, none.at[0].set(0.0), middle)
    end: Any = jax.lax.fori_loop(0, cuts, cut, first)
    half = 0.5 * (end.high - end.low)
    z = (0.5 * (end.low + end.high))[:, None] + half[:, None] * x[1:-1, None]
    log_width = jnp.log(half[:, None] * w[:, None])
    z, log_width = (a.reshape(-1, *m.shape) for a in (z, log_width))
    return Rule(m + s * z, z, log_width - 0.5 * z**2 - _HALF_LOG_2PI)
