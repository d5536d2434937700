"""Points of the unconstrained space: from values in the model's space, and at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import biject_to

from probkit.models._centring import decentre
from probkit.models._nodes import Deterministic, RandomVariable
from probkit.models._sites import call

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram


def unconstrained_point(
    program: GraphProgram, values: Mapping[str, Array], arrays: dict
) -> dict[str, Array]:
    """The point of the unconstrained space at which the sites have these values."""
    view = program.view(arrays)
    env: dict[str, Any] = {}
    out: dict[str, Array] = {}
    for name, node in program.nodes.items():
        if name in program.barren:
            continue
        if isinstance(node, Deterministic):
            env[name] = call(name, node, program.arguments(name, env, view))
        elif isinstance(node, RandomVariable):
            f = program.facts[name]
            if name in program.discrete:
                first = jnp.full(f.shape, np.asarray(f.values)[0])
                env[name] = jnp.asarray(values.get(name, first))
                continue
            d = program.distribution(name, env, view)
            if name in program.plan.observed:
                missing = None
                if name in program.imputed:
                    own = f"{name}_missing"
                    missing = jnp.asarray(values[own], program.dtype)
                    out[own] = program.imputed_transform(name, d, view)._inverse(missing)
                env[name] = program.filled(name, missing, view)
                continue
            value = jnp.broadcast_to(jnp.asarray(values[name], program.dtype), f.shape)
            env[name] = value
            if f.style in ("auto", "noncentred"):
                weight = view.centred[name] if f.style == "auto" else False
                out[name] = decentre(d, value, weight)
            else:
                out[name] = biject_to(d.support)._inverse(value)
    return out


def random_point(program: GraphProgram, key: Array, arrays: dict) -> dict[str, Array]:
    """A point with entries uniform on (-2, 2); discrete sites are drawn from their prior."""
    view = program.view(arrays)
    env: dict[str, Any] = {}
    out: dict[str, Array] = {}
    for i, (name, node) in enumerate(program.nodes.items()):
        own_key = jax.random.fold_in(key, i)
        if name in program.barren:
            continue
        if isinstance(node, Deterministic):
            env[name] = call(name, node, program.arguments(name, env, view))
        elif isinstance(node, RandomVariable) and name in program.plan.observed:
            missing = None
            if name in program.imputed:
                own = f"{name}_missing"
                out[own] = jax.random.uniform(own_key, program.shapes[own], program.dtype, -2, 2)
                d = program.distribution(name, env, view)
                missing, _ = program.imputed_value(name, d, out[own], view)
            env[name] = program.filled(name, missing, view)
        elif isinstance(node, RandomVariable) and name in program.discrete:
            env[name] = program.draw(own_key, name, env, view)
        elif isinstance(node, RandomVariable):
            shape = program.shapes[name]
            out[name] = jax.random.uniform(own_key, shape, program.dtype, -2.0, 2.0)
            d = program.distribution(name, env, view)
            env[name], _ = program.latent(name, d, out[name], view)
    return out
