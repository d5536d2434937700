"""Chains beside each other: in turns, vectorised, or divided among devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from probkit.core._errors import check_count

#: The most chains that a CPU steps one after the other.
_IN_TURNS = 16


def each_chain(step: Callable, keys: Any, state: PyTree) -> Any:
    """One step of every chain: in turns on a CPU, vectorised elsewhere and where they are many.

    In lockstep all chains take as many inner iterations as the one with the longest trajectory,
    and every branch is taken by all; a CPU gains next to nothing from it (ADR 9).
    """
    if in_turns(jax.tree.leaves(state)[0].shape[0]):
        return jax.lax.map(lambda own: step(*own), (keys, state))
    return jax.vmap(step)(keys, state)


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
