r"""Laplace's approximation: a normal at the mode of the log density in the unconstrained space.

The mode is found by damped Newton steps from several starts,

    z <- z - (H - l I)^{-1} g,      H, g the Hessian and gradient of the log density,

with the damping ``l`` divided by 4 after a step that went uphill and multiplied by 4 after one that
did not (Levenberg and Marquardt; Nocedal and Wright 2006, section 10.3). With the dense Hessian a
step costs d + 1 gradients and O(d^3); `_blocks` and `_low_rank` have cheaper ones, which follow the
model's structure. The approximation is exact only for quadratic log densities; its Pareto k-hat
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
    check_choice,
    check_count,
    check_options,
)
from probkit.inference.gaussian._blocks import Blocks
from probkit.inference.gaussian._curvature import Curvature, Dense
from probkit.inference.gaussian._low_rank import LowRank
from probkit.inference.gaussian._normal import Mode
from probkit.inference.vi._mode_check import mode_check

#: Where rounding or the step budget ends the search, a mode this near (in sds) still counts.
_CLOSE = 0.05


STRUCTURES = ("dense", "blocks", "lowrank")
_OPTIONS = ("draws", "starts", "max_steps", "tolerance", "structure", "dim", "rank")


class Laplace(Inference):
    """A normal approximation at the mode, with draws from it.

    Args:
        draws: draws that stand for the approximation in the posterior.
        starts: starting points; the best mode is kept, and how many agree on it is reported.
        max_steps: Newton steps at the most.
        tolerance: stop when the mode is closer than this, in standard deviations of the
            approximation (judged by gradient and curvature).
        structure: of the Hessian: "dense"; "blocks", for hierarchies with many groups (latents
            along one dim that are independent given all others: cost linear in the groups); or
            "lowrank", for many dimensions of which the data inform few. A structure that the
            Hessian does not have fails the check ``structure``.
        dim: of "blocks": the groups' dim; None takes the one with the most latent entries.
        rank: of "lowrank": directions that are kept.

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
    structure: str = eqx.field(static=True)
    dim: str | None = eqx.field(static=True)
    rank: int = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 4000,
        starts: int = 4,
        max_steps: int = 200,
        tolerance: float = 1e-3,
        structure: str = "dense",
        dim: str | None = None,
        rank: int = 20,
        **unknown: Any,
    ):
        check_options("Laplace", unknown, _OPTIONS)
        check_choice("Laplace(structure)", structure, STRUCTURES)
        if dim is not None and structure != "blocks":
            raise ValueError(f"Laplace(dim={dim!r}): only of use with structure='blocks'")
        self.structure, self.dim = structure, dim
        self.rank = check_count("Laplace(rank)", rank)
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
        # The other structures are read off the model's dims and prior.
        return self.structure == "dense"

    @property
    def curvature(self) -> Curvature:
        """How the Hessian is seen."""
        if self.structure == "blocks":
            return Blocks(self.dim)
        return LowRank(self.rank) if self.structure == "lowrank" else Dense()

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        from probkit.inference.mcmc._start import find_start

        z, value, slope = find_start(key, target)
        parts = self.curvature.measure(target, z, None)
        damping = jnp.asarray(1.0, target.dtype)
        return {"z": z, "lp": value, "gradient": slope, "curvature": parts, "damping": damping}

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        z, lp, slope, parts, damping = (
            state[k] for k in ("z", "lp", "gradient", "curvature", "damping")
        )
        move, decrement = self.curvature.solve(parts, slope, damping)
        new = z + move
        value, new_slope = jax.value_and_grad(target.flat_log_density)(new)
        new_parts = self.curvature.measure(target, new, parts)
        better = value > lp
        for leaf in jax.tree.leaves((new_slope, new_parts)):
            better = better & jnp.all(jnp.isfinite(leaf))
        pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(better, x, y), a, b)  # noqa: E731
        out = {
            "z": pick(new, z),
            "lp": pick(value, lp),
            "gradient": pick(new_slope, slope),
            "curvature": pick(new_parts, parts),
            "damping": jnp.clip(damping * jnp.where(better, 0.25, 4.0), 1e-10, 1e10),
        }
        return out, {"lp": out["lp"], "decrement": decrement}

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
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
        parts = jax.tree.map(lambda x: np.asarray(x)[best], state["curvature"])
        mean = np.asarray(state["z"])[best]
        names = target.program.flat.labels()
        mode = Mode(mean, top, int(self.draws), status, stats, names)
        made = self.curvature.normal(parts, mode)
        checks = (*made.checks, *self.curvature.checks(parts))
        return replace(made, checks=checks, examine=(mode_check,))
