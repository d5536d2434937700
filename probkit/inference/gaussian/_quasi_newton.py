r"""An inverse Hessian learnt from moves ``s`` of a point and ``y`` of its gradient (BFGS).

    H <- (I - r s y') H (I - r y s') + r s s',     r = 1 / s'y

from ``H = (s'y / y'y) I`` before the first pair (Nocedal and Wright 2006, equations 6.17 and 6.20).
Up to `_DENSE` coordinates it is kept as the matrix. Beyond (the weights of a network in a kernel)
it is the last ``MEMORY`` pairs, ``(2, MEMORY, d)``, the newest first and blank ones zero, and
products are by the two-loop recursion (algorithm 7.4). Without a pair the memory is zero, and a
direction is steepest descent of length one at the most.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import select
from jaxtyping import Array

MEMORY = 10
_DENSE = 128


def no_pairs(d: int, dtype: Any) -> Array:
    """The memory before the first pair."""
    return jnp.zeros((d, d) if d <= _DENSE else (2, MEMORY, d), dtype)


def with_pair(memory: Array, s: Array, y: Array, use: Array) -> tuple[Array, Array]:
    """The memory with another pair, where that is to be used and says something; whether it is."""
    sy, yy = jnp.sum(s * y), jnp.sum(y * y)
    good = use & (sy > 1e-10 * jnp.sqrt(jnp.sum(s * s) * yy))
    if memory.ndim == 3:
        shifted = jnp.concatenate([jnp.stack([s, y])[:, None], memory[:, :-1]], axis=1)
        return select(good, shifted, memory), good
    first = memory[0, 0] == 0.0
    start = (sy / yy) * jnp.eye(len(s), dtype=s.dtype)
    h = select(first, start, memory)
    hy = jnp.sum(h * y, axis=1)
    r = 1.0 / sy
    cross = hy[:, None] * s
    new = h + (r + r * r * jnp.sum(hy * y)) * (s[:, None] * s) - r * (cross + cross.T)
    return select(good, new, memory), good


def all_blind(d: int, dtype: Any) -> Array:
    """The projector on the directions that no pair tells of: all (not kept beyond `_DENSE`)."""
    return jnp.eye(d if d <= _DENSE else 0, dtype=dtype)


def with_sight(blind: Array, s: Array, use: Array) -> Array:
    """The projector without the direction of a move, where it is to be used and is a new one."""
    if blind.shape != (len(s), len(s)):
        return blind
    new = jnp.sum(blind * s, axis=1)
    size = jnp.sum(new * new)
    fresh = use & (size > 0.01 * jnp.sum(s * s))
    return select(fresh, blind - new[:, None] * (new / size), blind)


def gain_of(slope: Array, direction: Array, blind: Array) -> Array:
    """What is left to gain, in units of the value: as the quadratic model has it, or more.

    Where no pair tells of a direction, the model's curvature is that of another one, and often too
    large by far: a curvature of one is held possible there.
    """
    promised = -0.5 * jnp.sum(slope * direction)
    if blind.shape != (len(slope), len(slope)):
        return promised
    return promised + 0.5 * jnp.sum(jnp.sum(blind * slope, axis=1) ** 2)


def direction_of(slope: Array, memory: Array) -> Array:
    """``-H g``."""
    steepest = -slope / jnp.maximum(jnp.sqrt(jnp.sum(slope**2)), 1.0)
    if memory.ndim == 2:
        blank = memory[0, 0] == 0.0
        return select(blank, steepest, -jnp.sum(memory * slope, axis=1))
    sy = jnp.sum(memory[0] * memory[1], axis=1)
    rho = jnp.where(sy > 0, 1.0 / sy, 0.0)

    def down(q: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        pair, r = row
        a = r * jnp.sum(pair[0] * q)
        return q - a * pair[1], a

    def up(q: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        pair, r, a = row
        return q + (a - r * jnp.sum(pair[1] * q)) * pair[0], None

    pairs = jnp.swapaxes(memory, 0, 1)
    q, shares = jax.lax.scan(down, slope, (pairs, rho))
    scale = sy[0] / jnp.sum(memory[1, 0] ** 2)
    whole = jax.lax.scan(up, scale * q, (pairs, rho, shares), reverse=True)[0]
    return select(sy[0] > 0, -whole, steepest)
