r"""L-BFGS as a state machine: one evaluation of the objective a step.

Each step looks at a trial point ``x + t p``. It is accepted when the value falls enough (Armijo),
and the pair ``s, y`` of moves of point and gradient then enters the memory if ``s'y > 0``; else
``t`` is reduced by the minimum of the parabola through the two values, within [0.1, 0.5]. The next
direction is ``p = -H g`` by the two-loop recursion (Nocedal and Wright 2006, algorithm 7.4). Before
that, the first trials are ``candidates``: the search starts from the best of them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

MEMORY = 10
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
    moves: Array
    turns: Array
    pairs: Array
    gain: Array
    looks: Array
    refused: Array


def begin(candidates: Array) -> Search:
    """A search whose first trial is ``candidates[0]``; they have shape ``(count, d)``."""
    d, dtype = candidates.shape[1], candidates.dtype
    zero, inf = jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype)
    count = jnp.int32(0)
    memory = jnp.zeros((MEMORY, d), dtype)
    first = candidates[0]
    none = jnp.zeros_like(first)
    return Search(first, inf, none, first, none, zero, memory, memory, count, inf, count, count)


def advance(at: Search, value: Array, slope: Array, candidates: Array) -> tuple[Search, Array]:
    """Judge the trial, whose value and gradient these are; also returns whether it was taken."""
    screening = at.looks < candidates.shape[0]
    fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    value = jnp.where(fine, value, jnp.inf)
    promised = jnp.dot(at.slope, at.direction) * at.length
    enough = value <= at.value + _ARMIJO * promised
    taken = fine & jnp.where(screening, value < at.value, enough)
    moves, turns, pairs = _remember(at, slope, taken & ~screening)
    x = jnp.where(taken, at.trial, at.x)
    slope = jnp.where(taken, slope, at.slope)
    # Where no candidate has a value, others are drawn from as wide a box, for a while.
    last = at.looks == candidates.shape[0] - 1
    more = last & ~taken & jnp.isinf(at.value) & (at.refused < _OTHERS)
    looks = at.looks + jnp.where(more, 0, 1)
    # From here on the direction is that of the point kept; a refused trial keeps its direction.
    fresh = taken | (looks == candidates.shape[0])
    direction = jnp.where(fresh, direction_of(slope, moves, turns, pairs), at.direction)
    bend = value - at.value - promised
    parabola = jnp.where(bend > 0, -0.5 * promised / bend, 0.5)
    shorter = at.length * jnp.clip(jnp.where(fine, parabola, 0.1), 0.1, 0.5)
    largest = jnp.max(jnp.abs(direction), initial=0.0)
    whole = jnp.minimum(1.0, MAX_MOVE / jnp.maximum(largest, 1e-30))
    length = jnp.where(fresh, whole, shorter)
    following = candidates[jnp.minimum(looks, candidates.shape[0] - 1)]
    following = jnp.where(more, _another(candidates, at.refused), following)
    searching = looks >= candidates.shape[0]
    new = Search(
        x=x,
        value=jnp.where(taken, value, at.value),
        slope=slope,
        trial=jnp.where(searching, x + length * direction, following),
        direction=direction,
        length=length,
        moves=moves,
        turns=turns,
        pairs=pairs,
        gain=jnp.where(searching, -0.5 * jnp.dot(slope, direction), jnp.inf),
        looks=looks,
        refused=jnp.where(more | (searching & ~taken), at.refused + 1, 0).astype(jnp.int32),
    )
    return new, taken


def _another(candidates: Array, t: Array) -> Array:
    """The ``t``-th further candidate; the same for every search."""
    key = jax.random.fold_in(jax.random.key(0), t)
    wide = jnp.max(jnp.abs(candidates), initial=0.0)
    return jax.random.uniform(key, candidates.shape[1:], candidates.dtype, -wide, wide)


def _remember(at: Search, slope: Array, taken: Array) -> tuple[Array, Array, Array]:
    s, y = at.trial - at.x, slope - at.slope
    tiny = 1e-10 * jnp.sqrt(jnp.dot(s, s) * jnp.dot(y, y))
    good = taken & (jnp.dot(s, y) > tiny)
    push = lambda rows, row: jnp.where(good, jnp.roll(rows, 1, 0).at[0].set(row), rows)  # noqa: E731
    return push(at.moves, s), push(at.turns, y), at.pairs + good.astype(jnp.int32)


def direction_of(slope: Array, moves: Array, turns: Array, pairs: Array) -> Array:
    """``-H g``; the newest pair comes first, and rows that hold none are zero."""
    sy = jnp.sum(moves * turns, axis=1)
    rho = jnp.where(sy > 0, 1.0 / jnp.where(sy > 0, sy, 1.0), 0.0)

    def down(q: Array, row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        s, y, r = row
        a = r * jnp.dot(s, q)
        return q - a * y, a

    q, shares = jax.lax.scan(down, slope, (moves, turns, rho))
    yy = jnp.dot(turns[0], turns[0])
    # Without a pair, a step of length one at the most.
    norm = jnp.maximum(jnp.sqrt(jnp.dot(slope, slope)), 1.0)
    scale = jnp.where(pairs > 0, sy[0] / jnp.where(yy > 0, yy, 1.0), 1.0 / norm)

    def up(q: Array, row: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        s, y, r, a = row
        return q + (a - r * jnp.dot(y, q)) * s, None

    q, _ = jax.lax.scan(up, scale * q, (moves, turns, rho, shares), reverse=True)
    return -q
