r"""Fixed points of Gaussian sites: damped parallel updates that slow down when they overshoot.

    lambda <- lambda + beta (T(lambda) - lambda)

The residual is the largest change of a site's natural parameters in units of its marginal,
``|T1 - lambda1| sqrt(v)`` and ``|T2 - lambda2| v``. A residual that grows by a fifth, or sites that
stop being finite, halve ``beta`` (the sites with the smallest residual are returned to when things
become not finite); five falling residuals in a row raise it again, never above where it began.
Steps that are a little too long end in a cycle instead, whose residual neither grows nor falls:
eight steps without a smaller one halve ``beta`` too, and keep it below what led there for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import Sites

#: Steps without progress, the share of their length that stays allowed, and how that share grows.
_STALE, _BELOW, _FORGET = 8, 0.9, 1.01
#: Why a search for sites ended.
CONVERGED, RAN_OUT, NOT_FINITE = 0, 1, 2


class Found(NamedTuple):
    """Sites with how the search for them went (scalars)."""

    sites: Sites
    residual: Array
    steps: Array
    reason: Array


class _Search(NamedTuple):
    sites: Sites
    best: Sites
    residual: Array
    least: Array
    beta: Array
    top: Array
    falls: Array
    goal: Array
    stale: Array
    steps: Array


def up_to_two(search: Callable[[Array, Sites], Found], start: Sites) -> Found:
    """A search from ``start`` and, unless it converges, another from where it ended.

    ``search`` is given 0 or 1 besides the sites, and compiled once; steps are added up.
    """

    def body(own: tuple[Array, Found]) -> tuple[Array, Found]:
        turn, before = own
        found = search(turn, before.sites)
        return turn + 1, found._replace(steps=before.steps + found.steps)

    def going(own: tuple[Array, Found]) -> Array:
        return (own[0] < 2) & (own[1].reason != CONVERGED)

    big = jnp.asarray(jnp.inf, start.l1.dtype)
    none = Found(start, big, jnp.int32(0), jnp.int32(RAN_OUT))
    return jax.lax.while_loop(going, body, (jnp.int32(0), none))[1]


def fixed_point(
    update: Callable[[Sites], tuple[Sites, Array]],
    start: Sites,
    beta: Array | float,
    tolerance: Array | float,
    max_steps: int,
    units: Callable[[Array], Sites] = lambda v: Sites(jnp.sqrt(v), v),
) -> Found:
    """Search from ``start``; ``update`` returns the undamped new sites and the marginal variances.

    ``units`` of these variances are what changes of the sites' parameters are multiplied by. Stops
    when the residual is below ``tolerance``, after ``max_steps``, or once ``beta`` has become too
    small to move.
    """
    dtype = start.l1.dtype
    top = jnp.asarray(beta, dtype)
    big = jnp.asarray(jnp.inf, dtype)
    # Below some hundred rounding errors nothing converges.
    tolerance = jnp.maximum(jnp.asarray(tolerance, dtype), 100.0 * jnp.finfo(dtype).eps)

    def going(c: _Search) -> Array:
        return (c.steps < max_steps) & (c.residual > tolerance) & (c.beta > 1e-4 * top)

    def body(c: _Search) -> _Search:
        new, v = update(c.sites)
        gap = Sites(new.l1 - c.sites.l1, new.l2 - c.sites.l2)
        unit = units(v)
        first, second = jnp.abs(gap.l1) * unit.l1, jnp.abs(gap.l2) * unit.l2
        residual = jnp.maximum(jnp.max(first), jnp.max(second))
        fine = jnp.isfinite(residual)
        better = fine & (residual < c.least)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), c.sites, c.best)
        falls = jnp.where(fine & (residual < c.residual), c.falls + 1, 0)
        worse = ~fine | (residual > 1.2 * c.residual)
        nearer = residual < 0.995 * c.goal
        stale = jnp.where(nearer, 0, c.stale + 1)
        cycle = stale >= _STALE
        most = jnp.where(cycle, _BELOW * c.beta, jnp.minimum(_FORGET * c.top, top))
        longer = jnp.where(falls >= 5, 1.25 * c.beta, c.beta)
        beta = jnp.minimum(jnp.where(worse | cycle, 0.5 * c.beta, longer), most)
        done = residual <= tolerance
        # The last update is taken in full where it is as small as the tolerance.
        move = jnp.where(done, 1.0, beta)
        moved = Sites(c.sites.l1 + move * gap.l1, c.sites.l2 + move * gap.l2)
        sites = jax.tree.map(lambda a, b: jnp.where(fine, a, b), moved, best)
        residual_or_big = jnp.where(fine, residual, big)
        return _Search(
            sites,
            best,
            residual_or_big,
            jnp.where(better, residual, c.least),
            beta,
            most,
            jnp.where(falls >= 5, 0, falls),
            jnp.where(nearer | cycle, residual_or_big, c.goal),
            jnp.where(cycle, 0, stale),
            c.steps + 1,
        )

    none = jnp.int32(0)
    first = _Search(start, start, big, big, top, top, none, big, none, none)
    end = jax.lax.while_loop(going, body, first)
    converged = end.residual <= tolerance
    sites = jax.tree.map(lambda a, b: jnp.where(converged, a, b), end.sites, end.best)
    reason = jnp.where(
        converged, CONVERGED, jnp.where(jnp.isfinite(end.residual), RAN_OUT, NOT_FINITE)
    )
    return Found(sites, jnp.minimum(end.residual, end.least), end.steps, reason.astype(jnp.int32))
