"""Keys: a run's key is raw key data on the host, and each step's key is folded from it.

``step_key(key, t, chain) = fold_in(fold_in(key, t), chain)`` depends on neither the chunks of the
loop nor the number of chains, so draws do not either.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array

from probkit.core._config import setting
from probkit.core._errors import check_count


def key_data(seed: object) -> np.ndarray:
    """Raw data of a typed key, from an integer seed or from a typed key.

    Seeds are turned into key data on the host for JAX's default generator: building a key
    eagerly would compile a program for it.
    """
    if isinstance(seed, np.ndarray) and seed.dtype == np.uint32:
        return seed
    if isinstance(seed, jax.Array):
        if not jax.numpy.issubdtype(seed.dtype, jax.dtypes.prng_key):
            raise TypeError(
                "key: expected a typed key (jax.random.key(0)) or a whole number, found an array "
                f"of dtype {seed.dtype}; wrap raw key data with jax.random.wrap_key_data"
            )
        if seed.shape or str(jax.random.key_impl(seed)) != str(setting("jax_default_prng_impl")):
            raise TypeError(
                "key: expected one typed key of JAX's default generator "
                f"({setting('jax_default_prng_impl')}), found keys of shape {seed.shape} of "
                f"{jax.random.key_impl(seed)}; pass jax.random.key(0) or a whole number"
            )
        return np.asarray(jax.random.key_data(seed))
    value = check_count("seed", seed, least=0)
    if setting("jax_default_prng_impl") != "threefry2x32":
        return np.asarray(jax.random.key_data(jax.random.key(value)))
    if value >= 2**64:
        raise ValueError(f"seed: expected a whole number below 2**64, found {value}.")
    return np.array([value >> 32, value & 0xFFFFFFFF], dtype=np.uint32)


def wrap_key(data: Array | np.ndarray) -> Array:
    """The typed key of raw key data (traceable)."""
    return jax.random.wrap_key_data(jax.numpy.asarray(data))


def step_key(key: Array, t: Array, chain: Array) -> Array:
    """The key of step ``t`` of a chain."""
    return jax.random.fold_in(jax.random.fold_in(key, t), chain)
