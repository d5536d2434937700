r"""Laplace's approximation of several Gaussian vectors whose terms meet row by row.

The mode of ``sum_i l_i(f_i) - sum_c (f_c - m_c)' K_c^-1 (f_c - m_c) / 2`` by Newton's method, as
for one vector (`_gp_laplace`), with the blocks ``H_i = -d2 l_i / df_i df_i'`` in the place of the
weights where ``K^-1 + H`` is positive definite, else without their negative part, so that every
step goes uphill. The evidence is that of ``W = [H]_+`` always: of two modes that merge the
determinant of the whole curvature vanishes, and a search for hyperparameters would be drawn there.
Negative parts are taken away in units of the prior's sds (`positive`), so a function that the prior
ties down leaves the curvature of the others as it is. At the mode

    log Z = l(f) - alpha'(f - m) / 2 - log|I + K W| / 2,
    dlog Z = sum_c tr[(alpha_c alpha_c' - R_cc) dK_c] / 2 + u' dK alpha + (alpha + u)' dm,
    u = (I + H K)^-1 s = s - H (K^-1 + H)^-1 s,      s = -d tr(Sigma W(f)) / 2 df,

``s`` being how the mode moves the determinant (Rasmussen and Williams 2006, section 5.5.1, here for
blocks and any terms; ``Sigma`` enters by its diagonal blocks). The mode itself moves as the terms'
whole curvature ``H`` has it, negative part and all; at a mode ``K^-1 + H`` is positive definite.

For softmax terms of one label a row a step costs ``C + 1`` Cholesky factors of ``n x n`` (section
3.5); for all others one of ``C n`` rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import Adjoint, Prior, Sites, attach
from probkit.inference.gaussian._fixed_point import Found
from probkit.inference.gaussian._gp_laplace import ascend, ended
from probkit.inference.gaussian._several_algebra import (
    Conditioned,
    admissible,
    condition,
    condition_blocks,
    prior_sds,
    rooted,
    times,
)
from probkit.inference.gaussian._several_problem import Several
from probkit.inference.gaussian._several_rule import derivatives


def solve(
    problem: Several,
    theta: Array,
    prior: Prior,
    start: Sites,
    *,
    tolerance: float | Array = 1e-7,
    max_steps: int = 200,
) -> Found:
    """The mode at ``theta``, as the sites that touch there; ``start`` are sites to begin with."""
    terms, sds = problem.terms(theta), prior_sds(prior)
    roots = None if problem.kind == "softmax" else rooted(prior)[0]

    def fit(f: Array) -> Array:
        return jnp.sum(terms(f))

    def touch(f: Array) -> Conditioned:
        if roots is None:
            return condition(prior, problem.touching(theta, f, sds))
        d1, d2 = derivatives(terms, f)
        blocks = admissible(prior, roots, -d2)
        return condition_blocks(prior, roots, Sites(times(blocks, f) + d1, blocks))

    first = condition(prior, start, roots)
    f, alpha, steps, converged = ascend(fit, touch, prior.m, first, tolerance, max_steps)
    sites = problem.touching(theta, f, sds)
    # In standard deviations: where noise is next to nothing, a gradient of one is no distance.
    widths = jnp.sqrt(jnp.einsum("aan->an", condition(prior, sites, roots).blocks()))
    residual = _off((jax.grad(fit)(f) - alpha) * widths)
    # A search may also stall far from a mode, where the terms overflow.
    near = residual < max(1e-4, 1e3 * float(jnp.finfo(f.dtype).eps))
    return ended(sites, residual, steps, converged & near)


def _off(gap: Array) -> Array:
    return jnp.max(jnp.abs(gap))


def value(problem: Several, theta: Array, sites: Sites) -> Array:
    """Laplace's log evidence at the mode that ``sites`` touch, with its total derivative."""
    sites = jax.lax.stop_gradient(sites)
    theta0 = jax.lax.stop_gradient(theta)
    moved = problem.prior(theta)
    prior = jax.lax.stop_gradient(moved)
    roots = None if problem.kind == "softmax" else rooted(prior)[0]
    at = condition(prior, sites, roots)
    f, v = at.mu, at.blocks()
    top = jnp.sum(problem.terms(theta0)(f)) - 0.5 * at.square

    def curved(theta: Array, f: Array) -> Array:
        return -0.5 * jnp.sum(v * problem.curvature(theta, f))

    s = jax.grad(curved, argnums=1)(theta0, f)
    moving = at
    if roots is not None:
        whole = admissible(prior, roots, -derivatives(problem.terms(theta0), f)[1])
        moving = condition_blocks(prior, roots, Sites(sites.l1, whole))
    ku = moving.spread(s)
    u = s - times(moving.precisions, ku)
    plain = at.adjoint()
    outer = u[:, :, None] * at.alpha[:, None, :]
    slope = Adjoint(plain.K + 0.5 * (outer + jnp.swapaxes(outer, 1, 2)), plain.m + u)

    def terms(theta: Array) -> Array:
        each, slopes = jax.vjp(problem.terms(theta), f)
        (d1,) = slopes(jnp.ones_like(each))
        return jnp.sum(each) + curved(theta, f) + jnp.sum(ku * d1)

    return attach(top - at.half_log_det, slope, moved, terms(theta))
