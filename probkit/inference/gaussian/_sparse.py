r"""A Gaussian process through inducing points: the linear algebra of the sparse engines.

    u = g(Z) ~ N(0, K_ZZ),   K_ZZ = L L',   u = L v,   g = f - m the process without its mean
    w_i = L^-1 k_Z(x_i),     f_i | v ~ N(m_i + w_i'v, s_i),   s_i = k(x_i, x_i) - w_i'w_i

``q(v) = N(mu, P^-1)`` has natural parameters ``(l1, P = I + l2)``: those of the prior N(0, I) and
of Gaussian sites on v. With ``g1, g2`` the derivatives of ``E_i = E_q[log p(y_i | f_i)]`` with
respect to the mean of ``f_i``, and ``b_i = max(-g2, 0)``, a natural-gradient step of length
``rho`` on

    ELBO = (N / B) sum_i E_i - KL(q(v) || N(0, I))

is closed (Khan and Lin 2017; Salimbeni, Eleftheriadis and Hensman 2018):

    l1 <- (1 - rho) l1 + rho (N/B) sum_i w_i (g1_i + b_i w_i'mu),
    l2 <- (1 - rho) l2 + rho (N/B) sum_i b_i w_i w_i'.                                    (eq. 1)

The sums over a mini-batch of B of N rows are unbiased. When the hyperparameters move, either ``l1``
and ``l2`` stay (SVGP, whitened), or their images under L,

    Lambda1 = L l1 = sum_i k_i (...),   Lambda2 = L l2 L' = sum_i b_i k_i k_i',

stay: the sites tied to u of t-SVGP (Adam, Chang, Khan and Solin 2021, equations 13 to 16), with
``q(u)`` of precision ``K^-1 + K^-1 Lambda2 K^-1``, a tighter bound near the optimum for q.

The sparse energy of power EP (Bui, Yan and Turner 2017; power one) at sites ``(l1_i, l2_i) =
(g1_i + b_i w_i'mu, b_i)`` has, with ``t_i = w_i'mu``, ``c_i = w_i'P^-1 w_i`` and
``a_i = max(1 - l2_i c_i, 1e-5)``,

    log Z = (l1'mu - log|P|) / 2 + (N/B) sum_i [log Z_i - log(a_i) / 2
            + (l2_i t_i^2 - 2 l1_i t_i + l1_i^2 c_i) / 2a_i],                             (eq. 2)
    Z_i = int p(y_i | f) N(f; m_i + (t_i - l1_i c_i) / a_i, s_i + c_i / a_i) df.

With ``Z = X`` it is the dense energy of `_ep`. Its derivative is that with every row's own site
frozen, as in the dense hybrid: with ``Lambda1`` and ``Lambda2`` frozen instead it points the other
way (for 40 probit terms and ``Z = X``: -2.2 instead of 2.5 for the log scale). Cost of b rows:
O(b m^2 + m^3); memory O(b m).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import jittered_cholesky, lower_inverse
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._tilted import Moments

#: What K_ZZ always gets, as a share of its mean diagonal. Points that lie close make it singular to
#: rounding; then its factor may exist, but the factor's derivative is noise.
JITTER = 1e-10
_LEAST_CAVITY = 1e-5


class Natural(NamedTuple):
    """Sites on v (or, for t-SVGP, on u): ``(m,)`` and ``(m, m)``."""

    l1: Array
    l2: Array


class Basis(NamedTuple):
    """The factor of ``K_ZZ``, and the share of its mean diagonal that was added to get it."""

    tril: Array
    jitter: Array


class Rows(NamedTuple):
    """Some rows seen through the basis: ``W (m, b)``, prior means and ``k(x_i, x_i)``, ``(b,)``."""

    w: Array
    mean: Array
    whole: Array


class Gaussian(NamedTuple):
    """``q(v)``: its mean, the inverse of the precision's lower factor, and ``log|P|``."""

    mu: Array
    root: Array
    log_det: Array


class Marginals(NamedTuple):
    """``t_i``, ``c_i`` and ``s_i`` of the module's text, ``(b,)`` each."""

    t: Array
    c: Array
    s: Array


# -- factors ---------------------------------------------------------------------------------------


@jax.custom_jvp
def cholesky(matrix: Array) -> tuple[Array, Array]:
    """The lower factor, and the share of the mean diagonal that it has been given in all."""
    eps = float(jnp.finfo(matrix.dtype).eps)
    base = max(JITTER, 10.0 * eps)
    n, mean = matrix.shape[0], jnp.mean(jnp.diagonal(matrix))
    tril, share = jittered_cholesky(matrix + base * mean * jnp.eye(n, dtype=matrix.dtype))
    return tril, base + share


@cholesky.defjvp
def _cholesky_jvp(primals: tuple, tangents: tuple) -> tuple:
    # dL = L Phi(L^-1 dK L^-T), Phi the lower half with half of the diagonal (Smith 1995).
    (matrix,), (move,) = primals, tangents
    tril, share = cholesky(matrix)
    n = matrix.shape[0]
    move = move + share * jnp.mean(jnp.diagonal(move)) * jnp.eye(n, dtype=matrix.dtype)
    half = solve_triangular(tril, move, lower=True)
    inner = solve_triangular(tril, half.T, lower=True)
    mask = jnp.tril(jnp.ones_like(tril)) - 0.5 * jnp.eye(n, dtype=tril.dtype)
    return (tril, share), (tril @ (mask * inner), jnp.zeros_like(share))


def basis(problem: Problem, theta: Array, z: Array) -> Basis:
    """The factor of the covariance of ``u`` at inducing points of shape ``(m, ...)``."""
    return Basis(*cholesky(problem.latent.cross_covariance(theta, z, z, problem.arrays)))


def project(problem: Problem, theta: Array, z: Array, at: Basis) -> Rows:
    """The problem's rows through the basis."""
    latent, arrays = problem.latent, problem.arrays
    x = latent.points(arrays)
    w = solve_triangular(at.tril, latent.cross_covariance(theta, z, x, arrays), lower=True)
    return Rows(w, latent.mean(theta, arrays), latent.variance(theta, x, arrays))


def whitened(at: Basis, sites: Natural) -> Natural:
    """Sites on v from sites on u."""
    l1 = solve_triangular(at.tril, sites.l1, lower=True)
    half = solve_triangular(at.tril, sites.l2, lower=True)
    return Natural(l1, solve_triangular(at.tril, half.T, lower=True))


def coloured(at: Basis, sites: Natural) -> Natural:
    """Sites on u from sites on v: the inverse of `whitened`."""
    return Natural(at.tril @ sites.l1, at.tril @ sites.l2 @ at.tril.T)


def gaussian(sites: Natural) -> Gaussian:
    """``q(v)`` of sites on v. ``P`` has no eigenvalue below 1, so that its factor exists."""
    n = sites.l1.shape[0]
    p = jnp.eye(n, dtype=sites.l1.dtype) + 0.5 * (sites.l2 + sites.l2.T)
    tril = jnp.linalg.cholesky(p)
    root = lower_inverse(tril)
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(tril)))
    return Gaussian(root.T @ (root @ sites.l1), root, log_det)


def marginals(rows: Rows, q: Gaussian) -> Marginals:
    """What ``q`` says of each row."""
    tiny = 8.0 * jnp.finfo(rows.w.dtype).eps * rows.whole
    c = jnp.sum((q.root @ rows.w) ** 2, axis=0)
    return Marginals(rows.w.T @ q.mu, c, jnp.maximum(rows.whole - jnp.sum(rows.w**2, axis=0), tiny))


def divergence(q: Gaussian) -> Array:
    """``KL(q(v) || N(0, I))``."""
    return 0.5 * (jnp.sum(q.root**2) + jnp.dot(q.mu, q.mu) - q.mu.shape[0] + q.log_det)


# -- terms -----------------------------------------------------------------------------------------


def attached(
    moments: Callable[[Array, Array, Array], Moments],
    theta: Array,
    m: Array,
    v: Array,
    log: bool = False,
) -> tuple[Array, Moments]:
    """Values of a quadrature with their derivatives in ``theta``, ``m`` and ``v``.

    Its nodes are constants, so that those for the mean and the variance are put in by hand:
    ``dE/dv = d2 / 2``, and ``(d2 + d1^2) / 2`` for the logarithm of an expectation.
    """
    stop = jax.lax.stop_gradient
    m0, v0 = stop(m), stop(v)
    found = moments(theta, m0, v0)
    d1, d2 = stop(found.d1), stop(found.d2)
    by_v = 0.5 * (d2 + d1**2 if log else d2)
    return found.value + d1 * (m - m0) + by_v * (v - v0), Moments(stop(found.value), d1, d2)


class Terms(NamedTuple):
    """Expected log terms ``(b,)`` and the sites ``(l1_i, l2_i)`` that eq. 1 makes of them."""

    value: Array
    l1: Array
    l2: Array


def expected_terms(problem: Problem, theta: Array, rows: Rows, at: Marginals) -> Terms:
    """The terms of the ELBO."""
    value, found = attached(problem.expected, theta, rows.mean + at.t, at.s + at.c)
    l2 = jnp.maximum(-found.d2, 0.0)
    return Terms(value, found.d1 + l2 * jax.lax.stop_gradient(at.t), l2)


def target(rows: Rows, terms: Terms, weight: Array | float) -> Natural:
    """The sites on v that a whole step of eq. 1 leads to; ``weight``: N/B, or one a row."""
    w, l1, l2 = jax.lax.stop_gradient((rows.w, terms.l1, terms.l2))
    return Natural(w @ (weight * l1), (w * (weight * l2)) @ w.T)


class Cavities(NamedTuple):
    """Means and variances of ``f_i`` without its own site, and what eq. 2 adds; ``(b,)`` each."""

    m: Array
    v: Array
    phi: Array


def cavities(rows: Rows, at: Marginals, terms: Terms) -> Cavities:
    """Each row's site taken out of its own marginal."""
    left = jnp.maximum(1.0 - terms.l2 * at.c, _LEAST_CAVITY)
    m = rows.mean + (at.t - terms.l1 * at.c) / left
    phi = 0.5 * (terms.l2 * at.t**2 - 2.0 * terms.l1 * at.t + terms.l1**2 * at.c) / left
    return Cavities(m, at.s + at.c / left, phi - 0.5 * jnp.log(left))


def mixed(old: Natural, new: Natural, rho: Array | float) -> Natural:
    """A step of length ``rho`` from old sites to new."""
    return jax.tree.map(lambda a, b: (1.0 - rho) * a + rho * b, old, new)


def refreshed(
    problem: Problem,
    theta: Array,
    rows: Rows,
    own: Natural,
    weight: Array | float,
    rho: Array | float,
    steps: int = 1,
) -> Natural:
    """Sites on v after natural-gradient steps (eq. 1) on these rows; nothing is differentiated."""
    theta, rows, own = jax.lax.stop_gradient((theta, rows, own))

    def once(_: Any, own: Natural) -> Natural:
        terms = expected_terms(problem, theta, rows, marginals(rows, gaussian(own)))
        return mixed(own, target(rows, terms, weight), rho)

    return once(0, own) if steps == 1 else jax.lax.fori_loop(0, steps, once, own)


class Bounds(NamedTuple):
    """An objective and the ELBO (scalars), and the sites on v after the step."""

    value: Array
    elbo: Array
    sites: Natural


def elbo_at(
    problem: Problem,
    theta: Array,
    z: Array,
    sites: Natural,
    tied: bool,
    weight: Array | float,
    rho: Array | float = 0.0,
    first: bool = True,
) -> tuple[Bounds, Basis]:
    """The ELBO with a natural-gradient step, differentiable in ``theta`` and ``z``.

    Args:
        problem: the rows.
        theta: hyperparameters.
        z: inducing points.
        sites: those on v, or on u.
        tied: whether they are those on u.
        weight: rows in the data / rows in the problem.
        rho: length of the step; 0 takes none.
        first: whether the bound is that after the step; before it, where the rows are a part of
            all: a bound after a step on the same rows is too good there, and so is its gradient.
    """
    at = basis(problem, theta, z)
    rows = project(problem, theta, z, at)
    fixed = jax.lax.stop_gradient(at)
    own = whitened(fixed, sites) if tied else sites
    own = refreshed(problem, theta, rows, own, weight, rho) if first else own
    held = whitened(at, coloured(fixed, own)) if tied else own
    q = gaussian(held)
    terms = expected_terms(problem, theta, rows, marginals(rows, q))
    value = weight * jnp.sum(terms.value) - divergence(q)
    after = own if first else mixed(own, target(rows, terms, weight), rho)
    return Bounds(value, value, after), at


def energy_at(
    problem: Problem,
    theta: Array,
    z: Array,
    sites: Natural,
    tied: bool,
    weight: Array | float,
    rho: Array | float = 0.0,
    first: bool = True,
) -> tuple[Bounds, Basis]:
    """Eq. 2 with a natural-gradient step, differentiable in ``theta`` and ``z``.

    Each row's own site ``(l1_i, l2_i)`` is frozen in the derivative, so that the sums of eq. 1 move
    with ``w_i(theta)``; the rows at hand stand for all. Arguments as for `elbo_at`.
    """
    at = basis(problem, theta, z)
    rows = project(problem, theta, z, at)
    fixed = jax.lax.stop_gradient(at)
    own = whitened(fixed, sites) if tied else sites
    own = refreshed(problem, theta, rows, own, weight, rho) if first else own
    still = gaussian(own)
    terms = frozen_sites(problem, theta, rows, still)
    elbo = weight * jnp.sum(terms.value) - divergence(still)
    pulled = pull(rows, terms, weight)
    whole = jax.lax.stop_gradient(pulled)
    moved = jax.tree.map(lambda a, b, c: a + (b - c), own, pulled, whole)
    q = gaussian(moved)
    log_z = evidence_of(moved, q) + energy_terms(problem, theta, rows, q, terms, weight)
    after = own if first else mixed(own, whole, rho)
    return Bounds(log_z, elbo, after), at


def frozen_sites(problem: Problem, theta: Array, rows: Rows, q: Gaussian) -> Terms:
    """Each row's site, a constant as one on f: on f less its mean it moves with that mean."""
    flat, theta0, q = jax.lax.stop_gradient((rows, theta, q))
    terms = expected_terms(problem, theta0, flat, marginals(flat, q))
    return terms._replace(l1=terms.l1 - terms.l2 * (rows.mean - flat.mean))


def pull(rows: Rows, terms: Terms, weight: Array | float) -> Natural:
    """The rows' sites summed up as sites on v; unlike `target` it moves with ``theta``."""
    return Natural(rows.w @ (weight * terms.l1), (rows.w * (weight * terms.l2)) @ rows.w.T)


def evidence_of(sites: Natural, q: Gaussian) -> Array:
    """``log int N(v; 0, I) exp(l1'v - v'l2 v / 2) dv``."""
    return 0.5 * (jnp.dot(sites.l1, q.mu) - q.log_det)


def energy_terms(
    problem: Problem, theta: Array, rows: Rows, q: Gaussian, terms: Terms, weight: Array | float
) -> Array:
    """The sum over rows in eq. 2."""
    away = cavities(rows, marginals(rows, q), terms)
    value, _ = attached(problem.tilted, theta, away.m, away.v, log=True)
    return jnp.sum(weight * (value + away.phi))
