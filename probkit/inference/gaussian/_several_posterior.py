r"""The Gaussian posterior of several processes: draws, moments, and predictions at new rows.

Leave-one-out densities are those of the cavities, ``N((I - Sigma Lambda)^-1 (mu - Sigma lambda1),
Sigma (I - Lambda Sigma)^-1)`` in C dimensions, integrated by quadrature, and so are predictive
ones: class probabilities are ``E[softmax(f*)]`` over the joint normal of a row's C functions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Target
from probkit.core._programs import compiled
from probkit.core._trees import in_precision
from probkit.inference.gaussian._conditioning import Sites
from probkit.inference.gaussian._several_algebra import (
    condition,
    rooted,
)
from probkit.inference.gaussian._several_cavities import cavities
from probkit.inference.gaussian._several_problem import Several


def summarise(problem: Several, theta: Array, sites: Sites) -> dict[str, Array]:
    """Means and sds ``(C, n)``, leave-one-out log densities ``(n,)``, and the jitters needed."""
    prior = problem.prior(theta)
    at = condition(prior, sites)
    cavity = cavities(at, sites.l1)
    return {
        "mean": at.mu,
        "sd": jnp.sqrt(jnp.einsum("aan->an", at.blocks())),
        "loo": problem.log_tilted(theta, cavity.mean, cavity.cov),
        "jitters": rooted(prior)[1],
    }


def draws(problem: Several, theta: Array, sites: Sites, key: Array, count: int) -> Array:
    """Draws of all functions, ``(count, C, n)``."""
    at = condition(problem.prior(theta), sites)
    return at.mu + at.noise(key, count)


def moments_at(problem: Several, theta: Array, sites: Sites, new: Several) -> tuple[Array, Array]:
    """Means ``(C, n*)`` and covariances ``(C, C, n*)`` of the functions at new rows."""
    at = condition(problem.prior(theta), sites)
    cross = problem.latent.cross_covariance(theta, problem.arrays, new.arrays)
    gap, cov = at.ahead(cross, problem.latent.variance(theta, problem.arrays, new.arrays))
    return new.latent.mean(theta, new.arrays) + gap, cov


def predict_rows(target: Target, fitted: Approximation, new: Target) -> dict[str, np.ndarray]:
    """At the rows of another Target of the same model: moments and densities, integrated.

    Args:
        target: what was fitted.
        fitted: what an engine returned for it (``posterior.approximation``).
        new: the same model bound to other rows, with outcomes.

    Returns:
        ``mean`` ``(C, n*)`` and ``cov`` ``(C, C, n*)`` of the functions, and ``log_density``
        ``(n*,)`` of the outcomes.
    """

    def fn(params: dict[str, Any], arrays: dict) -> dict[str, Array]:
        sites = Sites(params["l1"], params["l2"])
        program, old = target.program, params["arrays"]
        problem = Several(program.gaussian_latents(old), old, None)
        ahead = Several(new.program.gaussian_latents(arrays), arrays, None)
        mean, cov = moments_at(problem, params["theta"], sites, ahead)
        density = ahead.log_tilted(params["theta"], mean, cov)
        return {"mean": mean, "cov": cov, "log_density": density}

    with in_precision(target.dtype):
        args = (fitted.params, new.arrays)
        program = compiled(new.program, "gp_predict", target.program, fn, args)
        return jax.tree.map(np.asarray, program(*args))
