r"""A Gaussian vector seen through Gaussian sites: the linear algebra that all engines share.

    f ~ N(m, K),     sites t_i(f_i) = exp(lambda1_i f_i - lambda2_i f_i^2 / 2),   lambda2 >= 0

With ``S = diag(lambda2)^(1/2)``, ``B = I + S K S = L L'`` and ``b = lambda1 - lambda2 m``,

    R = (K + Lambda^-1)^-1 = S B^-1 S,      alpha = K^-1 (mu - m) = b - R K b,
    mu = m + K alpha,                       v = diag(K - K R K),
    log G = log int N(f; m, K) prod t_i = lambda1'm - m'Lambda m / 2 - log|B| / 2 + b'K alpha / 2.

Where a site is precise, ``b`` is large and most of it cancels in ``b - R K b`` (with noise of 1e-5
nothing would be left). As ``S - R K S = S B^-1``, the split ``b = S t + r``, with ``r`` the entries
of sites that say nothing, has no such differences:

    alpha = r + S w,    B w = t - S K r,    b'K alpha = t't - t'w + r'K alpha.

The sum of ``t^2 / 2``, the heights of the sites' peaks, is what a Gaussian term's own constant
takes away again; ``log_rest`` is ``log G`` without it.

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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
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
    log_rest: Array
    jitter: Array


class Adjoint(NamedTuple):
    """Derivatives of an energy with respect to ``K`` (symmetric) and ``m``."""

    K: Array
    m: Array


def jittered_cholesky(matrix: Array, tries: int = 8) -> tuple[Array, Array]:
    """The lower factor, and the share of the mean diagonal that had to be added to get it.

    The matrix has to be symmetric to the last bit. The share is zero unless the plain factor fails;
    then it grows from n rounding errors to a thousandth. The factor is all NaN, and the share
    infinite, where that does not help either.
    """
    n, mean = matrix.shape[0], jnp.mean(jnp.diagonal(matrix))
    least, largest = n * float(jnp.finfo(matrix.dtype).eps), 1e-3
    growth = max((largest / least) ** (1.0 / (tries - 1)), 1.0)
    eye = jnp.eye(n, dtype=matrix.dtype)

    def broken(tril: Array) -> Array:
        return ~jnp.isfinite(tril[-1, -1])  # a factor that failed is NaN all over

    def failed(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] <= tries) & broken(carry[1])

    # The first try is a turn of the loop like the others: a second factorisation would be compiled.
    # (LAPACK's columns are our rows: the transpose moves nothing. Nor is there a mean of the matrix
    # with its transpose, the default, which would pass across its columns.)
    def attempt(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        k, _, share = carry
        share = jnp.where(k > 1, growth * share, jnp.where(k > 0, least, 0.0))
        whole = matrix + (share * mean) * eye
        return k + 1, jnp.linalg.cholesky(whole.T, symmetrize_input=False), share

    nothing = jnp.full_like(matrix, jnp.nan)
    first = (jnp.int32(0), nothing, jnp.zeros((), matrix.dtype))
    _, tril, share = jax.lax.while_loop(failed, attempt, first)
    return tril, jnp.where(broken(tril), jnp.inf, share)


def little_jitter(matrix: Array) -> Array:
    """The least share of `jittered_cholesky`, where no more is needed; else NaN."""
    n, mean = matrix.shape[0], jnp.mean(jnp.diagonal(matrix))
    least = n * float(jnp.finfo(matrix.dtype).eps)
    whole = matrix + (least * mean) * jnp.eye(n, dtype=matrix.dtype)
    tril = jnp.linalg.cholesky(whole.T, symmetrize_input=False)
    return least + 0.0 * tril[-1, -1]


def safe_cholesky(matrix: Array, tries: int = 8) -> Array:
    """The factor of `jittered_cholesky` alone: for where the jitter is reported elsewhere."""
    return jittered_cholesky(matrix, tries)[0]


def _leaf(n: int) -> int:
    """Where halving ends: further halves are a tenth faster, and each doubles the compilation."""
    return max(64, -(-n // 4))


def lower_inverse(tril: Array, leaf: int = 64) -> Array:
    """The inverse of a lower triangular matrix, by halves.

    ``[[A, 0], [C, D]]^-1 = [[A^-1, 0], [-D^-1 C A^-1, D^-1]]``.
    """
    n = tril.shape[0]
    if n <= max(leaf, 1):
        return solve_triangular(tril, jnp.eye(n, dtype=tril.dtype), lower=True)
    k = n // 2
    first, last = lower_inverse(tril[:k, :k], leaf), lower_inverse(tril[k:, k:], leaf)
    corner = -(last @ (tril[k:, :k] @ first))
    zero = jnp.zeros((k, n - k), tril.dtype)
    return jnp.block([[first, zero], [corner, last]])


def lower_gram(tril: Array, leaf: int = 64) -> Array:
    """``T'T`` of a lower triangular matrix, by halves: a third of the work of the plain product.

    ``[[A, 0], [C, D]]'[[A, 0], [C, D]] = [[A'A + C'C, C'D], [D'C, D'D]]``.
    """
    return _upper_gram(tril.T, leaf)


def _upper_gram(upper: Array, leaf: int) -> Array:
    n = upper.shape[0]
    if n <= max(leaf, 1):
        return upper @ upper.T
    k = n // 2
    corner, last = upper[:k, k:], upper[k:, k:]
    across = corner @ last.T
    first = _upper_gram(upper[:k, :k], leaf) + corner @ corner.T
    return jnp.block([[first, across], [across.T, _upper_gram(last, leaf)]])


def factored_inverse(tril: Array) -> Array:
    """``(L L')^-1`` of a lower triangular ``L``, by halves.

    ``[[A, 0], [C, D]]``: with ``W = C A^-1`` the last block is ``(D D')^-1``, the one beside it
    ``-(D D')^-1 W``, and the first ``(A A')^-1 + W' (D D')^-1 W``.
    """
    n, k = tril.shape[0], tril.shape[0] // 2
    if k < 64:
        upper = solve_triangular(tril, jnp.eye(n, dtype=tril.dtype), lower=True, trans=1)
        return upper @ upper.T
    a, d = tril[:k, :k], tril[k:, k:]
    a = solve_triangular(a, jnp.eye(k, dtype=a.dtype), lower=True, trans=1)
    d = solve_triangular(d, jnp.eye(n - k, dtype=d.dtype), lower=True, trans=1)
    w, last = tril[k:, :k] @ a.T, d @ d.T
    across = -(last @ w)
    return jnp.block([[a @ a.T - w.T @ across, across.T], [across, last]])


def factorise(prior: Prior, sites: Sites) -> Factor:
    """Condition the prior on the sites: one Cholesky factor and its inverse."""
    factor = factored(prior, sites)
    return factor._replace(inverse=lower_inverse(factor.tril, _leaf(len(factor.s))))


def factored(prior: Prior, sites: Sites) -> Factor:
    """What `factorise` gives, with an empty matrix in the place of the inverse."""
    n = prior.m.shape[0]
    s = jnp.sqrt(sites.l2)
    tril, jitter = jittered_cholesky(jnp.eye(n, dtype=s.dtype) + s[:, None] * s * prior.K)
    split = split_by_precision(prior, sites, sites.l1 - sites.l2 * prior.m)
    alpha, squares = weights(prior, s, tril, split)
    ka = prior.K @ alpha
    quiet = jnp.where(split.precise, 0.0, sites.l1 * prior.m - 0.5 * sites.l2 * prior.m**2)
    rest = jnp.sum(quiet + 0.5 * (split.r * ka - squares) - jnp.log(jnp.diagonal(tril)))
    log_g = rest + jnp.sum(jnp.where(split.precise, site_heights(sites), 0.0))
    none = jnp.zeros((0, 0), s.dtype)
    return Factor(tril, none, s, alpha, prior.m + ka, log_g, rest, jitter)


def site_heights(sites: Sites) -> Array:
    """How high the sites are at their peaks, ``lambda1^2 / 2 lambda2``; 0 without one."""
    peaked = sites.l2 > 0.0
    return jnp.where(peaked, 0.5 * sites.l1**2 / jnp.where(peaked, sites.l2, 1.0), 0.0)


def precise_sites(prior: Prior, sites: Sites) -> Array:
    """Which sites say something against the prior."""
    return sites.l2 * jnp.diagonal(prior.K) > 1e-8


class Split(NamedTuple):
    """A vector as ``S t + r``; see the module's text."""

    t: Array
    r: Array
    precise: Array


def split_by_precision(prior: Prior, sites: Sites, b: Array) -> Split:
    """``b`` divided among the sites that are precise against the prior and the others."""
    precise = precise_sites(prior, sites)
    t = jnp.where(precise, b / jnp.sqrt(jnp.where(precise, sites.l2, 1.0)), 0.0)
    return Split(t, jnp.where(precise, 0.0, b), precise)


def weights(prior: Prior, s: Array, tril: Array, split: Split) -> tuple[Array, Array]:
    """``alpha``, and terms ``(n,)`` whose sum is ``t'w``, of a split vector.

    The terms are squares where every site is precise: rounding never makes them negative, however
    close to singular the matrix is (a sampler would find where it does).
    """
    aside = s * (prior.K @ split.r)
    halves = solve_triangular(tril, jnp.stack([split.t - aside, aside], axis=1), lower=True)
    half, other = halves[:, 0], halves[:, 1]
    w = solve_triangular(tril, half, lower=True, trans=1)
    return split.r + s * w, (half + other) * half


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
    return lower_gram(factor.inverse * factor.s, _leaf(len(factor.s)))


def shrinkage(prior: Prior, factor: Factor) -> Array:
    """``R K``, ``(n, n)``: the share of the prior that the sites replaced."""
    return factor.s[:, None] * (factor.inverse.T @ (factor.inverse @ (factor.s[:, None] * prior.K)))


def adjoint(factor: Factor) -> Adjoint:
    """That of ``log G`` at frozen sites."""
    return Adjoint(0.5 * (jnp.outer(factor.alpha, factor.alpha) - precision(factor)), factor.alpha)


@jax.custom_jvp
def attach(value: Array, slope: Adjoint, prior: Prior, terms: Array) -> Array:
    """``value``, with the derivative ``<slope, d prior> + d terms`` in the place of its own.

    Args:
        value: the energy.
        slope: its derivatives with respect to the prior's parts, which are constants here.
        prior: the prior, as it depends on the hyperparameters.
        terms: a scalar whose derivative is that of the energy through everything but the prior;
            only its derivative counts.
    """
    return value


@attach.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, slope, _, _ = primals
    _, _, moved, more = tangents
    return value, jnp.sum(slope.K * moved.K) + jnp.vdot(slope.m, moved.m) + more
