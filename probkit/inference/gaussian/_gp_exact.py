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
    factored_inverse,
    factorise,
    precise_sites,
)
from probkit.inference.gaussian._problem import Problem


def value(problem: Problem, theta: Array) -> Array:
    """The log evidence with its derivative with respect to ``theta``."""
    moved, terms = problem.prior(theta), problem.peaks(theta)
    prior, known = jax.lax.stop_gradient((moved, terms))
    a = known.a
    sites = Sites(known.b, a)
    at = factorise(prior, sites)
    r = at.s[:, None] * at.s * factored_inverse(at.tril)
    slope = Adjoint(0.5 * (jnp.outer(at.alpha, at.alpha) - r), at.alpha)
    seen = jnp.where(a > 0.0, a, 1.0)
    # A row without observations has a = 0 whatever theta is: its derivative is never used.
    v = jnp.where(a > 0.0, (1.0 - jnp.diagonal(r) / seen) / seen, 0.0)
    whole = jnp.sum(jnp.where(precise_sites(prior, sites), known.height, known.c)) + at.log_rest
    expected = problem.terms(theta)(at.mu) - 0.5 * terms.a * v
    return attach(whole, slope, moved, jnp.sum(expected))
