r"""A Gaussian vector seen through Gaussian sites: the linear algebra that all engines share.

    f ~ N(m, K),     sites t_i(f_i) = exp(lambda1_i f_i - lambda2_i f_i^2 / 2),   lambda2 >= 0

With ``S = diag(lambda2)^(1/2)``, ``B = I + S K S = L L'`` and ``b = lambda1 - lambda2 m``,

    R = (K + Lambda^-1)^-1 = S B^-1 S,      alpha = K^-1 (mu - m) = b - R K b,
    mu = m + K alpha,                       v = diag(K - K R K),
    log G = log int N(f; m, K) prod t_i = lambda1'm - m'Lambda m / 2 - log|B| / 2 + b'K alpha / 2.

``B`` has no eigenvalue below 1, so neither K nor its inverse is ever factorised, and zero site
precisions need no special case (Rasmussen and Williams 2006, sections 3.4 and 3.6). Cost: one
Cholesky factor, n^3/3, for ``mu`` and ``log G``; the factor's inverse, n^3/3, for ``v`` and R. The
inverse is made of halves by matrix products, which processors do several times faster than a
triangular solve with n right-hand sides; then ``v_i = (1 - (B^-1)_ii) / lambda2_i`` is O(n^2).
Its rounding error, relative to v, is eps / (lambda2 v), and what comes of it is proportional to
``lambda2 v``; where that is below 1e-8, ``v = diag K - |L^-1 S K|^2`` is computed instead.

Gradients. At frozen sites ``dlog G = tr[(alpha alpha' - R) dK] / 2 + alpha'dm``, so every energy
below has its gradient from one inverse of ``L``. `attach` makes a value whose derivative with
respect to the hyperparameters is that one; nothing is differentiated through a factorisation or a
fixed point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array


class Sites(NamedTuple):
    """Natural parameters of the sites, ``(n,)`` each."""

    l1: Array
    l2: Array


class Prior(NamedTuple):
    """Covariance ``(n, n)`` and mean ``(n,)`` of the Gaussian vector."""

    K: Array
    m: Array


class Factor(NamedTuple):
    """What one Cholesky factor gives; see the module's text."""

    tril: Array
    inverse: Array
    s: Array
    alpha: Array
    mu: Array
    log_g: Array
    jitter: Array


class Adjoint(NamedTuple):
    """Derivatives of an energy with respect to ``K`` (symmetric) and ``m``."""

    K: Array
    m: Array


def jittered_cholesky(matrix: Array, tries: int = 8) -> tuple[Array, Array]:
    """The lower factor, and the share of the mean diagonal that had to be added to get it.

    The share is zero unless the plain factor fails; then it grows from n rounding errors to a
    thousandth. The factor is all NaN, and the share infinite, where that does not help either.
    """
    n, mean = matrix.shape[0], jnp.mean(jnp.diagonal(matrix))
    least, largest = n * float(jnp.finfo(matrix.dtype).eps), 1e-3
    growth = max((largest / least) ** (1.0 / (tries - 1)), 1.0)
    eye = jnp.eye(n, dtype=matrix.dtype)

    def broken(tril: Array) -> Array:
        return ~jnp.all(jnp.isfinite(jnp.diagonal(tril)))

    def failed(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < tries) & broken(carry[1])

    def again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        share = least * growth ** carry[0].astype(matrix.dtype)
        return carry[0] + 1, jnp.linalg.cholesky(matrix + share * mean * eye), share

    first = (jnp.int32(0), jnp.linalg.cholesky(matrix), jnp.zeros((), matrix.dtype))
    _, tril, share = jax.lax.while_loop(failed, again, first)
    return tril, jnp.where(broken(tril), jnp.inf, share)


def safe_cholesky(matrix: Array, tries: int = 8) -> Array:
    """The factor of `jittered_cholesky` alone: for where the jitter is reported elsewhere."""
    return jittered_cholesky(matrix, tries)[0]


def lower_inverse(tril: Array, leaf: int = 64) -> Array:
    """The inverse of a lower triangular matrix, by halves.

    ``[[A, 0], [C, D]]^-1 = [[A^-1, 0], [-D^-1 C A^-1, D^-1]]``.
    """
    n = tril.shape[0]
    if n <= max(leaf, 1):
        return solve_triangular(tril, jnp.eye(n, dtype=tril.dtype), lower=True)
    k = n // 2
    first, last = lower_inverse(tril[:k, :k], leaf), lower_inverse(tril[k:, k:], leaf)
    corner = -last @ (tril[k:, :k] @ first)
    zero = jnp.zeros((k, n - k), tril.dtype)
    return jnp.block([[first, zero], [corner, last]])


def factorise(prior: Prior, sites: Sites) -> Factor:
    """Condition the prior on the sites: one Cholesky factor and its inverse."""
    n = prior.m.shape[0]
    s = jnp.sqrt(sites.l2)
    tril, jitter = jittered_cholesky(jnp.eye(n, dtype=s.dtype) + s[:, None] * prior.K * s)
    inverse = lower_inverse(tril, max(64, n // 16))
    b = sites.l1 - sites.l2 * prior.m
    kb = prior.K @ b
    alpha = b - s * cho_solve((tril, True), s * kb)
    ka = prior.K @ alpha
    log_g = jnp.dot(sites.l1, prior.m) - 0.5 * jnp.dot(sites.l2, prior.m**2)
    log_g += 0.5 * jnp.dot(b, ka) - jnp.sum(jnp.log(jnp.diagonal(tril)))
    return Factor(tril, inverse, s, alpha, prior.m + ka, log_g, jitter)


def variances(prior: Prior, factor: Factor) -> Array:
    """Marginal variances ``v``, kept above rounding errors."""
    whole = jnp.diagonal(prior.K)
    l2 = factor.s**2
    shrunk = 1.0 - jnp.sum(factor.inverse**2, axis=0)
    eps = jnp.finfo(whole.dtype).eps
    exact = ~jnp.all(shrunk > 1e8 * eps)
    quick = shrunk / jnp.where(l2 > 0, l2, 1.0)

    # A loop of at most one turn: unlike a `cond`, it is skipped under vmap when nobody needs it.
    def once(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        half = factor.inverse @ (factor.s[:, None] * prior.K)
        return jnp.zeros_like(exact), whole - jnp.sum(half**2, axis=0)

    _, v = jax.lax.while_loop(lambda c: c[0], once, (exact, quick))
    return jnp.clip(v, 8.0 * eps * whole, whole)


def precision(factor: Factor) -> Array:
    """``R = (K + Lambda^-1)^-1``, ``(n, n)``."""
    half = factor.inverse * factor.s
    return half.T @ half


def shrinkage(prior: Prior, factor: Factor) -> Array:
    """``R K``, ``(n, n)``: the share of the prior that the sites replaced."""
    return factor.s[:, None] * (factor.inverse.T @ (factor.inverse @ (factor.s[:, None] * prior.K)))


def adjoint(factor: Factor) -> Adjoint:
    """That of ``log G`` at frozen sites."""
    return Adjoint(0.5 * (jnp.outer(factor.alpha, factor.alpha) - precision(factor)), factor.alpha)


def attach(
    value: Array,
    slope: Adjoint,
    prior: Callable[[Array], Prior],
    terms: Callable[[Array], Array],
    theta: Array,
) -> Array:
    """``value``, with the derivative ``<slope, d prior> + d terms`` with respect to ``theta``.

    Args:
        value: the energy at ``theta``; its own derivative is ignored.
        slope: its derivatives with respect to the prior's parts, which are constants here.
        prior: the prior as a function of ``theta``.
        terms: a scalar of ``theta`` whose derivative is that of the energy through everything but
            the prior; only its derivative counts.
        theta: the point.
    """
    stop = jax.lax.stop_gradient
    value, slope = stop(value), stop(slope)
    moved, extra = prior(theta), terms(theta)
    frozen = stop(moved)
    out = value + jnp.sum(slope.K * (moved.K - frozen.K)) + jnp.dot(slope.m, moved.m - frozen.m)
    return out + (extra - stop(extra))
