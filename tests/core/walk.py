"""A method small enough to know every number of: a random walk, whose steps are its keys' noise."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probkit.core import Batches, Draws, Inference, Target, wrap_key
from probkit.core._keys import step_key
from probkit.core._wrappers import split_history


class Walk(Inference):
    """``z <- z + size * N(0, I)``; tells ``t`` and, of mini-batches, the sum of row numbers."""

    draws: int
    size: float
    fail_at: int
    num_chains: int = eqx.field(static=True, default=3)
    rows: Batches | None = eqx.field(static=True, default=None)

    def __init__(self, draws=100, size=1.0, fail_at=-1, chains=3, rows=None):
        self.draws, self.size, self.fail_at = draws, size, fail_at
        self.num_chains, self.rows = chains, rows

    @property
    def chains(self) -> int:
        return self.num_chains

    @property
    def num_steps(self) -> int:
        return self.draws

    @property
    def batches(self) -> Batches | None:
        return self.rows

    def init(self, key: Any, target: Target) -> Any:
        return jax.random.normal(key, (target.program.flat.size,), target.dtype)

    def step(self, key: Any, target: Target, state: Any, batch: Any, t: Any) -> Any:
        new = state + self.size * jax.random.normal(key, state.shape, state.dtype)
        info = {"position": new, "lp": target.flat_log_density(new), "t": t}
        if batch is not None:
            info["index"] = batch.index
        return new, info

    def terminate(self, state: Any, info: Any) -> Any:
        failed = info["t"] == self.fail_at
        return failed, jnp.where(failed, 2, 0).astype(jnp.int32)

    def finish(self, key: Any, target: Target, state: Any, history: Any) -> Draws:
        return split_history(self, state, history)


def by_hand(key: np.ndarray, chain: int, steps: int, dimension: int) -> np.ndarray:
    """What `Walk` does in one chain, shape ``(steps, dimension)``."""

    def noise(t: Any) -> Any:
        return jax.random.normal(step_key(wrap_key(key), t, jnp.uint32(chain)), (dimension,))

    start = noise(jnp.uint32(2**32 - 1))
    return np.asarray(start + jnp.cumsum(jax.vmap(noise)(jnp.arange(steps)), axis=0))


def normal_target(dimension: int = 2) -> Target:
    """Independent standard normals."""
    return Target.from_log_density(
        lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": np.zeros(dimension)}
    )
