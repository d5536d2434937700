r"""The exact log evidence of a Gaussian vector with Gaussian terms.

    log t_i(f) = c_i + b_i f - a_i f^2 / 2,     log Z = log G(lambda1 = b, lambda2 = a) + sum_i c_i

in the notation of `_conditioning`. The derivative with respect to the terms is that of their
expectation under the posterior, with ``v_i = (1 - R_ii / a_i) / a_i`` from the inverse that the
kernel's derivative needs anyway. With little noise ``log G`` and ``c`` are large and nearly
opposite, so their sum is taken as ``log_rest`` and the heights of the terms' peaks. Cost: one
Cholesky factor and one inverse.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import (
    Adjoint,
    Sites,
    attach,
    factorise,
    precise_sites,
    precision,
)
from probkit.inference.gaussian._problem import Problem


def value(problem: Problem, theta: Array) -> Array:
    """The log evidence with its derivative with respect to ``theta``."""
    theta0 = jax.lax.stop_gradient(theta)
    prior = problem.prior(theta0)
    a, b, c = problem.latent.gaussian_terms(theta0, problem.arrays)
    sites = Sites(b, a)
    at = factorise(prior, sites)
    r = precision(at)
    slope = Adjoint(0.5 * (jnp.outer(at.alpha, at.alpha) - r), at.alpha)
    seen = jnp.where(a > 0.0, a, 1.0)
    # A row without observations has a = 0 whatever theta is: its derivative is never used.
    v = jnp.where(a > 0.0, (1.0 - jnp.diagonal(r) / seen) / seen, 0.0)

    def terms(theta: Array) -> Array:
        p = problem.peaks(theta)
        return jnp.sum(p.value(at.mu, p.a) - 0.5 * p.a * v)

    height = problem.peaks(theta0).height
    whole = at.log_rest + jnp.sum(jnp.where(precise_sites(prior, sites), height, c))
    return attach(whole, slope, problem.prior, terms, theta)
