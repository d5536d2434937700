"""Some rows of a Gaussian process, as a problem of their own: mini-batches, and blocks of rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core._latent import GaussianLatent
from probkit.inference.gaussian._problem import Problem

BLOCK = 4096  # rows


class RowsLatent(GaussianLatent):
    """The terms of some rows, as those of a Gaussian vector of that length."""

    def __init__(self, whole: GaussianLatent, rows: Array):
        self.whole, self.rows = whole, rows
        self.name, self.dim, self.theta = whole.name, whole.dim, whole.theta
        self.size = rows.shape[0]

    @property
    def centre(self) -> np.ndarray:
        return self.whole.centre

    @property
    def spread(self) -> np.ndarray:
        return self.whole.spread

    def log_prior(self, theta: Array, arrays: dict) -> Array:
        return self.whole.log_prior(theta, arrays)

    def mean(self, theta: Array, arrays: dict) -> Array:
        return self.whole.mean(theta, arrays)[self.rows]

    def covariance(self, theta: Array, arrays: dict) -> Array:
        points = self.points(arrays)
        return self.whole.cross_covariance(theta, points, points, arrays)

    def points(self, arrays: dict) -> Array:
        return self.whole.points(arrays)[self.rows]

    def cross_covariance(self, theta: Array, a: Array, b: Array, arrays: dict) -> Array:
        return self.whole.cross_covariance(theta, a, b, arrays)

    def variance(self, theta: Array, a: Array, arrays: dict) -> Array:
        return self.whole.variance(theta, a, arrays)

    def log_likelihood(self, theta: Array, f: Array, arrays: dict) -> Array:
        return self.whole.log_likelihood_rows(theta, f, self.rows, arrays)

    def log_likelihood_rows(self, theta: Array, f: Array, rows: Array, arrays: dict) -> Array:
        return self.whole.log_likelihood_rows(theta, f, self.rows[rows], arrays)

    def family(self, arrays: dict) -> str | None:
        return self.whole.family(arrays)

    def kinks(self, arrays: dict) -> int:
        return self.whole.kinks(arrays)

    def gaussian_terms(self, theta: Array, arrays: dict) -> tuple[Array, Array, Array]:
        zero = jnp.zeros(self.size, self.whole.mean(theta, arrays).dtype)
        one = jnp.ones_like(zero)

        def value(f: Array) -> Array:
            return self.log_likelihood(theta, f, arrays)

        b, bend = jax.jvp(lambda f: jax.jvp(value, (f,), (one,))[1], (zero,), (one,))
        return -bend, b, value(zero)

    def probit_terms(self, theta: Array, arrays: dict) -> tuple[Array, Array]:
        slope, offset = self.whole.probit_terms(theta, arrays)
        return slope[self.rows], offset[self.rows]

    def point(self, theta: Array, f: Array, arrays: dict) -> dict[str, Array]:
        raise NotImplementedError("some rows are no point of the model")

    def split(self, z: dict[str, Array], arrays: dict) -> tuple[Array, Array]:
        raise NotImplementedError("some rows are no point of the model")


def part(problem: Problem, rows: Array | None) -> Problem:
    """The problem of some rows, or of all."""
    if rows is None:
        return problem
    return Problem(RowsLatent(problem.latent, rows), problem.arrays, problem.kind)


def blocks_of(problem: Problem, block: int) -> np.ndarray | None:
    """Row numbers in blocks, the last filled up with n (no row); None for all rows at once."""
    n = problem.latent.size
    if n <= block or not problem.latent.rows_apart(problem.arrays):
        return None
    return np.arange(-(-n // block) * block).reshape(-1, block)


def by_rows(
    problem: Problem, fn: Callable[[Problem], dict[str, Array]], block: int = BLOCK
) -> dict[str, Array]:
    """What ``fn`` gives of a problem's rows, ``(n,)`` each, from one block after the other."""
    blocks, n = blocks_of(problem, block), problem.latent.size
    if blocks is None:
        return fn(problem)
    found = jax.lax.map(
        lambda rows: fn(part(problem, jnp.minimum(rows, n - 1))), jnp.asarray(blocks)
    )
    return {k: v.reshape(-1)[:n] for k, v in found.items()}
