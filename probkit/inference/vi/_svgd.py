r"""Stein variational gradient descent (Liu and Wang 2016), through BlackJAX.

Particles ``x_i`` move along

    phi(x) = (1/n) sum_j [ k(x_j, x) grad log p(x_j) + grad_{x_j} k(x_j, x) ],

the direction that lowers the KL divergence of their distribution fastest among those of a kernel's
unit ball; ``k`` is Gaussian with the median rule for its width. They move in the coordinates of the
start (`_start`), where one width suits all directions, and begin as draws from it. The stop: a mean
direction below ``tolerance`` start-sds. n^2 kernel evaluations and n gradients a step. Particles
underestimate variances when they are few against the dimensions; there is no density, and so
nothing to weigh them with: check them against another method.
"""

from __future__ import annotations

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
from probkit.inference.vi._engine import outward, whitened
from probkit.inference.vi._start import LARGEST_DENSE, gaussian_start

_PER_STEP = 20


class SVGD(Inference):
    """Particles that are pushed towards the posterior together.

    Args:
        particles: how many; they are the posterior's draws.
        max_steps: steps at the most.
        step_size: the first step, in sds of the start.
        tolerance: stop when the particles' mean direction is below this.

    Raises:
        TypeError, ValueError: a misspelt option or a number out of range.

    Example:
        >>> import probkit as pk
        >>> pk.SVGD(particles=50).chains
        1
    """

    max_steps: int
    step_size: float
    tolerance: float
    particles: int = eqx.field(static=True)

    def __init__(
        self,
        particles: int = 200,
        max_steps: int = 2000,
        step_size: float = 0.1,
        tolerance: float = 0.002,
        **unknown: Any,
    ):
        known = ("particles", "max_steps", "step_size", "tolerance")
        check_options("SVGD", unknown, known)
        self.particles = check_count("SVGD(particles)", particles, least=2)
        self.max_steps = check_count("SVGD(max_steps)", max_steps)
        self.step_size = check_between("SVGD(step_size)", step_size, 0.0, np.inf)
        self.tolerance = check_between("SVGD(tolerance)", tolerance, 0.0, np.inf)

    @property
    def chains(self) -> int:
        return 1

    @property
    def num_steps(self) -> int:
        return -(-int(self.max_steps) // _PER_STEP)

    @property
    def density_only(self) -> bool:
        return True

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        first, second = jax.random.split(key)
        size = target.program.flat.size
        frame = gaussian_start(first, target, size <= LARGEST_DENSE, True)
        particles = jax.random.normal(second, (self.particles, size), target.dtype)
        return {
            "centre": frame["centre"],
            "scale": frame["scale"],
            "lp": frame["lp"],
            "particles": particles,
            "memory": jnp.zeros_like(particles),
            "push": jnp.full((), jnp.inf, target.dtype),
        }

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        from probkit.inference.vi._blackjax_vi import stein_step

        fn = whitened(target, state)

        def one(i: Array | int, carry: tuple) -> tuple:
            particles, memory, _ = carry
            # Falling steps: with steps of one length the particles would circle for ever.
            rate = self.step_size / jnp.sqrt(1.0 + (t * _PER_STEP + i) / 50.0)
            moved, new, push = stein_step(fn, particles, rate.astype(particles.dtype), memory)
            fine = jnp.all(jnp.isfinite(moved))
            return (
                jnp.where(fine, moved, particles),
                jnp.where(fine, new, memory),
                jnp.where(fine, push, jnp.nan),
            )

        first = (state["particles"], state["memory"], state["push"])
        particles, memory, push = jax.lax.fori_loop(0, _PER_STEP, one, first)
        new = {**state, "particles": particles, "memory": memory, "push": push}
        return new, {"push": push}

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        lost = ~jnp.isfinite(state["lp"]) | jnp.isnan(state["push"])
        code = jnp.where(lost, int(Status.NONFINITE), int(Status.OK))
        return lost | (state["push"] < self.tolerance), code.astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        one = {k: np.asarray(v)[0] for k, v in state.items()}
        push = float(one["push"])
        params = {k: one[k] for k in ("centre", "scale", "particles")}
        return Approximation(
            sample=sample,
            log_density=None,
            params=params,
            draws=self.particles,
            key=("svgd", self.particles),
            stats={"steps": history["push"].shape[1] * _PER_STEP, "direction": push},
            status=Status.OK if push < self.tolerance else Status.MAX_STEPS,
        )


def sample(params: dict[str, Any], key: Array, n: int) -> Array:
    """The particles where ``n`` is their number; else ``n`` of them drawn with replacement."""
    particles = jnp.asarray(params["particles"])
    if n != particles.shape[0]:
        particles = particles[jax.random.randint(key, (n,), 0, particles.shape[0])]
    return jax.vmap(lambda w: outward(params, w))(particles)
