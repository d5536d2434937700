"""Starting points: the first of many tries with a finite log density and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Target

_TRIES, _CLIMBS = 200, 30


def find_start(key: Array, target: Target) -> tuple[Array, Array, Array]:
    """Position, log density and gradient of a starting point in the unconstrained space.

    Tries are uniform in a box around the origin whose half-width falls from 2 (Stan's) to 0 over
    the tries, so that a model with a narrow region of finite density is still entered; the last
    tries are the origin itself. Where the first try was no good the point that is found lies at the
    edge of what is possible, so it then climbs for 30 normalised gradient steps, those that do not
    lead uphill being halved. If no try is finite, the log density returned is not finite.

    All of this is one loop around one evaluation of the gradient, since what is compiled counts.
    """
    size = target.program.flat.size
    fn = jax.value_and_grad(target.flat_log_density)

    def usable(value: Array, gradient: Array) -> Array:
        return jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

    def again(carry: tuple) -> Array:
        tries, climbs, _, _, value, gradient = carry
        found = usable(value, gradient)
        searching = ~found & (tries < _TRIES)
        climbing = found & (tries > 1) & (climbs < _CLIMBS)
        return (tries == 0) | searching | climbing

    def attempt(carry: tuple) -> tuple:
        tries, climbs, step, x, value, gradient = carry
        found = (tries > 0) & usable(value, gradient)
        width = 2.0 * jnp.minimum(1.0, (_TRIES - 1 - tries) / (_TRIES / 2))
        fresh = width.astype(target.dtype) * jax.random.uniform(
            jax.random.fold_in(key, tries), (size,), target.dtype, minval=-1.0, maxval=1.0
        )
        norm = jnp.linalg.norm(gradient) + jnp.finfo(target.dtype).tiny
        new = jnp.where(found, x + step * gradient / norm, fresh)
        new_value, new_gradient = fn(new)
        better = ~found | (usable(new_value, new_gradient) & (new_value > value))
        return (
            tries + jnp.where(found, 0, 1),
            climbs + jnp.where(found, 1, 0),
            jnp.where(found & ~better, 0.5 * step, step),
            jnp.where(better, new, x),
            jnp.where(better, new_value, value),
            jnp.where(better, new_gradient, gradient),
        )

    zero = jnp.zeros(size, target.dtype)
    none = jnp.zeros((), target.dtype)
    first = (jnp.int32(0), jnp.int32(0), none + 0.5, zero, none, zero)
    _, _, _, x, value, gradient = jax.lax.while_loop(again, attempt, first)
    value = jnp.where(usable(value, gradient), value, -jnp.inf)
    return x, value, gradient
