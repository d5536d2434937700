r"""The exact log evidence of a Gaussian vector with Gaussian terms.

    log t_i(f) = c_i + b_i f - a_i f^2 / 2,     log Z = log G(lambda1 = b, lambda2 = a) + sum_i c_i

in the notation of `_conditioning`. The derivative with respect to the terms is that of their
expectation under the posterior, with ``v_i = (1 - R_ii / a_i) / a_i`` from the inverse that the
kernel's derivative needs anyway, and so are the leave-one-out densities (`Peaks.left_out`). With
little noise ``log G`` and ``c`` are large and nearly opposite, so their sum is taken as
``log_rest`` and the heights of the terms' peaks. Cost: one Cholesky factor and one inverse.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import (
    Adjoint,
    Sites,
    attach,
    factored,
    factored_inverse,
    precise_sites,
)
from probkit.inference.gaussian._problem import Problem


def value(problem: Problem, theta: Array) -> Array:
    """The log evidence with its derivative with respect to ``theta``."""
    return evidence(problem, theta, jnp.asarray(-jnp.inf, theta.dtype))[0]


def evidence(problem: Problem, theta: Array, least: Array) -> tuple[Array, Sites, dict[str, Array]]:
    """`value`, the terms as sites, and what `summarise` gives: NaN where that takes more.

    Where the value is below ``least``, the inverse is not made, and all that takes it is NaN.
    """
    moved, terms = problem.prior(theta), problem.peaks(theta)
    prior, known = jax.lax.stop_gradient((moved, terms))
    a = known.a
    sites = Sites(known.b, a)
    at = factored(prior, sites)
    whole = jnp.sum(jnp.where(precise_sites(prior, sites), known.height, known.c)) + at.log_rest
    low = whole < least
    inverse = jax.lax.cond(low, _unknown, factored_inverse, at.tril)
    r = at.s[:, None] * at.s * inverse
    slope = Adjoint(0.5 * (jnp.outer(at.alpha, at.alpha) - r), at.alpha)
    seen, each = jnp.where(a > 0.0, a, 1.0), jnp.diagonal(r)
    shrunk = 1.0 - each / seen
    # A row without observations has a = 0 whatever theta is: its derivative is never used.
    v = jnp.where(a > 0.0, shrunk / seen, 0.0)
    expected = problem.terms(theta)(at.mu) - 0.5 * terms.a * v
    known_v = jnp.where((a > 0.0) & (shrunk > 1e8 * jnp.finfo(v.dtype).eps), v, jnp.nan)
    loo = known.left_out(at.alpha, each)
    told = {"mean": at.mu, "sd": jnp.sqrt(known_v), "loo": loo, "jitter": at.jitter}
    return attach(whole, slope, moved, jnp.sum(expected)), sites, jax.lax.stop_gradient(told)


def _unknown(matrix: Array) -> Array:
    return jnp.full_like(matrix, jnp.nan)
