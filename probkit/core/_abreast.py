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
    if devices == 1:
        return chunk
    mesh = jax.make_mesh(
        (devices,),
        ("chain",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices()[:devices],
    )
    whole, split, second = (
        jax.sharding.PartitionSpec(*a) for a in ((), ("chain",), (None, "chain"))
    )
    return jax.shard_map(
        chunk,
        mesh=mesh,
        in_specs=(whole, whole, whole, split, split, whole, whole, whole),
        out_specs=(split, split, second, split, split),
        check_vma=False,
    )


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
