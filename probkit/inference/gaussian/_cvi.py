r"""Conjugate-computation variational inference: natural gradients as updates of Gaussian sites.

Among Gaussians ``q = N(mu, Sigma)``, the evidence lower bound

    ELBO = sum_i E_q[log p(y_i | f_i)] - KL(q || p)

is largest for a ``q`` that is the prior times Gaussian sites. With ``g1, g2`` the first and second
derivatives of the i-th expectation with respect to ``mu_i``, natural-gradient ascent of step
``beta`` is

    lambda1 <- (1 - beta) lambda1 + beta (g1 - g2 mu),   lambda2 <- (1 - beta) lambda2 - beta g2

(Khan and Lin 2017), a fixed point of the same kind as EP's. For Gaussian terms one step of size 1
is exact. In the sites, ``KL = sum(lambda1 mu - lambda2 (v + mu^2) / 2) - log G``. At the optimum
the derivative with respect to the kernel is ``tr[(alpha alpha' - R) dK] / 2``. Precisions that
terms without log-concavity make negative are set to zero. Cost a step: 2/3 n^3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import (
    Prior,
    Sites,
    adjoint,
    attach,
    factorise,
    variances,
)
from probkit.inference.gaussian._fixed_point import Found, fixed_point
from probkit.inference.gaussian._problem import Problem


def solve(
    problem: Problem,
    theta: Array,
    prior: Prior,
    start: Sites,
    *,
    step: float | Array = 1.0,
    tolerance: float | Array = 1e-7,
    max_steps: int = 300,
) -> Found:
    """The variational optimum at ``theta``, from ``start``."""

    def update(sites: Sites) -> tuple[Sites, Array]:
        factor = factorise(prior, sites)
        v = variances(prior, factor)
        _, g1, g2 = problem.expected(theta, factor.mu, v)
        l2 = jnp.maximum(-g2, 0.0)
        return Sites(g1 + l2 * factor.mu, l2), v

    return fixed_point(update, start, step, tolerance, max_steps)


def value(problem: Problem, theta: Array, sites: Sites) -> Array:
    """The ELBO at given sites, with its derivative with respect to ``theta`` at its optimum."""
    sites = jax.lax.stop_gradient(sites)
    theta0 = jax.lax.stop_gradient(theta)
    moved = problem.prior(theta)
    prior = jax.lax.stop_gradient(moved)
    factor = factorise(prior, sites)
    mu, v = factor.mu, variances(prior, factor)
    divergence = jnp.sum(sites.l1 * mu - 0.5 * sites.l2 * (v + mu**2)) - factor.log_g
    bound = jnp.sum(problem.expected(theta0, mu, v).value) - divergence

    def terms(theta: Array) -> Array:
        return jnp.sum(problem.expected(theta, mu, v).value)

    return attach(bound, adjoint(factor), moved, terms(theta))
