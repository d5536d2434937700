"""L-BFGS as a state machine: one evaluation of the objective a step.

Each step looks at a trial point ``x + t p``. It is accepted when the value falls enough (Armijo),
and the pair of moves of point and gradient then enters the inverse Hessian ``H`` of the next
direction ``p = -H g`` (`_quasi_newton`); else ``t`` is reduced by the minimum of the parabola
through the two values, within [0.1, 0.5]. Before that, the first trials are ``candidates``: the
search starts from the best of them, or of some more points where none of them has a value.

(Sums of products, no ``jnp.dot``: these few numbers are worked on in one compiled kernel, where a
library's product cannot stand.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.lax import select
from jaxtyping import Array

from probkit.inference.gaussian._quasi_newton import (
    all_blind,
    direction_of,
    gain_of,
    no_pairs,
    with_pair,
    with_sight,
)
from probkit.inference.gaussian._starts import another

_ARMIJO = 1e-4
_OTHERS = 40  # points that are looked at where no candidate has a value
MAX_MOVE = 2.0  # hyperparameters are logs: no step multiplies one by more than e^2


class Search(NamedTuple):
    """The state; ``x`` is the best point so far and ``trial`` the one to look at next."""

    x: Array
    value: Array
    slope: Array
    trial: Array
    direction: Array
    length: Array
    memory: Array
    blind: Array
    gain: Array
    looks: Array
    refused: Array


def begin(candidates: Any) -> Search:
    """A search whose first trial is ``candidates[0]``; they have shape ``(count, d)``.

    Nothing is computed: of NumPy's candidates it is made of NumPy's arrays.
    """
    d, dtype = candidates.shape[1], candidates.dtype
    zero, inf = np.zeros((), dtype), np.full((), np.inf, dtype)
    count = np.zeros((), np.int32)
    first, none = candidates[0], np.zeros(d, dtype)
    pairs = no_pairs(d, dtype), all_blind(d, dtype)
    parts: Any = (first, inf, none, first, none, zero, *pairs, inf, count, count)
    return Search(*parts)


def needed(at: Search, candidates: Any) -> Array:
    """The largest value that the trial can have and be taken: above it, no gradient is needed."""
    screening, promised = at.looks < candidates.shape[0], _promised(at)
    return at.value + select(screening, jnp.zeros_like(promised), _ARMIJO * promised)


def _promised(at: Search) -> Array:
    """What the slope says of the trial's value."""
    return jnp.sum(at.slope * at.direction) * at.length


def advance(at: Search, value: Array, slope: Array, candidates: Array) -> tuple[Search, Array]:
    """Judge the trial, whose value and gradient these are; also returns whether it was taken."""
    count = candidates.shape[0]
    screening, fine = at.looks < count, jnp.isfinite(value)
    value = select(fine, value, jnp.full_like(value, jnp.inf))
    promised, most = _promised(at), needed(at, candidates)
    taken = fine & ((value < most) | (~screening & (value == most)))
    taken &= jnp.all(jnp.isfinite(slope))
    move, turn = at.trial - at.x, slope - at.slope
    memory, learnt = with_pair(at.memory, move, turn, taken & ~screening)
    blind = with_sight(at.blind, move, learnt)
    x, slope = select(taken, at.trial, at.x), select(taken, slope, at.slope)
    lost = (at.looks == count - 1) & ~taken & jnp.isinf(at.value)
    more = lost & (at.refused < _OTHERS)
    looks = at.looks + select(more, jnp.zeros_like(at.looks), jnp.ones_like(at.looks))
    searching = looks >= count
    # From here on the direction is that of the point kept; a refused trial keeps its direction.
    fresh = taken | (looks == count)
    direction = select(fresh, direction_of(slope, memory), at.direction)
    bend = value - at.value - promised
    parabola = jnp.where(fine & (bend > 0), -0.5 * promised / bend, jnp.where(fine, 0.5, 0.1))
    largest = jnp.max(jnp.abs(direction), initial=0.0)
    whole = jnp.minimum(1.0, MAX_MOVE / jnp.maximum(largest, 1e-30))
    length = select(fresh, whole, at.length * jnp.clip(parabola, 0.1, 0.5))
    other = another(candidates[-1], at.refused)
    following = select(more, other, candidates[jnp.minimum(looks, count - 1)])
    gain = gain_of(slope, direction, blind)
    new = Search(
        x=x,
        value=select(taken, value, at.value),
        slope=slope,
        trial=select(searching, x + length * direction, following),
        direction=direction,
        length=length,
        memory=memory,
        blind=blind,
        gain=select(searching, gain, jnp.full_like(gain, jnp.inf)),
        looks=looks,
        refused=select(more | (searching & ~taken), at.refused + 1, jnp.zeros_like(looks)),
    )
    return new, taken
