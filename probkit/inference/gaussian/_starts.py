"""Where searches for hyperparameters begin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

#: In the unconstrained space, as samplers start.
_REACH = 2.0


def starts(key: Array, count: int, d: int, dtype: np.dtype) -> Array:
    """``count`` points spread over ``[-2, 2]^d``, ``(count, d)``: neighbours in a sequence.

    The sequence is Richtmyer's, multiples of square roots of primes modulo one, and the key says
    where in it they stand. A few points of it leave smaller holes than as many independent ones: of
    60 searches for the three hyperparameters of a regression, each from the best of four points, 5
    ended on a lower hill than another with independent points, and none with these.

    Args:
        key: whose own bits are the place; do not use it for anything else.
        count: how many points.
        d: of how many coordinates.
        dtype: of the result.
    """
    roots = np.sqrt(_primes(d)) % 1.0
    steps = jnp.asarray(np.round(roots * 2.0**32).astype(np.uint32))
    place = jnp.ravel(jax.random.key_data(key))[-1] + jnp.arange(count, dtype=jnp.uint32)
    turns = (place[:, None] * steps).astype(dtype) * dtype.type(2.0**-32)  # modulo 2^32, by itself
    return _REACH * (2.0 * turns - 1.0)


def another(last: Array, t: Array) -> Array:
    """The ``t``-th point after the ``last`` one of `starts`, ``(d,)``."""
    roots = jnp.asarray(np.sqrt(_primes(len(last))) % 1.0, last.dtype)
    return _REACH * (2.0 * ((0.5 * (last / _REACH + 1.0) + (t + 1) * roots) % 1.0) - 1.0)


def _primes(count: int) -> np.ndarray:
    """The first primes, as floats."""
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % p for p in found if p * p <= candidate):
            found.append(candidate)
        candidate += 1
    return np.asarray(found, dtype=float)
