r"""The forward-backward recursions of a discrete chain, in logs.

With states ``k``, transitions ``A_t[j, k] = log p(x_t = k | x_{t-1} = j)`` (row 0 holds the initial
distribution, whatever ``j``) and emissions ``e_t[k]``, the log density of all that depends on x_t,

    a_0[k] = A_0[., k] + e_0[k],   a_t[k] = e_t[k] + log sum_j exp(a_{t-1}[j] + A_t[j, k])
    b_T[k] = 0,         b_t[j] = log sum_k exp(A_{t+1}[j, k] + e_{t+1}[k] + b_{t+1}[k])

and ``log sum_k exp a_T[k]`` is the log density with the chain summed out (Rabiner 1989, equations
19-25, here in logs instead of scaled). Arrays have time first, then states, then any further axes,
along which chains repeat. Cost: O(T K^2) for each of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array


def forward(transition: Array, emission: Array) -> Array:
    """``a_t[k]``, shape ``(time, states, ...)``.

    Args:
        transition: shape ``(time, states, states, ...)``.
        emission: shape ``(time, states, ...)``.
    """

    def advance(before: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        a, e = now
        after = jax.nn.logsumexp(before[:, None] + a, axis=0) + e
        return after, after

    first = transition[0, 0] + emission[0]
    _, rest = jax.lax.scan(advance, first, (transition[1:], emission[1:]))
    return jnp.concatenate([first[None], rest])


def backward(transition: Array, emission: Array) -> Array:
    """``b_t[k]``, shape ``(time, states, ...)``."""

    def retreat(after: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        a, e = now
        before = jax.nn.logsumexp(a + (e + after)[None], axis=1)
        return before, before

    last = jnp.zeros_like(emission[0])
    _, rest = jax.lax.scan(retreat, last, (transition[1:], emission[1:]), reverse=True)
    return jnp.concatenate([rest, last[None]])


def sample_path(key: Array, transition: Array, forward_terms: Array) -> Array:
    """One path from its posterior, last state first: shape ``(time, ...)``, whole numbers."""
    length = transition.shape[0]
    last = jax.random.categorical(jax.random.fold_in(key, 0), forward_terms[-1], axis=0)

    def retreat(state: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        a, following, number = now
        index = jnp.broadcast_to(state[None, None], (following.shape[0], 1, *state.shape))
        logits = a + jnp.take_along_axis(following, index, axis=1)[:, 0]
        before = jax.random.categorical(jax.random.fold_in(key, number), logits, axis=0)
        return before, before

    numbers = jnp.arange(1, length)
    steps = (forward_terms[:-1], transition[1:], numbers)
    _, path = jax.lax.scan(retreat, last, steps, reverse=True)
    return jnp.concatenate([path, last[None]])
