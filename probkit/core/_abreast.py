"""Chains beside each other: in turns, vectorised, or divided among devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, PyTree

from probkit.core._errors import check_count

#: The most chains that a CPU steps one after the other.
_IN_TURNS = 16
#: Operations that a CPU has LAPACK do.
_LAPACK = frozenset(
    "cholesky triangular_solve lu qr geqrf eigh eig svd schur hessenberg tridiagonal".split()
)


def each_chain(step: Callable, keys: Any, state: PyTree) -> Any:
    """One step of every chain: in turns on a CPU, vectorised elsewhere and where they are many.

    In lockstep all chains take as many inner iterations as the one with the longest trajectory,
    and every branch is taken by all; a CPU gains next to nothing from it (ADR 9). Steps with
    LAPACK in them take turns on a CPU however many they are. JAX has a batch of factorisations
    done by the pool of threads, and the thread that asks waits: when all threads of the pool ask
    at once, the process stands still for ever (jaxlib 0.10, two threads).
    """
    count = jax.tree.leaves(state)[0].shape[0]
    if count == 1:
        # (A loop of one turn would be compiled away, after it was traced and lowered.)
        alone = jax.tree.map(lambda x: jax.lax.squeeze(x, (0,)), (keys, state))
        return jax.tree.map(lambda x: jax.lax.expand_dims(jnp.asarray(x), (0,)), step(*alone))
    if in_turns(count):
        return jax.lax.map(lambda own: step(*own), (keys, state))
    if jax.default_backend() != "cpu":
        return jax.vmap(step)(keys, state)
    # Traced once, looked at, and then taken as it is.
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (keys, state))
    closed, shape = jax.make_jaxpr(step, return_shape=True)(*like)

    def traced(own: tuple) -> Any:
        found = jaxpr_as_fun(closed)(*jax.tree.leaves(own))
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    if _LAPACK.isdisjoint(_operations(closed.jaxpr)):
        return jax.vmap(traced)((keys, state))
    return jax.lax.map(traced, (keys, state))


def _operations(jaxpr: Jaxpr) -> Iterator[str]:
    """The names of all operations of a program, also those inside others."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, Jaxpr | ClosedJaxpr)
        )
        for part in inner:
            if isinstance(part, Jaxpr | ClosedJaxpr):
                yield from _operations(part.jaxpr if isinstance(part, ClosedJaxpr) else part)


def one_by_one(fn: Callable[[Array, PyTree], Array]) -> Callable[[Array, PyTree], Array]:
    """A scalar function of a vector that a batch of vectors is given to one after the other.

    So are its gradient with respect to the vector and, forward over reverse, its Hessian. What
    else the function depends on is its second argument, not its closure.
    """
    gradient = jax.grad(fn)
    value, slope = _in_sequence(fn), _in_sequence(gradient)
    turn = _in_sequence(lambda x, v, rest: jax.jvp(lambda x: gradient(x, rest), (x,), (v,))[1])

    @jax.custom_jvp
    def sloped(x: Array, rest: PyTree) -> Array:
        return slope(x, rest)

    @sloped.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        x, rest = primals
        return slope(x, rest), turn(x, tangents[0], rest)

    @jax.custom_jvp
    def out(x: Array, rest: PyTree) -> Array:
        return value(x, rest)

    @out.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        return value(*primals), jnp.dot(sloped(*primals), tangents[0])

    return out


def _in_sequence(fn: Callable[..., Array]) -> Callable[..., Array]:
    """``fn`` with `jax.vmap` as a loop. (JAX's own such wrapper fails where nothing is batched.)"""

    @jax.custom_batching.custom_vmap
    def out(*args: PyTree) -> Array:
        return fn(*args)

    @out.def_vmap
    def _(size: int, batched: Any, *args: PyTree) -> tuple[Array, bool]:
        leaves, tree = jax.tree.flatten(args)
        which = jax.tree.leaves(batched)
        if not any(which):
            return fn(*args), False

        def one(rows: list) -> Array:
            own = iter(rows)
            mixed = [next(own) if b else x for x, b in zip(leaves, which, strict=True)]
            return out(*jax.tree.unflatten(tree, mixed))

        moving = [x for x, b in zip(leaves, which, strict=True) if b]
        return jax.lax.map(one, moving), True

    return out


def in_turns(count: int) -> bool:
    """Whether so many chains step one after the other here."""
    return jax.default_backend() == "cpu" and count <= _IN_TURNS


def spread(chunk: Callable, devices: int) -> Callable:
    """A chunk with its chains divided among devices, each looping on its own."""
    return divided(chunk, devices, (None, None, None, 0, 0, None, None, None), (0, 0, 1, 0, 0))


def divided(fn: Callable, devices: int, into: tuple, out: Any) -> Callable:
    """``fn`` with its work divided among devices, each of which does its part on its own.

    Args:
        fn: a traceable function of trees of arrays.
        devices: how many; with 1 it is ``fn`` itself.
        into: for each argument, the axis along which it is divided, or None: all devices have it.
        out: the same for what is returned (a tuple, or one axis).
    """
    if devices == 1:
        return fn
    mesh = jax.make_mesh(
        (devices,),
        ("chain",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices()[:devices],
    )

    def spec(axis: int | None) -> Any:
        return jax.sharding.PartitionSpec(*(() if axis is None else (*[None] * axis, "chain")))

    outs = tuple(map(spec, out)) if isinstance(out, tuple) else spec(out)
    specs = {"in_specs": tuple(map(spec, into)), "out_specs": outs}
    return jax.shard_map(fn, mesh=mesh, **specs, check_vma=False)


def devices_for(chains: int, devices: int | None) -> int:
    """How many devices the chains are spread over: as asked, or the most that divide them."""
    local = jax.local_device_count()
    if devices is None:
        return max(k for k in range(1, min(local, chains) + 1) if chains % k == 0)
    count = check_count("run(devices)", devices)
    if count > local or chains % count:
        raise ValueError(
            f"run(devices): expected a divisor of the {chains} chains, at most the {local} local "
            f"devices, found {count}"
        )
    return count
