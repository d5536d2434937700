"""The one file that reaches blackjax's MCMC: kernels, metrics, dual averaging, window schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.metric_recipes import MetricCore, lookup_recipe
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.adaptation.window_adaptation import build_schedule
from blackjax.mcmc import hmc, nuts
from jaxtyping import Array, PyTree

_RECIPES = {"diag": "welford_diag", "dense": "welford_dense", "low_rank": "fisher_low_rank"}
_BUFFER = 512


def window_ends(warmup: int, size: int = 24) -> tuple[int, int, np.ndarray]:
    """Stan's schedule: first and last slow step, and the ends of the slow windows (padded)."""
    schedule = np.asarray([(int(a), int(b)) for a, b in build_schedule(warmup)] or [(0, 0)])
    slow = np.flatnonzero(schedule[:, 0] == 1)
    ends = np.flatnonzero(schedule[:, 1] == 1)
    padded = np.full(size, -1, np.int32)
    padded[: ends.size] = ends
    if slow.size == 0:
        return 0, 0, padded
    return int(slow[0]), int(slow[-1]) + 1, padded


def metric_core(kind: str, dimension: int) -> MetricCore:
    """The adaptation of an inverse mass matrix, from blackjax's registry."""
    recipe = lookup_recipe(_RECIPES[kind])
    if kind != "low_rank":
        return recipe.build_core()
    # Rows beyond the buffer overwrite the oldest: the metric is made of the latest draws.
    rows = int(np.clip(2**22 // max(dimension, 1), 64, _BUFFER))
    return recipe.build_core(buffer_size=rows)


class Packed:
    """A pytree of a fixed structure as a tuple of arrays.

    Programs that are kept on disk may only take and return built-in containers.
    """

    def __init__(self, make: Callable[[], PyTree]):
        example = jax.eval_shape(make)
        self.treedef = jax.tree.structure(example)
        self.dtypes = [x.dtype for x in jax.tree.leaves(example)]

    def pack(self, tree: PyTree) -> tuple[Array, ...]:
        """The leaves, in the dtypes that `make` has."""
        leaves = jax.tree.leaves(tree)
        return tuple(jnp.asarray(x, t) for x, t in zip(leaves, self.dtypes, strict=True))

    def unpack(self, leaves: tuple[Array, ...]) -> PyTree:
        """The tree."""
        return jax.tree.unflatten(self.treedef, leaves)


def dual_averaging(target: Array) -> tuple[Callable, Callable]:
    """``init(step_size)`` and ``update(state, acceptance_rate)`` of dual averaging."""
    init, update, _ = dual_averaging_adaptation(target)
    return init, update


def start(position: Array, log_density: Callable) -> Any:
    """blackjax's chain state at a point."""
    return hmc.init(position, log_density)


def chain_state(position: Array, log_density: Array, gradient: Array) -> Any:
    """blackjax's chain state from its parts."""
    return hmc.HMCState(position, log_density, gradient)


def nuts_step(
    key: Array, state: Any, log_density: Callable, step_size: Array, metric: Any, max_depth: int
) -> tuple[Any, dict[str, Array]]:
    """One NUTS transition and its statistics."""
    state, info = nuts.build_kernel()(key, state, log_density, step_size, metric, max_depth)
    depth = jnp.asarray(info.num_trajectory_expansions, jnp.int32)
    return state, {
        "lp": state.logdensity,
        "energy": info.energy,
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.is_divergent,
        "tree_depth": depth,
        "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
        "reached_max_treedepth": (depth >= max_depth) & ~info.is_turning & ~info.is_divergent,
    }


def hmc_step(
    key: Array, state: Any, log_density: Callable, step_size: Array, metric: Any, steps: Array
) -> tuple[Any, dict[str, Array]]:
    """One HMC transition and its statistics."""
    state, info = hmc.build_kernel()(key, state, log_density, step_size, metric, steps)
    return state, {
        "lp": state.logdensity,
        "energy": info.energy,
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.is_divergent,
        "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
    }
