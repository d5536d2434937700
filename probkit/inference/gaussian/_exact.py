r"""The exact posterior of a model whose log density is quadratic: one linear solve.

Linear Gaussian models with known scales have ``log p(z) = c + g'z - z'Az/2`` in the unconstrained
space. Gradient ``g`` and Hessian ``-A`` at the origin give the posterior N(A^{-1} g, A^{-1}) and the
evidence exactly. Whether the log density is quadratic is checked at random points, by comparing its
gradient there with the linear one; the status says so when it is not. Cost: d + 1 gradients and
O(d^3).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Inference,
    Status,
    Target,
    check_count,
    check_options,
)
from probkit.inference.gaussian._normal import normal_approximation

_PROBES = 3


class ExactGaussian(Inference):
    """The exact posterior of a linear Gaussian model with known scales.

    Args:
        draws: draws that stand for the distribution in the posterior.

    Raises:
        TypeError, ValueError: a misspelt option or a number out of range.

    Example:
        >>> import probkit as pk
        >>> pk.ExactGaussian().num_steps
        0
    """

    draws: int

    def __init__(self, draws: int = 4000, **unknown: Any):
        check_options("ExactGaussian", unknown, ("draws",))
        self.draws = check_count("ExactGaussian(draws)", draws)

    @property
    def chains(self) -> int:
        return 1

    @property
    def num_steps(self) -> int:
        return 0

    @property
    def density_only(self) -> bool:
        return True

    def init(self, key: Array, target: Target) -> dict[str, Array]:
        fn = target.flat_log_density
        zero = jnp.zeros(target.program.flat.size, target.dtype)
        value, slope = jax.value_and_grad(fn)(zero)
        bend = jax.hessian(fn)(zero)
        points = jax.random.normal(key, (_PROBES, zero.shape[0]), zero.dtype)
        found = jax.vmap(jax.grad(fn))(points)
        expected = slope + points @ bend
        gap = jnp.max(jnp.abs(found - expected)) / (1.0 + jnp.max(jnp.abs(expected)))
        return {"value": value, "gradient": slope, "hessian": bend, "gap": gap}

    def step(
        self, key: Array, target: Target, state: Any, batch: Batch | None, t: Array
    ) -> tuple[Any, dict[str, Array]]:
        return state, {}

    def terminate(self, state: Any, info: dict[str, Array]) -> tuple[Array, Array]:
        return jnp.asarray(True), jnp.asarray(0, jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        slope, bend = state["gradient"][0], state["hessian"][0]
        gap = float(state["gap"][0])
        limit = 1e-8 if slope.dtype == np.float64 else 1e-3
        status = Status.OK if gap < limit else Status.NOT_QUADRATIC
        wide = -bend.astype(np.float64)
        try:
            mean = np.linalg.solve(wide, slope.astype(np.float64))
        except np.linalg.LinAlgError:
            mean, status = np.zeros(slope.shape), Status.NOT_POSITIVE_DEFINITE
        top = float(state["value"][0]) + 0.5 * float(slope @ mean)
        return normal_approximation(
            mean.astype(slope.dtype), wide, top, int(self.draws), status, {"nonlinearity": gap}
        )
