"""Starting points: the first of many tries with a finite log density and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Target

_TRIES = 200


def find_start(key: Array, target: Target) -> tuple[Array, Array, Array]:
    """Position, log density and gradient of a starting point in the unconstrained space.

    Tries are uniform in a box around the origin whose half-width falls from 2 (Stan's) to 0 over
    the tries, so that a model with a narrow region of finite density is still entered; the last
    try is the origin itself. If none is finite, the log density returned is not finite.
    """
    size = target.program.flat.size
    fn = jax.value_and_grad(target.flat_log_density)

    def usable(value: Array, gradient: Array) -> Array:
        return jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

    def again(carry: tuple) -> Array:
        i, _, value, gradient = carry
        return (i == 0) | ((i < _TRIES) & ~usable(value, gradient))

    def attempt(carry: tuple) -> tuple:
        i = carry[0]
        width = 2.0 * jnp.minimum(1.0, (_TRIES - 1 - i) / (_TRIES / 2))
        width = width.astype(target.dtype)
        unit = jax.random.uniform(
            jax.random.fold_in(key, i), (size,), target.dtype, minval=-1.0, maxval=1.0
        )
        x = width * unit
        return (i + 1, x, *fn(x))

    zero = jnp.zeros(size, target.dtype)
    first = (jnp.int32(0), zero, jnp.zeros((), target.dtype), zero)
    _, x, value, gradient = jax.lax.while_loop(again, attempt, first)
    value = jnp.where(usable(value, gradient), value, -jnp.inf)
    return x, value, gradient
