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
    Conditioned,
    by_process,
    by_row,
    condition,
    prior_sds,
    rooted,
)
from probkit.inference.gaussian._several_problem import Several

_LEAST = 1e-10  # of the prior's variance: what rounding leaves of a cavity's


def cavities(at: Conditioned, l1: Array, sds: Array) -> tuple[Array, Array]:
    """Means ``(C, n)`` and covariances ``(C, C, n)`` of the rows without their own sites."""
    cov, blocks = by_row(at.blocks()), by_row(at.precisions)
    eye = jnp.eye(cov.shape[1], dtype=cov.dtype)
    pull = jnp.einsum("nab,bn->na", cov, l1)
    gap = at.mu.T - pull
    mean = jnp.linalg.solve(eye - cov @ blocks, gap[..., None])[..., 0]
    out = jnp.swapaxes(jnp.linalg.solve(eye - cov @ blocks, cov), 1, 2)
    unit = by_row(sds[:, None] * sds[None])
    values, vectors = jnp.linalg.eigh(0.5 * (out + jnp.swapaxes(out, 1, 2)) / unit)
    kept = jnp.maximum(values, _LEAST)
    whole = (vectors * kept[:, None]) @ jnp.swapaxes(vectors, 1, 2) * unit
    return mean.T, by_process(whole)


def summarise(problem: Several, theta: Array, sites: Sites) -> dict[str, Array]:
    """Means and sds ``(C, n)``, leave-one-out log densities ``(n,)``, and the jitters needed."""
    prior = problem.prior(theta)
    at = condition(prior, sites)
    cavity = cavities(at, sites.l1, prior_sds(prior))
    return {
        "mean": at.mu,
        "sd": jnp.sqrt(jnp.einsum("aan->an", at.blocks())),
        "loo": problem.log_tilted(theta, *cavity),
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
