r"""The low-rank mass matrix for moderate dimensions, from streaming moments of draws and scores.

The inverse mass matrix is ``D (I + U (L - I) U') D`` with ``D = diag(s)`` and orthonormal ``U`` of
``k`` columns. It minimises the Fisher divergence between draws ``x`` and scores ``a``: without a
bound on the rank the minimiser is the geometric mean of covariances (Seyboldt, Carlson and
Carpenter 2026, theorem 2.3)

    G = C_x # C_a^{-1} = F (F' C_a F)^{-1/2} F',    C_x = F F',

taken after scaling by ``s = (var x / var a)^{1/4}``, with a ridge on both covariances so that
directions that no draw has explored keep ``G = 1``. The ``k`` eigenvalues of ``G`` furthest from 1
on the log scale are kept, where they are below 1/2 or above 2.

The estimator in blackjax's registry takes singular value decompositions of a buffer of draws; this
one keeps running sums instead and takes three symmetric eigendecompositions, which compile faster.
It costs O(d^2) a step and O(d^3) at the end of each window, so larger dimensions use blackjax's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.metric_recipes import MetricCore
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from jaxtyping import Array

UP_TO = 200
_RANK = 10
_RIDGE = 1e-5
_CUTOFF = 2.0


class _State(NamedTuple):
    inverse_mass_matrix: LowRankInverseMassMatrix
    seen: Array
    mean_x: Array
    mean_a: Array
    sum_xx: Array
    sum_aa: Array


def fisher_core(dtype: Any) -> MetricCore:
    """``init``, ``update`` and ``final`` of the estimator, in blackjax's protocol."""

    def init(d: int) -> _State:
        k = min(d, _RANK)
        zero = jnp.zeros(d, dtype)
        square = jnp.zeros((d, d), dtype)
        matrix = LowRankInverseMassMatrix(
            jnp.ones(d, dtype), jnp.zeros((d, k), dtype), jnp.ones(k, dtype)
        )
        return _State(matrix, jnp.zeros((), dtype), zero, zero, square, square)

    def update(state: _State, x: Array, a: Array) -> _State:
        n = state.seen + 1
        dx, da = x - state.mean_x, a - state.mean_a
        mean_x, mean_a = state.mean_x + dx / n, state.mean_a + da / n
        return _State(
            state.inverse_mass_matrix,
            n,
            mean_x,
            mean_a,
            state.sum_xx + jnp.outer(dx, x - mean_x),
            state.sum_aa + jnp.outer(da, a - mean_a),
        )

    def final(state: _State) -> _State:
        fresh = init(state.mean_x.shape[0])
        found = _solve(state)
        fine = jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in found]))
        old = state.inverse_mass_matrix
        kept = [jnp.where(fine, new, previous) for new, previous in zip(found, old, strict=True)]
        return fresh._replace(inverse_mass_matrix=LowRankInverseMassMatrix(*kept))

    return MetricCore(init=init, update=update, final=final)


def _solve(state: _State) -> tuple[Array, Array, Array]:
    n = jnp.maximum(state.seen, 2.0)
    d = state.mean_x.shape[0]
    var_x, var_a = jnp.diag(state.sum_xx) / n, jnp.diag(state.sum_aa) / n
    scale = jnp.clip(var_x / jnp.maximum(var_a, 1e-20), 1e-20, 1e20) ** 0.25
    eye = jnp.eye(d, dtype=scale.dtype)
    outer = scale[:, None] * scale
    # Fewer draws than 2 d do not span the same directions as their scores, and the geometric mean
    # of two singular matrices is anything: shrink both until they do.
    ridge = _RIDGE + 0.1 * jnp.maximum(0.0, 1.0 - n / (2.0 * d)) ** 2
    cov_x = state.sum_xx / n / outer + ridge * eye
    cov_a = state.sum_aa / n * outer + ridge * eye
    spread, basis = jnp.linalg.eigh(cov_x)
    # Rounding makes the smallest eigenvalues noise of the size of the largest times epsilon.
    least = 4.0 * jnp.finfo(spread.dtype).eps * spread[-1]
    factor = basis * jnp.sqrt(jnp.maximum(spread, least))
    inner, rotate = jnp.linalg.eigh(factor.T @ cov_a @ factor)
    tiny = 4.0 * jnp.finfo(inner.dtype).eps * inner[-1]
    half = (factor @ rotate) * jnp.maximum(inner, tiny) ** -0.25
    values, vectors = jnp.linalg.eigh(half @ half.T)
    values = jnp.maximum(values, 1e-12 * values[-1])
    _, order = jax.lax.top_k(jnp.abs(jnp.log(values)), min(d, _RANK))
    chosen = values[order]
    informative = (chosen < 1.0 / _CUTOFF) | (chosen > _CUTOFF)
    return scale, vectors[:, order], jnp.where(informative, chosen, 1.0)
