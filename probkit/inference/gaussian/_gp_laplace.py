r"""Laplace's approximation of a Gaussian vector with pointwise terms, for its hyperparameters too.

The mode of ``log p(y | f) - (f - m)' K^-1 (f - m) / 2`` by Newton's method in the coordinates
``alpha = K^-1 (f - m)``: with ``W = -l''(f)`` (negative entries set to zero) and the sites
``lambda2 = W, lambda1 = W f + l'(f)``, the Newton point is the mean given the sites. The best of
sixteen step lengths 2, 1, 1/2, ... 2^-30 is taken (terms such as those of large counts promise
steps that are too long by any factor); moving along ``alpha`` costs O(n). At the mode

    log Z = l(f) - alpha'(f - m) / 2 - log|B| / 2,
    dlog Z = tr[(alpha alpha' - R) dK] / 2 + u' dK alpha + (alpha + u)' dm,
    u = (I + W K)^-1 s,   s_i = v_i l'''(f_i) / 2,

the terms with ``u`` being how the mode itself moves (Rasmussen and Williams 2006, section 5.5.1).
Cost a step: one Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import (
    Adjoint,
    Factor,
    Prior,
    Sites,
    adjoint,
    attach,
    factorise,
    variances,
)
from probkit.inference.gaussian._fixed_point import CONVERGED, NOT_FINITE, RAN_OUT, Found
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._tilted import Pointwise, curvatures

#: Step lengths, the first of them halves, the others eighths; the second is a whole step.
_LENGTHS = (*(2.0 ** (1 - i) for i in range(8)), *(2.0 ** (-9 - 3 * i) for i in range(8)))
_WHOLE = 1


class _Newton(NamedTuple):
    alpha: Array
    f: Array
    gain: Array
    steps: Array


def sites_at(terms: Pointwise, f: Array) -> Sites:
    """The Gaussian sites that touch the terms at ``f``."""
    _, d1, d2 = curvatures(terms, f)
    w = jnp.maximum(-d2, 0.0)
    return Sites(w * f + d1, w)


def ascend(
    fit: Callable[[Array], Array],
    touch: Callable[[Array], Any],
    m: Array,
    first: Any,
    tolerance: float | Array,
    max_steps: int,
) -> tuple[Array, Array, Array, Array]:
    """The mode of ``fit(f) - (f - m)' K^-1 (f - m) / 2``, from the mean ``first``.

    Args:
        fit: the sum of the log terms.
        touch: the Gaussian posterior (``alpha``, ``mu``) with the sites that touch at ``f``.
        m: the prior mean; all vectors have its shape.
        first: the posterior to begin with.
        tolerance: of the sites; the decrement is a square of what they are off by.
        max_steps: factorisations at the most.

    Returns:
        The mode, its ``alpha``, the number of steps, and whether the search converged.
    """
    dtype = m.dtype
    lengths = jnp.asarray(_LENGTHS, dtype)
    tolerance = jnp.asarray(tolerance, dtype) ** 2
    tolerance = jnp.maximum(tolerance, 100.0 * jnp.finfo(dtype).eps)

    def height(alpha: Array, f: Array) -> Array:
        return fit(f) - 0.5 * jnp.vdot(alpha, f - m)

    def body(c: _Newton) -> _Newton:
        goal = touch(c.f)
        da, df = goal.alpha - c.alpha, goal.mu - c.f
        # Precisions beyond a double's digits leave no factor, and so nowhere to go.
        lost = ~(jnp.all(jnp.isfinite(da)) & jnp.all(jnp.isfinite(df)))
        da, df = jnp.where(lost, 0.0, da), jnp.where(lost, 0.0, df)
        heights = jax.vmap(lambda r: height(c.alpha + r * da, c.f + r * df))(lengths)
        heights = jnp.where(jnp.isfinite(heights), heights, -jnp.inf)
        i = jnp.argmax(heights)
        now = height(c.alpha, c.f)
        move = jnp.where((heights[i] > now) & jnp.isfinite(heights[i]), lengths[i], 0.0)
        # Newton's decrement: what the quadratic model promises, which also ends a stalled search.
        promised = jnp.abs(jnp.vdot(da, df))
        # Heights do not tell steps apart whose gain is lost in their rounding. The last step is
        # taken all the same: the determinant is of first order in what f is off by.
        last = promised < 100.0 * jnp.finfo(dtype).eps * (1.0 + jnp.abs(now))
        move = jnp.where(last & jnp.isfinite(heights[_WHOLE]), 1.0, move)
        gain = jnp.where((move == 0.0) | last, 0.0, promised + heights[i] - now)
        return _Newton(c.alpha + move * da, c.f + move * df, gain, c.steps + 1)

    def going(c: _Newton) -> Array:
        return (c.steps < max_steps) & (c.gain > tolerance)

    ok = jnp.isfinite(height(first.alpha, first.mu))
    alpha = jnp.where(ok, first.alpha, 0.0)
    f = jnp.where(ok, first.mu, m)
    end = jax.lax.while_loop(
        going, body, _Newton(alpha, f, jnp.asarray(jnp.inf, dtype), jnp.int32(0))
    )
    return end.f, end.alpha, end.steps, end.gain <= tolerance


def ended(sites: Sites, residual: Array, steps: Array, converged: Array) -> Found:
    """What a search found, with the reason of its end."""
    lost = ~jnp.isfinite(residual)
    reason = jnp.where(lost, NOT_FINITE, jnp.where(converged, CONVERGED, RAN_OUT))
    return Found(sites, residual, steps, reason.astype(jnp.int32))


def solve(
    problem: Problem,
    theta: Array,
    prior: Prior,
    start: Sites,
    *,
    tolerance: float | Array = 1e-7,
    max_steps: int = 100,
) -> Found:
    """The mode at ``theta``, as the sites that touch there; ``start`` are sites to begin with."""
    terms = problem.terms(theta)

    def fit(f: Array) -> Array:
        return jnp.sum(terms(f))

    def touch(f: Array) -> Factor:
        return factorise(prior, sites_at(terms, f))

    first = factorise(prior, start)
    f, alpha, steps, converged = ascend(fit, touch, prior.m, first, tolerance, max_steps)
    sites = sites_at(terms, f)
    # In units of the terms' own sds, where these are small: slopes of large counts are large.
    residual = jnp.max(jnp.abs(jax.grad(fit)(f) - alpha) / jnp.sqrt(1.0 + sites.l2))
    return ended(sites, residual, steps, converged)


def value(problem: Problem, theta: Array, sites: Sites) -> Array:
    """Laplace's log evidence at the mode that ``sites`` touch, with its total derivative."""
    sites = jax.lax.stop_gradient(sites)
    theta0 = jax.lax.stop_gradient(theta)
    moved = problem.prior(theta)
    prior = jax.lax.stop_gradient(moved)
    at = factorise(prior, sites)
    f, v = at.mu, variances(prior, at)
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(at.tril)))
    top = jnp.sum(problem.terms(theta0)(f)) - 0.5 * jnp.dot(at.alpha, f - prior.m)

    def bends(f: Array) -> Array:
        return curvatures(problem.terms(theta0), f)[2]

    d2, d3 = jax.jvp(bends, (f,), (jnp.ones_like(f),))
    concave = d2 < 0.0
    s = jnp.where(concave, 0.5 * v * d3, 0.0)
    u = s - at.s * cho_solve((at.tril, True), at.s * (prior.K @ s))
    ku = prior.K @ u
    plain = adjoint(at)
    outer = jnp.outer(u, at.alpha)
    slope = Adjoint(plain.K + 0.5 * (outer + outer.T), plain.m + u)

    def terms(theta: Array) -> Array:
        l0, l1, l2 = curvatures(problem.terms(theta), f)
        return jnp.sum(l0 + 0.5 * v * jnp.where(concave, l2, 0.0) + ku * l1)

    return attach(top - half_log_det, slope, moved, terms(theta))
