r"""The Tanimoto (Jaccard) kernel between fingerprints: vectors of zeros and ones, or of counts.

    k(x, y) = v x.y / (|x|^2 + |y|^2 - x.y)

For sets of bits this is the share of bits set in both among those set in either. It is positive
semi-definite on vectors of non-negative numbers (Ralaivola et al. 2005, section 4.2).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.models.kernels._kernel import Kernel, vector


class Tanimoto(Kernel):
    """The Tanimoto kernel; two empty fingerprints count as equal.

    Args:
        variance: of the function's values.

    Example:
        >>> import jax.numpy as jnp
        >>> from probkit.models import kernels
        >>> k = kernels.Tanimoto()
        >>> round(float(k(jnp.array([1, 1, 0, 1]), jnp.array([0, 1, 1, 1]))), 2)
        0.5
    """

    variance: Any = 1.0

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        a, b = vector(x), vector(y)
        both = jnp.dot(a, b)
        either = jnp.dot(a, a) + jnp.dot(b, b) - both
        some = either > 0
        return self.variance * jnp.where(some, both / jnp.where(some, either, 1.0), 1.0)
