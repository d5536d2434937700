"""NumPyro's NUTS as a second engine under the same contract (the one file that reaches it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Target
from probkit.inference.mcmc._start import find_start

if TYPE_CHECKING:
    from probkit.inference.mcmc._nuts import NUTS


def _kernels(target: Target) -> tuple[Any, Any]:
    from numpyro.infer.hmc import hmc

    return hmc(lambda z: -target.flat_log_density(z), kinetic_fn=_kinetic, algo="NUTS")


def _kinetic(inverse_mass_matrix: Array, momentum: Array) -> Array:
    # The products of an enormous momentum overflow with either sign, and minus infinity would be
    # taken for the best point of the trajectory.
    dense = inverse_mass_matrix.ndim == 2
    speed = inverse_mass_matrix @ momentum if dense else inverse_mass_matrix * momentum
    energy = 0.5 * jnp.dot(speed, momentum)
    return jnp.where(energy >= 0, energy, jnp.inf)


def _initial(init: Any, key: Array, position: Array, method: NUTS) -> Any:
    return init(
        position,
        method.static_warmup,
        target_accept_prob=method.target_accept,
        dense_mass=method.metric == "dense",
        adapt_mass_matrix=method.metric != "identity",
        max_tree_depth=method.max_depth,
        rng_key=jax.random.key_data(key),
    )


def init_state(key: Array, target: Target, method: NUTS) -> dict[str, Any]:
    """NumPyro's chain state, as a tuple of its leaves."""
    position, value, gradient = find_start(key, target)
    init, _ = _kernels(target)
    state = _initial(init, jax.random.fold_in(key, 1), position, method)
    return {"lp": value, "leaves": tuple(jax.tree.leaves(state))}


def step(
    key: Array, target: Target, state: dict[str, Any], method: NUTS
) -> tuple[dict[str, Any], dict[str, Array]]:
    """One transition; the run's key replaces the one that NumPyro carries in its state."""
    position = jax.ShapeDtypeStruct((target.program.flat.size,), target.dtype)
    init, sample = _kernels(target)
    # NumPyro's `init` also sets up what `sample` closes over; an abstract call is enough for that.
    example = jax.eval_shape(lambda k, x: _initial(init, k, x, method), key, position)
    old = jax.tree.unflatten(jax.tree.structure(example), state["leaves"])
    old = old._replace(rng_key=jax.random.key_data(key))
    new = sample(old)
    leaves = tuple(
        jnp.asarray(a, b.dtype) for a, b in zip(jax.tree.leaves(new), state["leaves"], strict=True)
    )
    lp = -new.potential_energy
    depth = jnp.floor(jnp.log2(new.num_steps.astype(jnp.float32) + 1)).astype(jnp.int32)
    return {"lp": lp, "leaves": leaves}, {
        "position": new.z,
        "lp": lp,
        "energy": new.energy,
        "acceptance_rate": new.accept_prob,
        "diverging": new.diverging,
        "tree_depth": depth,
        "n_steps": new.num_steps.astype(jnp.int32),
        "reached_max_treedepth": depth >= method.max_depth,
        "step_size": old.adapt_state.step_size,
    }
