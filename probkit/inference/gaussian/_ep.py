r"""Expectation propagation and power EP for a Gaussian vector with pointwise terms.

Sites ``t_i(f) = exp(lambda1 f - lambda2 f^2 / 2)``; marginals ``N(mu_i, v_i)`` of the Gaussian
posterior; power ``a`` (1: EP; towards 0: variational). The cavity and the undamped update are

    t = 1/v - a lambda2,   n = mu/v - a lambda1,   log Z_i = log E_N(n/t, 1/t)[p(y_i | f)^a],
    lambda2* = -d2 / (1 + d2/t) / a,               lambda1* = (d1 - d2 n/t) / (1 + d2/t) / a

with ``d1, d2`` the derivatives of ``log Z_i`` with respect to the cavity mean: the Gaussian that
matches the tilted moments. All sites move at once, damped. Negative precisions, which terms that
are not log-concave can ask for, are set to zero. The energy

    log Z = log G + (1/a) sum_i [log Z_i + Phi(n_i, t_i) - Phi(mu_i/v_i, 1/v_i)],
    Phi(n, t) = n^2 / 2t - log(t) / 2

is stationary in the sites at the fixed point, so that its derivative with respect to the kernel is
that at frozen sites, ``tr[(alpha alpha' - R) dK] / 2``. Sources: Minka (2001); Rasmussen and
Williams (2006), section 3.6; Minka (2004), for the power; Seeger (2005), for the gradient. Cost a
step: one Cholesky factor and its inverse, 2/3 n^3.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import (
    Adjoint,
    Factor,
    Prior,
    Sites,
    adjoint,
    attach,
    factorise,
    shrinkage,
    variances,
)
from probkit.inference.gaussian._fixed_point import Found, fixed_point
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._tilted import Moments


class Cavity(NamedTuple):
    """Natural parameters ``n, t`` of the cavities and the moments of their tilted terms."""

    n: Array
    t: Array
    moments: Moments


def cavity(
    problem: Problem, theta: Array, mu: Array, v: Array, sites: Sites, power: float | Array
) -> Cavity:
    """Take a share ``power`` of each site out of its marginal."""
    tiny = 64.0 * jnp.finfo(v.dtype).eps
    t = jnp.maximum(1.0 / v - power * sites.l2, tiny / v)
    n = mu / v - power * sites.l1
    return Cavity(n, t, problem.tilted(theta, n / t, 1.0 / t, power))


def matched(at: Cavity, power: float | Array) -> Sites:
    """The sites that match the tilted moments."""
    _, d1, d2 = at.moments
    # 1 + d2/t is the ratio of the tilted to the cavity's variance: positive but for rounding.
    shrink = jnp.maximum(1.0 + d2 / at.t, 1e-10)
    l2 = jnp.maximum(-d2 / shrink / power, 0.0)
    # Where the precision was cut at zero, the mean alone is matched.
    l1 = jnp.where(l2 > 0.0, (d1 - d2 * at.n / at.t) / shrink, d1) / power
    return Sites(l1, l2)


def solve(
    problem: Problem,
    theta: Array,
    prior: Prior,
    start: Sites,
    *,
    power: float | Array = 1.0,
    damping: float | Array = 0.8,
    tolerance: float | Array = 1e-7,
    max_steps: int = 500,
) -> Found:
    """EP's fixed point at ``theta``, from ``start``."""

    def update(sites: Sites) -> tuple[Sites, Array]:
        factor = factorise(prior, sites)
        v = variances(prior, factor)
        return matched(cavity(problem, theta, factor.mu, v, sites, power), power), v

    return fixed_point(update, start, damping, tolerance, max_steps)


class Energy(NamedTuple):
    """EP's log evidence at given sites, and what its derivatives need."""

    value: Array
    cavity: Cavity
    factor: Factor
    v: Array


def energy(
    problem: Problem, theta: Array, prior: Prior, sites: Sites, power: float | Array = 1.0
) -> Energy:
    """The energy at any sites: EP's log evidence at EP's fixed point, the hybrid's at CVI's."""
    factor = factorise(prior, sites)
    mu, v = factor.mu, variances(prior, factor)
    at = cavity(problem, theta, mu, v, sites, power)
    phi = 0.5 * (at.n**2 / at.t - mu**2 / v - jnp.log(at.t * v))
    value = factor.log_g + jnp.sum(at.moments.value + phi) / power
    return Energy(value, at, factor, v)


def frozen(prior: Prior, at: Energy, power: float | Array) -> Adjoint:
    """The energy's derivatives at frozen sites, wherever the sites are (not only at EP's).

    The marginals move with K, and away from EP's fixed point the cavities feel it:
    ``dc/dmu = a`` and ``dc/dv = b`` below, with ``d mu = (I - K R)(dm + dK alpha)`` and
    ``d Sigma = (I - K R) dK (I - R K)``.
    """
    factor, v, mu = at.factor, at.v, at.factor.mu
    mean, var = at.cavity.n / at.cavity.t, 1.0 / at.cavity.t
    _, d1, d2 = at.cavity.moments
    new_mean, new_var = mean + var * d1, var + d2 * var**2
    by_first = (new_mean - mu) / power
    by_second = -0.5 * (new_var + new_mean**2 - v - mu**2) / power
    a = by_first / v
    b = -(mu / v**2) * by_first - by_second / v**2
    rk = shrinkage(prior, factor)
    pull = a - rk @ a
    w = jnp.eye(v.shape[0], dtype=v.dtype) - rk
    plain = adjoint(factor)
    outer = jnp.outer(pull, factor.alpha)
    return Adjoint(plain.K + 0.5 * (outer + outer.T) + (w * b) @ w.T, plain.m + pull)


def value(
    problem: Problem,
    theta: Array,
    sites: Sites,
    *,
    power: float | Array = 1.0,
    exact: bool = True,
) -> Array:
    """The energy with its derivative with respect to ``theta``.

    Args:
        problem: the model.
        theta: hyperparameters.
        sites: the sites; constants.
        power: EP's power.
        exact: whether the sites are EP's fixed point, where the derivative is simpler.
    """
    sites, power = jax.lax.stop_gradient((sites, power))
    theta0 = jax.lax.stop_gradient(theta)
    moved = problem.prior(theta)
    prior = jax.lax.stop_gradient(moved)
    at = energy(problem, theta0, prior, sites, power)
    slope = adjoint(at.factor) if exact else frozen(prior, at, power)
    n, t = at.cavity.n, at.cavity.t

    def terms(theta: Array) -> Array:
        return jnp.sum(problem.tilted(theta, n / t, 1.0 / t, power).value) / power

    return attach(at.value, slope, moved, terms(theta))
