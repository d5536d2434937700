r"""The Gaussian posterior that an engine leaves: draws, moments, and predictions at new rows.

Given hyperparameters and sites, ``f ~ N(mu, Sigma)`` with ``Sigma = (K^-1 + Lambda)^-1``. Draws
are made without factorising Sigma: with ``g ~ N(0, K)`` and ``e ~ N(0, I)``,

    f = mu + g - K S B^-1 (S g + e)

(Matheron's rule, seen through pseudo-observations of noise ``Lambda^-1``). At new points

    mean* = m* + k*' alpha,    var* = k** - |L^-1 S k*|^2.

Predictive densities are integrated over ``f*`` by the same quadrature as the fit. Leave-one-out
densities are those of the cavities, ``log int p(y_i | f) q_-i(f) df``; for Gaussian terms they are
exact, and told without a cavity (`Peaks.left_out`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array

from probkit.core import Approximation, Status, Target
from probkit.core._check import Check
from probkit.core._programs import compiled
from probkit.core._target import Program
from probkit.core._trees import in_precision
from probkit.inference.gaussian import _several_cvi, _several_posterior
from probkit.inference.gaussian._conditioning import (
    Sites,
    factorise,
    jittered_cholesky,
    safe_cholesky,
    variances,
)
from probkit.inference.gaussian._ep import cavity
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._several_problem import Several, posed
from probkit.inference.gaussian._sparse_rows import by_rows


def problem_of(program: Program, arrays: dict) -> Problem:
    """The problem of a Program and arrays that fit it."""
    return Problem.of(Target(program, arrays))


def summarise(program: Program, params: dict, bounded: bool = False) -> dict[str, Array]:
    """Means and sds of ``f``, and leave-one-out log densities, ``(n,)`` each.

    And the jitters, as shares of the mean diagonal, that the two factors needed: that of the
    conditioned prior, and that of the prior itself, which draws are made with. Of several
    processes, where ``bounded`` asks for it, also the evidence lower bound of their Gaussian.
    """
    problem, theta, sites = _parts(program, params)
    if isinstance(problem, Several):
        out = _several_posterior.summarise(problem, theta, sites)
        return {**out, "bound": _several_cvi.value(problem, theta, sites)} if bounded else out
    prior = problem.prior(theta)
    factor = factorise(prior, sites)
    v = variances(prior, factor)
    if problem.kind == "gaussian":
        each = sites.l2 * jnp.sum(factor.inverse**2, axis=0)
        loo = problem.peaks(theta).left_out(factor.alpha, each)
    else:
        loo = cavity(problem, theta, factor.mu, v, sites, 1.0).moments.value
    jitters = jnp.stack([factor.jitter, jittered_cholesky(prior.K)[1]])
    return {"mean": factor.mu, "sd": jnp.sqrt(v), "loo": loo, "jitters": jitters}


def draw(program: Program, params: dict, key: Array, n: int) -> Array:
    """``n`` points of the model's own unconstrained space, ``(n, d)``."""
    problem, theta, sites = _parts(program, params)

    def point(f: Array) -> Array:
        return program.flat.ravel(problem.latent.point(theta, f, problem.arrays))

    if isinstance(problem, Several):
        # One by one: a point whitens each of the functions with a factor of its own.
        return jax.lax.map(point, _several_posterior.draws(problem, theta, sites, key, n))
    prior = problem.prior(theta)
    factor = factorise(prior, sites)
    noise = jax.random.normal(key, (2, prior.m.shape[0], n), prior.m.dtype)
    g = safe_cholesky(prior.K) @ noise[0]
    s = factor.s[:, None]
    f = factor.mu[:, None] + g
    f -= prior.K @ (s * cho_solve((factor.tril, True), s * g + noise[1]))
    return jax.vmap(point)(f.T)


def _parts(program: Program, params: dict) -> tuple[Problem | Several, Array, Sites]:
    problem = posed(program, params["arrays"], params["l2"].ndim == params["l1"].ndim)
    return problem, params["theta"], Sites(params["l1"], params["l2"])


def approximation(
    target: Target,
    params: dict,
    draws: int,
    stats: dict[str, Any],
    checks: tuple[Check, ...],
    status: Status,
) -> Approximation:
    """The result of a fit: a point in ``theta`` and a Gaussian in ``f``."""
    program = target.program

    def sample(params: dict, key: Array, n: int) -> Array:
        return draw(program, params, key, n)

    return Approximation(
        sample=sample,
        log_density=None,
        params=params,
        draws=draws,
        key="gaussian_sites",
        log_evidence=stats["log_evidence"],
        stats=stats,
        status=status,
        checks=checks,
        ahead=log_predictive if params["l2"].ndim == params["l1"].ndim else None,
    )


def predict_latent(
    target: Target, fitted: Approximation, new: Target
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of ``f`` at the rows of another Target of the same model.

    Args:
        target: what was fitted.
        fitted: what an engine returned for it (``posterior.approximation``).
        new: the same model bound to other rows.

    Returns:
        Two arrays of the new rows' shape ``(n*,)``, in units of ``f``.
    """
    found = _predict(target, fitted, new)
    return found["mean"], found["var"]


def log_predictive(target: Target, fitted: Approximation, new: Target) -> np.ndarray:
    """Log predictive density of the outcomes in ``new``, integrated over ``f``: ``(n*,)``."""
    return _predict(target, fitted, new)["log_density"]


def _predict(target: Target, fitted: Approximation, new: Target) -> dict[str, np.ndarray]:
    def fn(params: dict, arrays: dict) -> dict[str, Array]:
        problem, theta = problem_of(target.program, params["arrays"]), params["theta"]
        sites = Sites(params["l1"], params["l2"])
        factor = factorise(problem.prior(theta), sites)
        old = problem.latent.points(problem.arrays)

        def some(few: Problem) -> dict[str, Array]:
            points = few.latent.points(arrays)
            cross = problem.latent.cross_covariance(theta, old, points, problem.arrays)
            mean = few.latent.mean(theta, arrays) + cross.T @ factor.alpha
            half = factor.inverse @ (factor.s[:, None] * cross)
            whole = few.latent.variance(theta, points, arrays)
            tiny = 8.0 * jnp.finfo(whole.dtype).eps * whole
            var = jnp.maximum(whole - jnp.sum(half**2, axis=0), tiny)
            return {"mean": mean, "var": var, "log_density": few.tilted(theta, mean, var).value}

        return by_rows(problem_of(new.program, arrays), some)

    with in_precision(target.dtype):
        args = (fitted.params, new.arrays)
        program = compiled(new.program, "gp_predict", target.program, fn, args)
        return {k: np.asarray(v) for k, v in program(*args).items()}
