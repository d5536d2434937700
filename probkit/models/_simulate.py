"""Forward passes over a program's graph: simulate its sites, or score its observed ones.

Both walk the graph in its order with some sites held at given values. A held value is an array of
the site's shape, or a pair ``(value, mask)`` that holds only the entries under the mask (the groups
that new data share with the training data); the elements of a site along its batch dims are
independent given their parents, so the others are drawn from the same distribution. A Gaussian
process at new points (``arrays["process"]`` has the old ones) is held at its residual there, and is
drawn, or integrated over, given that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.models._gp_conditional import conditional_draw, conditional_moments
from probkit.models._markov import Markov
from probkit.models._nodes import Deterministic, Factor, RandomVariable
from probkit.models._normal_mean import log_normal_mean
from probkit.models._sites import call

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram
    from probkit.models._plan import View


def simulate(
    program: GraphProgram, key: Array, values: Mapping[str, Any], arrays: dict
) -> dict[str, Array]:
    """A draw of every site that is not held; children of observed sites see the observed values."""
    view = program.view(arrays)
    env: dict[str, Any] = {}
    out: dict[str, Array] = {}
    for i, (name, node) in enumerate(program.nodes.items()):
        own_key = jax.random.fold_in(key, i)
        if isinstance(node, Deterministic):
            env[name] = call(name, node, program.arguments(name, env, view))
            if not node.hidden:
                out[name] = jnp.asarray(env[name])
        elif isinstance(node, RandomVariable):
            if _moved(name, values, arrays):
                residual = values[name]
                env[name] = conditional_draw(program, own_key, name, env, residual, arrays, view)
                out[name] = env[name]
                continue
            if _held(values.get(name)):
                env[name] = values[name]
                continue
            out[name] = env[name] = _draw(program, own_key, name, env, values, view)
            if name in program.plan.observed:
                # Children of an observed variable see what was observed, not a replicate.
                env[name] = _seen(program, name, out[name], values, view)
    return out


def score(
    program: GraphProgram, key: Array, values: Mapping[str, Any], arrays: dict
) -> dict[str, Array]:
    """Log likelihood of each observation (NaN where it is missing); latents not held are drawn."""
    return _score_from(program, 0, key, {}, values, arrays)


def _score_from(
    program: GraphProgram, first: int, key: Array, env: dict, values: Mapping, arrays: dict
) -> dict[str, Array]:
    """The scores of the nodes from number ``first`` on; ``env`` has the values of those before."""
    view = program.view(arrays)
    out: dict[str, Array] = {}
    for i, (name, node) in list(enumerate(program.nodes.items()))[first:]:
        own_key = jax.random.fold_in(key, i)
        if isinstance(node, Deterministic):
            env[name] = call(name, node, program.arguments(name, env, view))
        elif isinstance(node, Factor):
            if node.likelihood:
                out[name] = jnp.asarray(call(name, node, program.arguments(name, env, view)))
        elif _moved(name, values, arrays):
            if "pointwise" in arrays:
                mean, sd = conditional_moments(program, name, env, values[name], arrays, view)
                at = lambda t, n=name, j=i, m=mean, s=sd: _score_from(  # noqa: E731
                    program, j + 1, key, {**env, n: m + s * t}, values, arrays
                )
                return {**out, **log_normal_mean(at, mean.dtype)}
            residual = values[name]
            env[name] = conditional_draw(program, own_key, name, env, residual, arrays, view)
        elif name not in program.plan.observed:
            held = _held(values.get(name))
            env[name] = values[name] if held else _draw(program, own_key, name, env, values, view)
        else:
            draw = None
            if name in program.imputed and f"{name}_missing" not in values:
                draw = program.draw(own_key, name, env, view)
            env[name] = _seen(program, name, draw, values, view)
            terms = program.distribution(name, env, view).log_prob(env[name])
            out[name] = _without_missing(program, name, terms, arrays)
    return out


def _moved(name: str, values: Mapping[str, Any], arrays: dict) -> bool:
    """Whether a site is a process at other points than those it was fitted to."""
    return name in arrays.get("process", {}) and name in values


def _held(value: Any) -> bool:
    """Whether all of a site's entries are held."""
    return value is not None and not isinstance(value, tuple)


def _draw(
    program: GraphProgram, key: Array, name: str, env: Mapping, values: Mapping, view: View
) -> Array:
    if name not in values:
        return program.draw(key, name, env, view)
    known, mask = values[name]
    if isinstance(program.nodes[name], Markov):
        return program.distribution(name, env, view).continued(key, known, mask)
    return jnp.where(mask, known, program.draw(key, name, env, view))


def _seen(
    program: GraphProgram, name: str, draw: Array | None, values: Mapping, view: View
) -> Array:
    """An observed value; its missing entries are the held ones, or those of the draw."""
    missing = values.get(f"{name}_missing")
    if missing is None and name in program.imputed and draw is not None:
        missing = draw.reshape(-1)[view.index[name]]
    return program.filled(name, missing, view)


def _without_missing(program: GraphProgram, name: str, terms: Array, arrays: dict) -> Array:
    terms = jnp.broadcast_to(terms, program.facts[name].batch_shape)
    if name not in arrays["masked"]:
        return terms
    return jnp.where(program.holes(name, arrays), jnp.nan, terms)
