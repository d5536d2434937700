"""Several rows together: the covariance of the function's predictions, and draws of outcomes.

    cov(f*) = K** - (L^-1 S k*)' (L^-1 S k*)

for each draw of the hyperparameters; over several of them the mean of these and the covariance of
the means (the law of total variance). Cost O(n n*^2), memory O(n*^2), one draw after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array

from probkit.core._programs import compiled
from probkit.core._trees import in_precision
from probkit.estimators._engine import Fitted
from probkit.inference.gaussian._posterior import problem_of

#: Rows that programs are compiled for at the least.
_FEWEST = 64


def covariances(fit: Fitted, x: np.ndarray) -> Iterator[np.ndarray]:
    """Covariance ``(n*, n*)`` of ``f`` at rows ``(n*, columns)``, for each of the fit's draws."""
    program, near = fit.target.program, fit.data["x"] if fit.basis is None else fit.basis[0]
    n = len(x)
    size = max(_FEWEST, 1 << (n - 1).bit_length())
    points = np.resize(np.pad(x, ((0, 0), (0, near.shape[1] - x.shape[1]))), (size, near.shape[1]))

    def fn(theta: Array, arrays: dict, half: Array, near: Array, points: Array) -> Array:
        latent = problem_of(program, arrays).latent
        cross = half @ latent.cross_covariance(theta, near, points, arrays)
        return latent.cross_covariance(theta, points, points, arrays) - cross.T @ cross

    for theta, (_, half) in zip(fit.theta, fit._weights(), strict=True):
        with in_precision(np.float64):
            args = (theta, fit.target.arrays, half, near, points)
            whole = np.asarray(compiled(program, "gp_joint", "", fn, args)(*args))
        yield whole[:n, :n]


def mean_and_covariance(fit: Fitted, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(n*,)`` and covariance ``(n*, n*)`` of ``f``, over all draws of the fit."""
    means = fit.predict(x)[0]
    spread = means - means.mean(axis=0)
    within = sum(covariances(fit, x))
    return means.mean(axis=0), (within + spread.T @ spread) / len(means)


def sample(fit: Fitted, x: np.ndarray, count: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draws of ``f`` at rows ``(n*, columns)``: ``(n*, count)``, and the fit's draw of each."""
    means = fit.predict(x)[0]
    which = rng.randint(len(means), size=count)
    out = np.empty((len(x), count))
    for i, cov in enumerate(covariances(fit, x)):
        mine = which == i
        # A root by eigenvalues: rows that coincide make the matrix singular.
        value, vector = np.linalg.eigh(cov)
        root = vector * np.sqrt(np.maximum(value, 0.0))
        out[:, mine] = means[i][:, None] + root @ rng.standard_normal((len(x), int(mine.sum())))
    return out, which
