"""Discrete chains over time among the factors of a sum-product.

A chain's own factor ties each time point to the one before, so it is no factor of single elements:
it is a `Transition`, with one more leading axis. Eliminating a chain joins all other factors that
hold it into one emission and runs the forward recursion along its last dim; going back samples its
path. See `probkit.models._forward` for the equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.models._forward import backward, forward, sample_path
from probkit.models._tensors import Tensor, pick, spread

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram

_BEFORE = ""  # stands for the state before among the names of leading axes


@dataclass(frozen=True, eq=False)
class Transition:
    """Log factor of a chain.

    One axis for the state before, one for each of ``variables`` (the chain itself first), one for
    each of ``dims`` (the time last).
    """

    variables: tuple[str, ...]
    dims: tuple[str, ...]
    value: Array


def link(program: GraphProgram, name: str, d: Any) -> Array:
    """A chain's transitions in its full natural shape, time last: ``(states, states, *dims)``."""
    states = program.facts[name].support_size
    table = d.transitions(states)
    full = program.facts[name].batch_shape
    table = table.reshape((states, states, *(1,) * (len(full) + 2 - table.ndim), *table.shape[2:]))
    return jnp.broadcast_to(table, (states, states, *full))


def _joined(
    program: GraphProgram, emission: Tensor, chain: Transition
) -> tuple[tuple[str, ...], Array, Array]:
    """The other variables, transitions and emissions, both with time first, of equal shapes."""
    own, time = chain.variables[0], chain.dims[-1]
    names = dict.fromkeys((*emission.variables, *chain.variables))
    rest = tuple(v for v in names if v != own)
    for other in rest:
        if time in program.facts[other].dims:
            raise ValueError(
                f"site {own!r}: it is a discrete chain along {time!r}, and shares a factor with "
                f"the discrete {other!r}, which has that dim too; the two cannot be summed out one "
                "after the other: make them one chain whose states are pairs"
            )
    tail = [program.facts[v].support_size for v in rest] + [program.sizes[d] for d in chain.dims]
    states = program.facts[own].support_size
    e = spread(emission.value, emission.variables, (own, *rest))
    a = spread(chain.value, (_BEFORE, *chain.variables), (_BEFORE, own, *rest))
    e = jnp.broadcast_to(e, (states, *tail))
    a = jnp.broadcast_to(a, (states, states, *tail))
    return rest, jnp.moveaxis(a, -1, 0), jnp.moveaxis(e, -1, 0)


def collapse(program: GraphProgram, emission: Tensor, chain: Transition) -> Tensor:
    """The factor that is left when a chain is summed out."""
    rest, a, e = _joined(program, emission, chain)
    return Tensor(rest, chain.dims[:-1], jax.nn.logsumexp(forward(a, e)[-1], axis=0))


def draw_path(
    key: Array,
    program: GraphProgram,
    emission: Tensor,
    chain: Transition,
    chosen: Mapping[str, Array],
) -> Array:
    """A chain's path from its posterior, given the variables drawn before it."""
    own, dims = chain.variables[0], chain.dims
    others = [v for v in emission.variables if v != own]
    e = spread(emission.value, emission.variables, (own, *others))
    e = pick(e, 1, others, dims, chosen, program)
    a = pick(chain.value, 2, chain.variables[1:], dims, chosen, program)
    a, e = jnp.moveaxis(a, -1, 0), jnp.moveaxis(e, -1, 0)
    e = jnp.broadcast_to(e, a.shape[:1] + a.shape[2:])
    return jnp.moveaxis(sample_path(key, a, forward(a, e)), 0, -1)


def look_up_link(program: GraphProgram, chain: Transition, chosen: Mapping[str, Array]) -> Array:
    """A chain's log density terms at given codes: each state given the one before."""
    own = chain.variables[0]
    # The state before has the chain's dims: it is looked up as if it were the chain itself.
    before = {own: jnp.roll(chosen[own], 1, axis=-1)}
    value = pick(chain.value, 0, (own,), chain.dims, before, program)
    return pick(value, 0, chain.variables, chain.dims, chosen, program)


def cavity(
    program: GraphProgram, site: Tensor, others: Tensor, emission: Tensor, chain: Transition
) -> Array:
    """``log p(y_t | everything else)`` with the chain summed out, for a site of the chain's dims.

    The state at t is predicted from before and from after, ``p_t + b_t``, and by what ``others``
    emit at t; that weights the site's own term there. (Subtracting the term from the whole would
    be no number where a state cannot emit the observation.)
    """
    _, a, e = _joined(program, emission, chain)
    _, _, rest = _joined(program, others, chain)
    before = jax.nn.logsumexp(forward(a, e)[:-1, :, None] + a[1:], axis=1)
    around = jnp.concatenate([a[0, 0][None], before]) + backward(a, e)
    value = jax.nn.logsumexp(around + e, axis=1) - jax.nn.logsumexp(around + rest, axis=1)
    return jnp.transpose(jnp.moveaxis(value, 0, -1), [chain.dims.index(d) for d in site.dims])
