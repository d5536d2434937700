"""The only file of this package that touches BlackJAX: Pathfinder's paths, Stein's kernel step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def paths(
    key: Array, log_density: Callable, starts: Array, draws: int, max_steps: int
) -> dict[str, Array]:
    """One run of Pathfinder a start.

    Args:
        key: a typed key.
        log_density: of one vector.
        starts: shape ``(paths, d)``.
        draws: draws that estimate the ELBO of every Gaussian along a path.
        max_steps: steps of L-BFGS a path at the most.

    Returns:
        ``mean`` (paths, d), ``tril`` (paths, d, d) of the best Gaussian of each path, and its
        ``elbo`` (paths,).
    """
    from blackjax.vi import pathfinder

    def one(key: Array, start: Array) -> dict[str, Array]:
        state, _ = pathfinder.approximate(
            key, log_density, start, draws, maxiter=max_steps, maxls=100
        )
        covariance = jnp.diag(state.alpha) + state.beta @ state.gamma @ state.beta.T
        mean = state.position + covariance @ jax.grad(log_density)(state.position)
        even = 0.5 * (covariance + covariance.T)
        return {"mean": mean, "tril": jnp.linalg.cholesky(even), "elbo": state.elbo}

    return jax.vmap(one)(jax.random.split(key, starts.shape[0]), starts)


def stein_step(log_density: Callable, particles: Array, rate: Array, memory: Any) -> tuple:
    """One step of Stein variational gradient descent with Adagrad-like steps.

    Args:
        log_density: of one vector.
        particles: shape ``(n, d)``.
        rate: step size.
        memory: running mean of the squared direction, shape ``(n, d)``.

    Returns:
        The particles, the memory, and the root mean square of the direction.
    """
    import optax
    from blackjax.vi import svgd

    length = svgd.median_heuristic({"length_scale": jnp.ones((), particles.dtype)}, particles)
    kernel = svgd.build_kernel(optax.sgd(1.0))
    state = svgd.init(particles, length, optax.sgd(1.0))
    moved: Any = kernel(state, jax.grad(log_density), svgd.rbf_kernel).particles
    direction = moved - particles
    memory = 0.9 * memory + 0.1 * direction**2
    step = rate * direction / (jnp.sqrt(memory) + 1e-6)
    return particles + step, memory, jnp.sqrt(jnp.mean(direction**2))
