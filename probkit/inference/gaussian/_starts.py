"""Where searches for hyperparameters begin."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

#: In the unconstrained space, as samplers start.
_REACH = 2.0


def starts(place: Any, count: int, d: int, dtype: np.dtype) -> Any:
    """``count`` points spread over ``[-2, 2]^d``, ``(count, d)``: neighbours in a sequence.

    The sequence is Richtmyer's, multiples of square roots of primes modulo one, and the place says
    where in it they begin. A few points of it leave smaller holes than as many independent ones: of
    60 searches for the three hyperparameters of a regression, each from the best of four points, 5
    ended on a lower hill than another with independent points, and none with these.

    Args:
        place: a 32-bit number (``uint32``); of a NumPy number the points are NumPy's, else traced.
        count: how many points.
        d: of how many coordinates.
        dtype: of the result.
    """
    roots = np.sqrt(_primes(d)) % 1.0
    steps = np.round(roots * 2.0**32).astype(np.uint32)
    places = place + np.arange(count, dtype=np.uint32)  # modulo 2^32, by itself, as their products
    turns = (places[:, None] * steps).astype(dtype) * dtype.type(2.0**-32)
    return _REACH * (2.0 * turns - 1.0)


def place_of(key: Array) -> Array:
    """A place for `starts`: the key's own bits; do not use it for anything else."""
    return jnp.ravel(jax.random.key_data(key))[-1]


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
