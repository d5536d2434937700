r"""The exact posterior of a model whose log density is quadratic: one linear solve.

Linear Gaussian models with known scales have ``log p(z) = c + g'z - z'Az/2`` in the unconstrained
space. Gradient ``g`` and Hessian ``-A`` at the origin give the posterior N(A^{-1} g, A^{-1}) and
the evidence exactly. Whether the log density is quadratic is checked at random points, around the
origin and from the posterior found, by comparing its gradient there with the linear one; the
status says so when it is not. Cost: d + 12 gradients and O(d^3).
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
from probkit.inference.gaussian._normal import Mode, normal_approximation

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
        origin = {
            "value0": fn(zero),
            "slope0": jax.grad(fn)(zero),
            "hessian": jax.hessian(fn)(zero),
        }
        bend = origin["hessian"]
        tril = jnp.linalg.cholesky(-bend)
        # One solve is exact on paper; the repetitions remove the rounding of gradients far out.
        newton = lambda _, z: z + jax.scipy.linalg.cho_solve((tril, True), jax.grad(fn)(z))  # noqa: E731
        mean = jax.lax.fori_loop(0, 3, newton, zero)
        value, slope = jax.value_and_grad(fn)(mean)
        noise = jax.random.normal(key, (2, _PROBES, zero.shape[0]), zero.dtype)
        solve = jax.scipy.linalg.solve_triangular
        steps = solve(tril, noise[0].T, trans=1, lower=True).T
        near = jax.vmap(jax.grad(fn))(mean + steps) - (slope + steps @ bend)
        expected = origin["slope0"] + noise[1] @ bend
        wide = jax.vmap(jax.grad(fn))(noise[1]) - expected
        gaps = {
            # in the posterior's own scale, and relative to the gradients around the origin
            "near": jnp.max(jnp.abs(solve(tril, near.T, lower=True))),
            "wide": jnp.max(jnp.abs(wide)) / (1.0 + jnp.max(jnp.abs(expected))),
        }
        return {**origin, "mean": mean, "value": value, **gaps}

    def step(
        self, key: Array, target: Target, state: Any, batch: Batch | None, t: Array
    ) -> tuple[Any, dict[str, Array]]:
        return state, {}

    def terminate(self, state: Any, info: dict[str, Array]) -> tuple[Array, Array]:
        return jnp.asarray(True), jnp.asarray(0, jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        first = {k: np.asarray(v[0]) for k, v in state.items()}
        dtype, precision = first["mean"].dtype, -first["hessian"].astype(np.float64)
        mean, top = first["mean"], float(first["value"])
        near, wide = float(first["near"]), float(first["wide"])
        limits = (1e-6, 1e-8) if dtype == np.float64 else (1e-2, 1e-3)
        status = Status.OK if near < limits[0] and wide < limits[1] else Status.NOT_QUADRATIC
        if not np.all(np.isfinite(mean)):
            mean = np.zeros_like(mean)
            top = float(first["value0"])
            status = Status.NOT_QUADRATIC if wide >= limits[1] else Status.NOT_POSITIVE_DEFINITE
        stats = {"nonlinearity": near, "nonlinearity_at_origin": wide}
        names = target.program.flat.labels()
        return normal_approximation(
            precision, Mode(mean, top, int(self.draws), status, stats, names)
        )
