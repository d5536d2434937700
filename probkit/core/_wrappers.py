"""Wrappers: methods that hold another method and keep the same contract."""

from __future__ import annotations

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from probkit.core._errors import check_count
from probkit.core._inference import POSITION, Approximation, Batches, Draws, Inference, whole_step
from probkit.core._target import Batch, Target

_State = TypeVar("_State")


class Thin(Inference):
    """Keep every ``every``-th step of another method; memory falls by the same factor.

    Warm-up is thinned too, so both counts of the inner method must be multiples of ``every``.

    Example:
        >>> from probkit import NUTS
        >>> Thin(NUTS(draws=4000, warmup=1000), every=4).num_steps
        1250
    """

    method: Inference
    every: int = eqx.field(static=True)

    def __init__(self, method: Inference, every: int):
        if not isinstance(method, Inference):
            raise TypeError(
                f"Thin: expected an inference method such as pk.NUTS(), found {method!r}"
            )
        self.method = method
        self.every = check_count("Thin(every)", every)
        for count in (method.num_steps, method.num_warmup):
            if count % self.every:
                raise ValueError(
                    f"Thin(every={every}): expected the inner method's steps ({method.num_steps}, "
                    f"{method.num_warmup} of them warm-up) to be multiples of it"
                )
        if method.batches is not None:
            raise ValueError("Thin: a method with mini-batches thins by its own `thin` argument")

    @property
    def chains(self) -> int:
        return self.method.chains

    @property
    def num_steps(self) -> int:
        return self.method.num_steps // self.every

    @property
    def num_warmup(self) -> int:
        return self.method.num_warmup // self.every

    @property
    def requires(self) -> tuple[str, ...]:
        return self.method.requires

    @property
    def batches(self) -> Batches | None:
        return None

    @property
    def init_on_host(self) -> bool:
        return self.method.init_on_host

    def init(self, key: Any, target: Target) -> PyTree:
        return self.method.init(key, target)

    def step(
        self, key: Array, target: Target, state: PyTree, batch: Batch | None, t: Array
    ) -> tuple[PyTree, dict[str, Array]]:
        def inner(i, carry):
            state, _ = carry
            own = jax.random.fold_in(key, i)
            return whole_step(self.method, own, target, state, None, t * self.every + i)

        infos = jax.eval_shape(lambda s: self.method.step(key, target, s, None, t)[1], state)
        if POSITION not in infos:
            raise ValueError(
                f"Thin: {type(self.method).__name__} makes no draws that could be thinned; "
                "pass a method that draws, such as pk.NUTS()"
            )
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), infos)
        return jax.lax.fori_loop(0, self.every, inner, (state, empty))

    def terminate(self, state: PyTree, info: dict[str, Array]) -> tuple[Array, Array]:
        return self.method.terminate(state, info)

    def finish(
        self, key: np.ndarray, target: Target, state: PyTree, history: dict[str, np.ndarray]
    ) -> Draws | Approximation:
        return split_history(self, state, history)


def split_history(method: Inference, state: PyTree, history: dict[str, np.ndarray]) -> Draws:
    """Draws from a history whose ``position`` entry is the unconstrained point of each step."""
    warmup = method.num_warmup
    stats = {k: v for k, v in history.items() if k != POSITION}
    position = history[POSITION]
    return Draws(
        unconstrained=position[:, warmup:],
        stats={k: v[:, warmup:] for k, v in stats.items()},
        warmup=position[:, :warmup],
        warmup_stats={k: v[:, :warmup] for k, v in stats.items()},
    )


def never(info: dict[str, Array]) -> tuple[Array, Array]:
    """``terminate`` of methods that use up their steps."""
    return jnp.asarray(False), jnp.asarray(0, jnp.int32)
