"""The one file that reaches blackjax's MCMC: kernels, metrics, dual averaging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.metric_recipes import MetricCore, lookup_recipe
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.mcmc import hmc, metrics, nuts
from jaxtyping import Array, PyTree

from probkit.inference.mcmc._metric import UP_TO, fisher_core

_RECIPES = {"diag": "welford_diag", "dense": "welford_dense", "low_rank": "fisher_low_rank"}
_BUFFER = 512


def metric_core(kind: str, dimension: int, dtype: Any) -> MetricCore:
    """The adaptation of an inverse mass matrix: blackjax's, or ours for a moderate dimension."""
    if kind == "low_rank" and dimension <= UP_TO:
        return fisher_core(dtype)
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


def dual_averaging(target: Any) -> tuple[Callable, Callable]:
    """``init(step_size)`` and ``update(state, acceptance_rate)`` of dual averaging."""
    init, update, _ = dual_averaging_adaptation(target)
    return init, update


def start(position: Array, log_density: Callable) -> Any:
    """blackjax's chain state at a point."""
    return hmc.init(position, log_density)


def chain_state(position: Any, log_density: Any, gradient: Any) -> Any:
    """blackjax's chain state from its parts."""
    return hmc.HMCState(position, log_density, gradient)


def _bounded(inverse_mass: Any) -> metrics.Metric:
    """The metric with a kinetic energy that cannot overflow to minus infinity.

    Far out, the products of an enormous momentum overflow with either sign, and a point of energy
    minus infinity would be accepted for certain. It counts as infinitely high: a divergence.
    """
    metric = metrics.default_metric(inverse_mass)

    def kinetic_energy(momentum: Array, *args: Any, **kwargs: Any) -> Array:
        energy = metric.kinetic_energy(momentum, *args, **kwargs)
        return jnp.where(energy >= 0, energy, jnp.inf)

    return metric._replace(kinetic_energy=kinetic_energy)


def nuts_step(
    key: Array, state: Any, log_density: Callable, step_size: Any, metric: Any, max_depth: int
) -> tuple[Any, dict[str, Any]]:
    """One NUTS transition and its statistics."""
    metric = _bounded(metric)
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
    key: Array, state: Any, log_density: Callable, step_size: Any, metric: Any, steps: Any
) -> tuple[Any, dict[str, Any]]:
    """One HMC transition and its statistics."""
    metric = _bounded(metric)
    old = state.logdensity
    state, info = hmc.build_kernel()(key, state, log_density, step_size, metric, steps)
    # blackjax tells the energy of the proposal; that of the chain is what E-BFMI is about.
    stayed = metric.kinetic_energy(info.momentum) - old
    return state, {
        "lp": state.logdensity,
        "energy": jnp.where(info.is_accepted, info.energy, stayed),
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.is_divergent,
        "n_steps": jnp.asarray(info.num_integration_steps, jnp.int32),
    }
