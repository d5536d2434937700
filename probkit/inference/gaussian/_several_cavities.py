r"""Marginals of several Gaussian vectors without a row's own site: the cavities.

With ``V = T T'`` the covariance of a row, ``Lambda`` its site's precision and ``a`` the share of it
that is taken out,

    V_c = (V^-1 - a Lambda)^-1 = T (I - a T' Lambda T)^-1 T',
    m_c = mu - a V_c (lambda1 - Lambda mu).

The matrix in brackets has eigenvalues in (0, 1] for sites without negative curvature, whatever
their precision. With negative curvature in other rows an eigenvalue can be below zero: then the
posterior without the row is no distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import Prior, Sites
from probkit.inference.gaussian._several_algebra import (
    Conditioned,
    by_process,
    by_row,
    condition_blocks,
    definite,
    doubtful,
    positive,
    prior_sds,
    times,
)


class Cavity(NamedTuple):
    """Cavities of all rows.

    Attributes:
        mean: ``m_c``, ``(C, n)``.
        cov: ``V_c``, ``(C, C, n)``.
        log_det: ``log|I - a V Lambda|``, ``(n,)``.
        square: ``a^2 (lambda1 - Lambda mu)' V_c (lambda1 - Lambda mu)``, ``(n,)``.
        least: the smallest eigenvalue of ``I - a T' Lambda T``, before it is kept above rounding
            errors, ``(n,)``: not above zero where the cavity is no distribution.
    """

    mean: Array
    cov: Array
    log_det: Array
    square: Array
    least: Array


def _left(v: Array, precisions: Array, power: float) -> tuple[Array, Array, Array]:
    """``T``, and ``I - a T' Lambda T`` as eigenvalues and vectors, by row."""
    tril = jnp.linalg.cholesky(by_row(v))
    inside = jnp.swapaxes(tril, 1, 2) @ by_row(precisions) @ tril
    eye = jnp.eye(v.shape[0], dtype=v.dtype)
    return tril, *jnp.linalg.eigh(eye - 0.5 * power * (inside + jnp.swapaxes(inside, 1, 2)))


def cavities(at: Conditioned, l1: Array, power: float = 1.0) -> Cavity:
    """Take a share ``power`` of each site out of its marginal; ``l1`` are the sites' shifts."""
    tril, values, vectors = _left(at.blocks(), at.precisions, power)
    # (What rounding leaves of a cavity's precision.)
    tiny = 64.0 * jnp.finfo(values.dtype).eps
    least, values = values[:, 0] + tiny, jnp.maximum(values, tiny)
    half = tril @ (vectors / jnp.sqrt(values)[:, None, :])
    pull = power * (l1 - times(at.precisions, at.mu))
    along = jnp.einsum("nab,an->nb", half, pull)
    return Cavity(
        mean=at.mu - jnp.einsum("nab,nb->an", half, along),
        cov=by_process(half @ jnp.swapaxes(half, 1, 2)),
        log_det=jnp.sum(jnp.log(values), axis=1),
        square=jnp.sum(along**2, axis=1),
        least=least,
    )


def proper(prior: Prior, roots: Array, blocks: Array, power: float = 1.0) -> Array:
    """The blocks where the posterior and all cavities have definite precisions, else `positive`.

    Costs a conditioning where a block has a negative part to speak of, else next to nothing.
    """
    sds = prior_sds(prior)

    # A loop of at most one turn: unlike a `cond`, it is skipped under vmap when nobody needs it.
    def look(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        fine = definite(roots, blocks)
        kept = jnp.where(fine, blocks, 0.0)
        at = condition_blocks(prior, roots, Sites(jnp.zeros_like(sds), kept))
        _, values, _ = _left(at.blocks(), kept, power)
        return jnp.zeros_like(carry[0]), fine & jnp.all(values > 1e-6)

    first = doubtful(blocks, sds), jnp.asarray(True)
    _, fine = jax.lax.while_loop(lambda c: c[0], look, first)
    return jnp.where(fine, blocks, positive(blocks, sds))
