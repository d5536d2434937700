r"""The exact log evidence of a Gaussian vector with Gaussian terms.

    log t_i(f) = c_i + b_i f - a_i f^2 / 2,     log Z = log G(lambda1 = b, lambda2 = a) + sum_i c_i

in the notation of `_conditioning`. Derivatives with respect to the terms: ``mu`` for ``b`` and
``-(v + mu^2) / 2`` for ``a``, with ``v_i = (1 - R_ii / a_i) / a_i`` from the inverse that the
kernel's derivative needs anyway. Cost: one Cholesky factor and one inverse.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import Adjoint, Sites, attach, factorise, precision
from probkit.inference.gaussian._problem import Problem


def value(problem: Problem, theta: Array) -> Array:
    """The log evidence with its derivative with respect to ``theta``."""
    theta0 = jax.lax.stop_gradient(theta)
    prior = problem.prior(theta0)
    a, b, c = problem.latent.gaussian_terms(theta0, problem.arrays)
    at = factorise(prior, Sites(b, a))
    r = precision(at)
    slope = Adjoint(0.5 * (jnp.outer(at.alpha, at.alpha) - r), at.alpha)
    seen = jnp.where(a > 0.0, a, 1.0)
    # A row without observations has a = 0 whatever theta is: its derivative is never used.
    v = jnp.where(a > 0.0, (1.0 - jnp.diagonal(r) / seen) / seen, 0.0)

    def terms(theta: Array) -> Array:
        a, b, c = problem.latent.gaussian_terms(theta, problem.arrays)
        return jnp.dot(at.mu, b) - 0.5 * jnp.dot(v + at.mu**2, a) + jnp.sum(c)

    return attach(at.log_g + jnp.sum(c), slope, problem.prior, terms, theta)
