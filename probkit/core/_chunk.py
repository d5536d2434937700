"""The compiled loop over some steps of all chains: what `run` calls again and again.

A method with `settling` steps is run in legs that end there; its chains settle between two legs.
The steps of one leg are the inner loop, which small models compile into one kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from probkit.core._abreast import each_chain
from probkit.core._inference import Inference
from probkit.core._keys import step_key, wrap_key
from probkit.core._one_kernel import as_one_kernel
from probkit.core._target import Batch, Target

#: Steps done, the state, the infos of the steps, whether all is done, and a status by chain.
Carry = tuple[Array, PyTree, PyTree, Array, Array]


def chunk_function(
    rebuild: Callable[[list, dict], tuple[Inference, Target]],
    capacity: int,
    devices: int,
    dim: str | None,
    one_kernel: bool,
) -> Callable[..., Any]:
    """``(key, t0, n, chains, state, leaves, arrays, rows) -> (taken, state, infos, done, status)``.

    Args:
        rebuild: makes the method and the target of their traced leaves and arrays.
        capacity: the most steps of one call (``n`` is traced and at most this).
        devices: over how many devices chains are divided.
        dim: the dim that mini-batches are drawn along, if they are.
        one_kernel: compile the steps between two settlings as one kernel.
    """

    def chunk(key, t0, n, chains, state, leaves, arrays, rows):
        method, target = rebuild(leaves, arrays)

        @jax.jit
        def step_all(t, state, batch):
            keys = jax.vmap(lambda c: step_key(wrap_key(key), t, c))(chains)
            new, info = each_chain(lambda k, s: method.step(k, target, s, batch, t), keys, state)
            done, status = jax.vmap(method.terminate)(new, info)
            return new, info, jnp.all(done), status.astype(jnp.int32)

        def batch_of(i):
            if rows is None or dim is None:
                return None
            return Batch(dim, jax.lax.dynamic_index_in_dim(rows, i, keepdims=False))

        def body(carry: Carry) -> Carry:
            i, state, infos, _, _ = carry
            state, info, done, status = step_all(t0 + i, state, batch_of(i))
            infos = jax.tree.map(lambda b, x: b.at[i].set(x), infos, info)
            return i + 1, state, infos, done | jnp.any(status != 0), status

        def run_to(limit: Array, carry: Carry) -> Carry:
            def going(carry):
                # Chains on other devices do not know of this one's end: they do all n steps.
                return (carry[0] < limit) & (~carry[3] if devices == 1 else True)

            return jax.lax.while_loop(going, body, carry)

        leg = as_one_kernel(run_to) if one_kernel else run_to
        like = jax.eval_shape(step_all, t0, state, batch_of(0))
        infos = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), like[1])
        codes = jnp.zeros(like[3].shape, jnp.int32)
        carry = (jnp.int32(0), state, infos, jnp.asarray(False), codes)
        if method.settling is None:
            taken, state, infos, done, status = leg(n, carry)
        else:
            settle = _settler(method, target)
            ends = jnp.asarray(method.settling) - t0 + 1
            taken, state, infos, done, status = _in_legs(leg, settle, n, ends, devices, carry)
        return taken[None], state, infos, done[None], status

    return chunk


def _settler(method: Inference, target: Target) -> Callable[[PyTree], PyTree]:
    def settle(state: PyTree) -> PyTree:
        count = jax.tree.leaves(state)[0].shape[0]
        return each_chain(lambda _, s: method.settle(target, s), jnp.arange(count), state)

    return settle


def _in_legs(
    leg: Callable[[Array, Carry], Carry],
    settle: Callable[[PyTree], PyTree],
    n: Array,
    ends: Array,
    devices: int,
    carry: Carry,
) -> Carry:
    """The loop up to ``n`` steps; after as many as an entry of ``ends`` says, chains settle."""

    def one(carry: Carry) -> Carry:
        ahead = ends > carry[0]
        carry = leg(jnp.minimum(n, jnp.min(jnp.where(ahead, ends, n))), carry)
        due = jnp.any(ahead & (ends == carry[0]))
        return (carry[0], jax.lax.cond(due, settle, lambda s: s, carry[1]), *carry[2:])

    def going(carry: Carry) -> Array:
        return (carry[0] < n) & (~carry[3] if devices == 1 else True)

    return jax.lax.while_loop(going, one, carry)
