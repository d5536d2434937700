r"""Several Gaussian vectors seen through Gaussian sites of whole rows: the linear algebra.

    f_c ~ N(m_c, K_c), c = 1..C,      sites t_i(f_i) = exp(lambda1_i' f_i - f_i' Lambda_i f_i / 2),

with ``f_i = (f_1i, ..., f_Ci)`` and a symmetric ``C x C`` matrix ``Lambda_i`` a row. With ``K`` the
block-diagonal covariance of all, ``Lambda`` that of the sites and ``b = lambda1 - Lambda m``,

    Sigma = (K^-1 + Lambda)^-1,   mu = m + Sigma b,   alpha = K^-1 (mu - m) = b - Lambda (mu - m),
    R = Lambda - Lambda Sigma Lambda,                     |B| = |I + K Lambda|.

`Blocks` takes any ``Lambda`` for which ``Sigma`` is positive definite, also blocks that are not
(expected curvatures of terms that are not log-concave). With ``K_c = L_c L_c'``,

    B = I + L' Lambda L,      Sigma = L B^-1 L' = H'H,     H = T^-1 L',    T T' = B,

so that marginals are sums of squares. Blocks for which ``B`` would not be positive definite lose
their negative part beforehand (`admissible`). Cost: C factors of K a prior, and ``(C n)^3`` a set
of sites, 1/3 for T and 1/3 and more for its inverse.

`Softmax` takes ``Lambda_i = diag(p_i) - p_i p_i'`` for C of n^3 (Rasmussen and Williams 2006,
section 3.5): with ``B_c = I + s_c K_c s_c``, ``s = sqrt(p)``, and ``M = diag(1 - sum_c p_c) +
sum_c s_c B_c^-1 s_c``, both with eigenvalues in (0, ...) whatever K is,

    |B| = |M| prod_c |B_c|,      R_ab = [a = b] E_a - G_a M^-1 G_b',
    E_c = s_c B_c^-1 s_c,  G_c = s_c B_c^-1 s_c (as a map from rows),

    Sigma_ab = [a = b] A_a + A_a diag(p_a) M^-1 diag(p_b) A_b,    A_c = K_c - K_c E_c K_c.

Rows without a label have ``p = 0``. Arrays: ``(C, n)`` for vectors, ``(C, C, n)`` for blocks.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import (
    Adjoint,
    Prior,
    Sites,
    jittered_cholesky,
    lower_gram,
    lower_inverse,
)


@dataclass(frozen=True, eq=False)
class Conditioned(abc.ABC):
    """A prior given its sites.

    Attributes:
        alpha: ``K^-1 (mu - m)``, ``(C, n)``.
        mu: means, ``(C, n)``.
        square: ``alpha'(mu - m)``.
        half_log_det: ``log |B| / 2``.
        precisions: the blocks that were used, ``(C, C, n)``.
    """

    alpha: Array
    mu: Array
    square: Array
    half_log_det: Array
    precisions: Array

    @abc.abstractmethod
    def blocks(self) -> Array:
        """Marginal covariances of the rows, ``(C, C, n)``."""

    @abc.abstractmethod
    def spread(self, y: Array) -> Array:
        """``Sigma y``, ``(C, n)``."""

    @abc.abstractmethod
    def shrinkers(self) -> Array:
        """The diagonal blocks ``R_cc``, ``(C, n, n)``."""

    @abc.abstractmethod
    def noise(self, key: Array, count: int) -> Array:
        """Draws of ``N(0, Sigma)``, ``(count, C, n)``."""

    @abc.abstractmethod
    def ahead(self, cross: Array, whole: Array) -> tuple[Array, Array]:
        """At new rows: means less the prior's, ``(C, n*)``, and covariances, ``(C, C, n*)``.

        Args:
            cross: prior covariances with the rows, ``(C, n, n*)``.
            whole: prior variances, ``(C, n*)``.
        """

    def adjoint(self) -> Adjoint:
        """Derivatives of the log evidence at frozen sites, by ``K`` ``(C, n, n)`` and ``m``."""
        outer = self.alpha[:, :, None] * self.alpha[:, None, :]
        return Adjoint(0.5 * (outer - self.shrinkers()), self.alpha)


# -- blocks ---------------------------------------------------------------------------------------


def rooted(prior: Prior) -> tuple[Array, Array]:
    """Lower factors of the covariances, ``(C, n, n)``, and the jitters they needed, ``(C,)``."""
    pairs = [jittered_cholesky(K) for K in prior.K]
    return jnp.stack([a for a, _ in pairs]), jnp.stack([b for _, b in pairs])


def by_row(matrices: Array) -> Array:
    """``(C, C, n)`` to ``(n, C, C)``."""
    return jnp.moveaxis(matrices, -1, 0)


def by_process(matrices: Array) -> Array:
    """``(n, C, C)`` to ``(C, C, n)``."""
    return jnp.moveaxis(matrices, 0, -1)


@jax.custom_jvp
def _positive(rows: Array) -> Array:
    values, vectors = jnp.linalg.eigh(rows)
    return (vectors * jnp.maximum(values, 0.0)[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)


@_positive.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    # Daleckii and Krein: divided differences of x -> max(x, 0) in the eigenvectors' basis.
    (rows,), (moves,) = primals, tangents
    values, vectors = jnp.linalg.eigh(rows)
    kept = jnp.maximum(values, 0.0)
    gap = values[:, :, None] - values[:, None, :]
    same = jnp.abs(gap) <= 1e-12 * jnp.max(jnp.abs(values), axis=1)[:, None, None]
    slope = jnp.where(values > 0, 1.0, 0.0)[:, :, None] + jnp.zeros_like(gap)
    rise = jnp.where(same, slope, (kept[:, :, None] - kept[:, None, :]) / jnp.where(same, 1.0, gap))
    turned = jnp.swapaxes(vectors, 1, 2)
    out = (vectors * kept[:, None, :]) @ turned
    return out, vectors @ (rise * (turned @ moves @ vectors)) @ turned


def positive(blocks: Array, scale: Array) -> Array:
    """Symmetric blocks ``(C, C, n)`` without their negative part, in units of the prior's sds.

    ``D^-1 [D Lambda D]_+ D^-1`` with ``D = diag(scale)``, ``scale`` of shape ``(C, n)``: the units
    of the functions do not matter, and a function that hardly varies takes nothing from the others.
    """
    units = jnp.maximum(scale, jnp.finfo(scale.dtype).tiny ** 0.25)
    both = units[:, None] * units[None]
    return by_process(_positive(by_row(blocks * both))) / both


def prior_sds(prior: Prior) -> Array:
    """Prior standard deviations, ``(C, n)``."""
    return jnp.sqrt(jnp.diagonal(prior.K, axis1=1, axis2=2))


def times(blocks: Array, y: Array) -> Array:
    """Blocks ``(C, C, n)`` times vectors ``(C, n)``."""
    return jnp.einsum("abn,bn->an", blocks, y)


@dataclass(frozen=True, eq=False)
class Blocks(Conditioned):
    """Any blocks; see the module's text."""

    roots: Array
    white: Array
    inverse: Array
    half: Array

    def blocks(self) -> Array:
        return jnp.einsum("xai,xbi->abi", self.half, self.half)

    def spread(self, y: Array) -> Array:
        return jnp.einsum("xai,x->ai", self.half, jnp.einsum("xai,ai->x", self.half, y))

    def shrinkers(self) -> Array:
        count, n = self.mu.shape
        seen = jnp.einsum("xai,aci->xci", self.half, self.precisions)
        taken = jnp.einsum("xci,xcj->cij", seen, seen)
        whole = jnp.einsum("cci->ci", self.precisions)
        return jax.vmap(jnp.diag)(whole) - taken

    def noise(self, key: Array, count: int) -> Array:
        e = jax.random.normal(key, (count, self.half.shape[0]), self.mu.dtype)
        return jnp.einsum("xai,sx->sai", self.half, e)

    def ahead(self, cross: Array, whole: Array) -> tuple[Array, Array]:
        count, n = self.mu.shape
        seen = jax.vmap(lambda t, k: solve_triangular(t, k, lower=True))(self.roots, cross)
        mean = jnp.einsum("ckj,ck->cj", seen, self.white)
        inverse = self.inverse.reshape(count * n, count, n)
        half = jnp.einsum("xak,akj->xaj", inverse, seen)
        left = _floored(whole, jnp.sum(seen**2, axis=1))
        return mean, _diagonal(left) + jnp.einsum("xaj,xbj->abj", half, half)


def _diagonal(values: Array) -> Array:
    """``(C, n)`` as diagonal blocks ``(C, C, n)``."""
    return jnp.eye(values.shape[0], dtype=values.dtype)[:, :, None] * values


def _floored(whole: Array, taken: Array) -> Array:
    return jnp.maximum(whole - taken, 8.0 * jnp.finfo(whole.dtype).eps * whole)


def _gram(roots: Array, blocks: Array) -> Array:
    """``I + L' Lambda L``, ``(C n, C n)``."""
    count, n = roots.shape[:2]
    right = blocks[..., None] * roots[None]
    whole = jnp.einsum("aji,abjk->aibk", roots, right).reshape(count * n, count * n)
    return 0.5 * (whole + whole.T) + jnp.eye(count * n, dtype=whole.dtype)


def doubtful(blocks: Array, sds: Array) -> Array:
    """Whether blocks might make the posterior, or it without a row, indefinite.

    No block does by an eigenvalue above ``-1 / n`` in units of the prior's sds, since the largest
    one of a correlation matrix is ``n`` at the most.
    """
    values = jnp.linalg.eigvalsh(by_row(blocks * sds[:, None] * sds[None]))
    return jnp.any(values < -0.5 / sds.shape[1])


def definite(roots: Array, blocks: Array) -> Array:
    """Whether ``K^-1 + Lambda`` is positive definite."""
    tril = jnp.linalg.cholesky(_gram(roots, blocks), symmetrize_input=False)
    return jnp.all(jnp.isfinite(jnp.diagonal(tril)))


def admissible(prior: Prior, roots: Array, blocks: Array) -> Array:
    """The blocks where ``K^-1 + Lambda`` is positive definite, else without their negative part.

    Costs a Cholesky factor where a block has a negative part to speak of, else next to nothing.
    """
    sds = prior_sds(prior)

    # A loop of at most one turn: unlike a `cond`, it is skipped under vmap when nobody needs it.
    def look(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.zeros_like(carry[0]), definite(roots, blocks)

    _, fine = jax.lax.while_loop(lambda c: c[0], look, (doubtful(blocks, sds), jnp.asarray(True)))
    return jnp.where(fine, blocks, positive(blocks, sds))


def site_units(v: Array) -> Sites:
    """Of changes of sites, given marginal variances ``(C, n)``."""
    sd = jnp.sqrt(v)
    return Sites(sd, sd[:, None] * sd[None])


def condition_blocks(prior: Prior, roots: Array, sites: Sites) -> Blocks:
    """The prior given `admissible` sites; ``roots`` are the covariances' lower factors."""
    count, n = prior.m.shape
    size, blocks = count * n, sites.l2
    tril = jnp.linalg.cholesky(_gram(roots, blocks), symmetrize_input=False)
    b = sites.l1 - times(blocks, prior.m)
    rhs = jnp.einsum("cji,cj->ci", roots, b).ravel()
    white = cho_solve((tril, True), rhs).reshape(count, n)
    gap = jnp.einsum("cij,cj->ci", roots, white)
    inverse = lower_inverse(tril)
    half = jnp.einsum("xak,aik->xai", inverse.reshape(size, count, n), roots)
    return Blocks(
        alpha=b - times(blocks, gap),
        mu=prior.m + gap,
        square=jnp.sum(white**2),
        half_log_det=jnp.sum(jnp.log(jnp.diagonal(tril))),
        precisions=blocks,
        roots=roots,
        white=white,
        inverse=inverse,
        half=half,
    )


# -- softmax --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Softmax(Conditioned):
    """One label a row; see the module's text."""

    prior: Prior
    s: Array
    inverses: Array
    shared: Array
    across: Array
    left: Array
    half: Array

    def blocks(self) -> Array:
        own = jnp.diagonal(self.left, axis1=1, axis2=2)
        return _diagonal(own) + jnp.einsum("aji,bji->abi", self.half, self.half)

    def spread(self, y: Array) -> Array:
        own = jnp.einsum("cij,cj->ci", self.left, y)
        return own + jnp.einsum("cji,j->ci", self.half, jnp.einsum("cji,ci->j", self.half, y))

    def shrinkers(self) -> Array:
        scaled = self.inverses * self.s[:, None, :]
        return jax.vmap(lower_gram)(scaled) - jnp.einsum("cji,cjk->cik", self.across, self.across)

    def noise(self, key: Array, count: int) -> Array:
        first, second = jax.random.split(key)
        shape = (2, *self.mu.shape, count)
        e = jax.random.normal(first, shape, self.mu.dtype)
        roots, _ = rooted(self.prior)
        s = self.s[:, :, None]
        k = roots @ e[0]
        solved = jnp.swapaxes(self.inverses, 1, 2) @ (self.inverses @ (s * k + e[1]))
        own = k - self.prior.K @ (s * solved)
        among = jax.random.normal(second, (self.mu.shape[1], count), self.mu.dtype)
        out = own + jnp.einsum("cji,js->cis", self.half, among)
        return jnp.moveaxis(out, -1, 0)

    def ahead(self, cross: Array, whole: Array) -> tuple[Array, Array]:
        mean = jnp.einsum("cij,ci->cj", cross, self.alpha)
        seen = self.inverses @ (self.s[:, :, None] * cross)
        half = self.across @ cross
        left = _floored(whole, jnp.sum(seen**2, axis=1))
        return mean, _diagonal(left) + jnp.einsum("axj,bxj->abj", half, half)


def softmax_blocks(p: Array) -> Array:
    """``diag(p) - p p'`` by row, ``(C, C, n)``."""
    return _diagonal(p) - p[:, None] * p[None]


def condition_softmax(prior: Prior, sites: Sites) -> Softmax:
    """The prior given sites whose ``l2`` are the probabilities ``p``, ``(C, n)``."""
    n = prior.m.shape[1]
    p = sites.l2
    s = jnp.sqrt(p)
    trils = jnp.stack(
        [
            jittered_cholesky(jnp.eye(n, dtype=p.dtype) + a[:, None] * a * K)[0]
            for a, K in zip(s, prior.K, strict=True)
        ]
    )
    inverses = jnp.stack([lower_inverse(t) for t in trils])
    solved = jax.vmap(lower_gram)(inverses)
    slack = jnp.maximum(1.0 - jnp.sum(p, axis=0), 0.0)
    shared = jnp.diag(slack) + jnp.sum(s[:, :, None] * solved * s[:, None, :], axis=0)
    root, _ = jittered_cholesky(0.5 * (shared + shared.T))
    narrow = lambda rows: jax.vmap(lambda r: solve_triangular(root, r, lower=True))(rows)  # noqa: E731
    across = narrow(s[:, :, None] * solved * s[:, None, :])
    weighed = inverses @ (s[:, :, None] * prior.K)
    left = prior.K - jnp.swapaxes(weighed, 1, 2) @ weighed
    b = sites.l1 - (p * prior.m - p * jnp.sum(p * prior.m, axis=0))
    kb = jnp.einsum("cij,cj->ci", prior.K, b)
    # R K b by factors.
    own = s * jnp.einsum("cij,cj->ci", solved, s * kb)
    both = jnp.einsum("cji,j->ci", across, jnp.einsum("cji,ci->j", across, kb))
    alpha = b - own + both
    gap = jnp.einsum("cij,cj->ci", prior.K, alpha)
    logs = jnp.sum(jnp.log(jnp.diagonal(trils, axis1=1, axis2=2)))
    return Softmax(
        alpha=alpha,
        mu=prior.m + gap,
        square=jnp.sum(alpha * gap),
        half_log_det=logs + jnp.sum(jnp.log(jnp.diagonal(root))),
        precisions=softmax_blocks(p),
        prior=prior,
        s=s,
        inverses=inverses,
        shared=root,
        across=across,
        left=left,
        half=narrow(p[:, :, None] * left),
    )


def condition(prior: Prior, sites: Sites, roots: Array | None = None) -> Conditioned:
    """The prior given sites: blocks ``(C, C, n)``, or softmax probabilities ``(C, n)``."""
    if sites.l2.ndim == 2:
        return condition_softmax(prior, sites)
    return condition_blocks(prior, rooted(prior)[0] if roots is None else roots, sites)
