r"""Laplace's approximation: a normal at the mode of the log density in the unconstrained space.

The mode is found by damped Newton steps from several starts,

    z <- z - (H - l I)^{-1} g,      H, g the Hessian and gradient of the log density,

with the damping ``l`` divided by 4 after a step that went uphill and multiplied by 4 after one that
did not (Levenberg and Marquardt; Nocedal and Wright 2006, section 10.3). A step costs d + 1
gradients and O(d^3). The approximation is exact only for quadratic log densities; its Pareto k-hat
says how far off it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
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
    check_between,
    check_count,
    check_options,
)
from probkit.inference.gaussian._normal import normal_approximation
from probkit.inference.vi._mode_check import mode_check

#: Where rounding or the step budget ends the search, a mode this near (in sds) still counts.
_CLOSE = 0.05


class Laplace(Inference):
    """A normal approximation at the mode, with draws from it.

    Args:
        draws: draws that stand for the approximation in the posterior.
        starts: starting points; the best mode is kept, and how many agree on it is reported.
        max_steps: Newton steps at the most.
        tolerance: stop when the mode is closer than this, in standard deviations of the
            approximation (judged by gradient and curvature).

    Raises:
        TypeError, ValueError: a misspelt option or a number out of range.

    Example:
        >>> import probkit as pk
        >>> pk.Laplace(draws=2000).chains
        4
    """

    draws: int
    tolerance: float
    starts: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 4000,
        starts: int = 4,
        max_steps: int = 200,
        tolerance: float = 1e-3,
        **unknown: Any,
    ):
        check_options("Laplace", unknown, ("draws", "starts", "max_steps", "tolerance"))
        self.draws = check_count("Laplace(draws)", draws)
        self.starts = check_count("Laplace(starts)", starts)
        self.max_steps = check_count("Laplace(max_steps)", max_steps)
        self.tolerance = check_between("Laplace(tolerance)", tolerance, 0.0, 1.0)

    @property
    def chains(self) -> int:
        return self.starts

    @property
    def num_steps(self) -> int:
        return self.max_steps

    @property
    def density_only(self) -> bool:
        return True

    def init(self, key: Array, target: Target) -> dict[str, Array]:
        from probkit.inference.mcmc._start import find_start

        z, value, slope = find_start(key, target)
        bend = jax.hessian(target.flat_log_density)(z)
        damping = jnp.asarray(1.0, target.dtype)
        return {"z": z, "lp": value, "gradient": slope, "hessian": bend, "damping": damping}

    def step(
        self, key: Array, target: Target, state: dict[str, Array], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        z, lp, slope, bend, damping = (
            state[k] for k in ("z", "lp", "gradient", "hessian", "damping")
        )
        values, vectors = jnp.linalg.eigh(-bend)
        # Absolute curvature: a saddle is left along its negative directions, not entered.
        curvature, along = jnp.abs(values), vectors.T @ slope
        new = z + vectors @ (along / (curvature + damping))
        # Newton's decrement: half the squared distance to the mode, in posterior sds. It is that of
        # the undamped step, for damping alone makes any step short.
        least = 1e-6 * jnp.max(curvature) + jnp.finfo(z.dtype).tiny
        decrement = 0.5 * jnp.sum(along**2 / jnp.maximum(curvature, least))
        value, new_slope = jax.value_and_grad(target.flat_log_density)(new)
        better = (value > lp) & jnp.all(jnp.isfinite(new_slope))
        new_bend = jax.hessian(target.flat_log_density)(new)
        pick = lambda a, b: jnp.where(better, a, b)  # noqa: E731
        out = {
            "z": pick(new, z),
            "lp": pick(value, lp),
            "gradient": pick(new_slope, slope),
            "hessian": pick(new_bend, bend),
            "damping": jnp.clip(damping * jnp.where(better, 0.25, 4.0), 1e-10, 1e10),
        }
        return out, {"lp": out["lp"], "decrement": decrement}

    def terminate(self, state: dict[str, Array], info: dict[str, Array]) -> tuple[Array, Array]:
        lost = ~jnp.isfinite(state["lp"])
        # A damping that has run away means that no uphill step is left in this precision.
        over = (info["decrement"] < 0.5 * self.tolerance**2) | (state["damping"] > 1e8)
        code = jnp.where(lost, int(Status.NONFINITE), int(Status.OK))
        return over | lost, code.astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        best = int(np.nanargmax(state["lp"]))
        top = float(state["lp"][best])
        steps = history["lp"].shape[1]
        distance = float(np.sqrt(2.0 * history["decrement"][best, -1]))
        close = distance < max(_CLOSE, float(self.tolerance))
        status = Status.OK if close else Status.MAX_STEPS
        stats = {
            "steps": steps,
            "distance_to_mode": distance,
            "starts": self.starts,
            "starts_at_best_mode": int(np.sum(np.abs(state["lp"] - top) < 0.1)),
        }
        mean, precision = state["z"][best], -state["hessian"][best]
        names = target.program.flat.labels()
        made = normal_approximation(mean, precision, top, int(self.draws), status, stats, names)
        return replace(made, examine=(mode_check,))
