r"""Normal draws from Sobol's points, made inside a traced function.

The n-th point is the exclusive or of direction numbers V_b over the bits b of n (Sobol 1967; scipy
has Joe and Kuo's numbers). Two randomisations: a linear matrix scramble of the V_b (Matousek 1998),
one and the same for all fits, which spoils the known patterns in projections on high dimensions;
and a digital shift, the exclusive or with random bits, which makes every point uniform. The draws
come in antithetic pairs, and are standardised: their mean is zero and, where they are more than
four times their dimension, their covariance the identity.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

#: Dimensions that scipy's table of direction numbers has.
LARGEST = 21201
_BITS = 30
_KEPT = 23  # bits that a float32 in (0, 1) holds exactly


@functools.lru_cache(maxsize=16)
def directions(size: int, levels: int) -> np.ndarray:
    """Scrambled direction numbers, shape ``(levels, size)``, as integers of 30 bits."""
    from scipy.stats import qmc

    points = qmc.Sobol(size, scramble=False, bits=_BITS).random_base2(levels)
    whole = (points * 2.0**_BITS).astype(np.uint32)
    # scipy numbers points by Gray code: the one at 2^(b+1) - 1 is V_b alone.
    plain = whole[2 ** np.arange(1, levels + 1) - 1]
    places = np.arange(_BITS - 1, -1, -1, dtype=np.uint32)
    digits = (plain[..., None] >> places) & 1
    rng = np.random.default_rng(0)
    mix = np.tril(rng.integers(0, 2, (size, _BITS, _BITS)), -1) + np.eye(_BITS, dtype=int)
    mixed = np.einsum("dij,ldj->ldi", mix, digits) % 2
    return np.asarray(np.sum(mixed.astype(np.uint32) << places, axis=-1), np.uint32)


def sobol_normal(shift: Array, n: int, dtype: Any) -> Array:
    """``n`` standard normal draws, shape ``(n, size)``.

    Args:
        shift: random bits (uint32), shape ``(size,)``.
        n: a power of 2, at least 4.
        dtype: of the draws.
    """
    size, levels = shift.shape[0], (n // 2).bit_length() - 1
    table = jnp.asarray(directions(size, levels))
    number = jnp.arange(n // 2, dtype=jnp.uint32)[:, None]
    points = jnp.broadcast_to(shift >> (32 - _BITS), (n // 2, size))
    for b in range(levels):
        points = points ^ jnp.where((number >> b) & 1, table[b], jnp.uint32(0))
    uniform = ((points >> (_BITS - _KEPT)).astype(dtype) + 0.5) / 2.0**_KEPT
    half = jax.scipy.special.ndtri(uniform)
    draws = jnp.concatenate([half, -half])
    if n <= 4 * size:
        return draws
    tril = jnp.linalg.cholesky(draws.T @ draws / n)
    return jax.scipy.linalg.solve_triangular(tril, draws.T, lower=True).T
