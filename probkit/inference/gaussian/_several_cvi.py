r"""Variational inference for several Gaussian vectors by natural gradients of whole rows.

Among Gaussians ``q(f) = N(mu, Sigma)`` over all C vectors the bound

    ELBO = sum_i E_q[l_i(f_i)] - KL(q || p),
    KL   = [alpha'(mu - m) + log|I + K Lambda| - sum_i tr(Lambda_i Sigma_ii)] / 2

is largest for a prior times sites ``(lambda1_i, Lambda_i)`` of whole rows, coupled or not by the
prior. With ``F_i(m, V)`` the expectation of a row's term, a natural-gradient step of size ``beta``
is

    Lambda  <- (1 - beta) Lambda  - beta 2 dF/dV,
    lambda1 <- (1 - beta) lambda1 + beta (dF/dm - 2 dF/dV mu)

(Khan and Lin 2017, for C x C blocks). At the optimum ``Sigma`` is positive definite, though single
blocks need not be: terms that are not log-concave keep their negative curvature, unlike Laplace's.
(Where a whole step would lose definiteness, it goes to the blocks without their negative part;
then every part of a step keeps it. A search that gets nowhere, as whole steps from another engine's
sites can where a noise varies, is followed by one of smaller steps from blocks without their
negative part.) The derivative by the kernels is ``tr[(alpha alpha' - R) dK] /
2``. Expectations are by fixed nodes (`_several_rule`), and ``F`` and its derivatives belong
together, so that the optimum is that of the bound as computed. Cost a step: ``(C n)^3`` and ``n``
times the nodes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import Prior, Sites, attach
from probkit.inference.gaussian._fixed_point import Found, fixed_point, up_to_two
from probkit.inference.gaussian._several_algebra import (
    admissible,
    condition_blocks,
    positive,
    prior_sds,
    rooted,
    site_units,
    times,
)
from probkit.inference.gaussian._several_problem import Several

_SMALLER = 0.3  # of the step: a second search's


def solve(
    problem: Several,
    theta: Array,
    prior: Prior,
    start: Sites,
    *,
    step: float | Array = 1.0,
    tolerance: float | Array = 1e-7,
    max_steps: int = 300,
    allowed: Callable[[Prior, Array, Array], Array] = admissible,
) -> Found:
    """The variational optimum at ``theta``, from ``start``.

    ``allowed(prior, roots, blocks)`` are the blocks that may be gone to: `proper` of the cavities'
    where these are needed too.
    """
    roots, _ = rooted(prior)
    sds = prior_sds(prior)

    def update(sites: Sites) -> tuple[Sites, Array]:
        at = condition_blocks(prior, roots, sites)
        v = at.blocks()
        _, d1, d2 = problem.expected(theta, at.mu, v)
        blocks = allowed(prior, roots, -d2)
        return Sites(d1 + times(blocks, at.mu), blocks), jnp.einsum("aan->an", v)

    def search(turn: Array, before: Sites) -> Found:
        blocks = jnp.where(turn > 0, positive(start.l2, sds), before.l2)
        first = Sites(jnp.where(turn > 0, start.l1, before.l1), blocks)
        size = jnp.where(turn > 0, _SMALLER, 1.0) * step
        return fixed_point(update, first, size, tolerance, max_steps, site_units)

    # (Sites from other hyperparameters need not be allowed here.)
    return up_to_two(search, Sites(start.l1, allowed(prior, roots, start.l2)))


def value(problem: Several, theta: Array, sites: Sites) -> Array:
    """The ELBO at given sites, with its derivative with respect to ``theta`` at its optimum."""
    sites = jax.lax.stop_gradient(sites)
    theta0 = jax.lax.stop_gradient(theta)
    moved = problem.prior(theta)
    prior = jax.lax.stop_gradient(moved)
    at = condition_blocks(prior, rooted(prior)[0], sites)
    mu, v = at.mu, at.blocks()
    divergence = 0.5 * (at.square - jnp.sum(at.precisions * v)) + at.half_log_det
    bound = jnp.sum(problem.mean_terms(theta0, mu, v)) - divergence

    def terms(theta: Array) -> Array:
        return jnp.sum(problem.mean_terms(theta, mu, v))

    return attach(bound, at.adjoint(), moved, terms(theta))
