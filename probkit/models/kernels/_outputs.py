r"""Several outputs, and derivatives, as rows of one process: the last coordinate says which.

A row ``(x, i)`` of the inputs is the value of output ``i`` at ``x`` (outputs count from 0):

    ICM    k((x, i), (y, j)) = B_ij k(x, y),     B = W W' + diag(kappa)
    LCM    k((x, i), (y, j)) = sum_q B^q_ij k_q(x, y)

(Alvarez, Rosasco and Lawrence 2012, equations 17 and 14.) Likewise a row ``(x, j)`` is, for a
process with derivatives, its value for ``j = 0`` and its derivative along coordinate ``j`` for
``j = 1, ..., d``:

    cov(d_a f(x), d_b f(y)) = d/dx_a d/dy_b k(x, y)

(Rasmussen and Williams 2006, section 9.4.) Rows of different kinds mix freely, and nothing needs to
be observed at every place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.models.kernels._kernel import Kernel, as_kernel, vector
from probkit.models.kernels._roughness import check_slopes


class ICM(Kernel):
    """Several outputs that share one kernel (the intrinsic coregionalisation model).

    Args:
        kernel: the kernel of the inputs.
        weights: ``W``, shape ``(outputs, rank)``.
        diagonal: ``kappa``, shape ``(outputs,)`` or a number: variance of each output's own.

    Example:
        >>> import jax.numpy as jnp
        >>> from probkit.models import kernels
        >>> k = kernels.ICM(kernels.RBF(), weights=jnp.array([[1.0], [2.0]]))
        >>> float(k(jnp.array([0.5, 0.0]), jnp.array([0.5, 1.0])))
        2.0
    """

    kernel: Any
    weights: Any
    diagonal: Any

    def __init__(self, kernel: Any, weights: Any, diagonal: Any = 0.0):
        if jnp.ndim(weights) != 2:
            raise ValueError(
                "kernels.ICM(weights): expected shape (outputs, rank), found "
                f"{jnp.shape(weights)}; for rank one give a column: w[:, None]"
            )
        self.kernel, self.weights, self.diagonal = as_kernel(kernel), weights, diagonal

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        a, i = _split(x, "kernels.ICM")
        b, j = _split(y, "kernels.ICM")
        w = jnp.asarray(self.weights)
        own = jnp.broadcast_to(self.diagonal, w.shape[:1])
        shared = jnp.dot(w[i], w[j]) + jnp.where(i == j, own[i], 0.0)
        return shared * self.kernel(a, b)


class LCM(Kernel):
    """A sum of `ICM` kernels (the linear model of coregionalisation).

    Args:
        parts: `ICM` kernels, each with its own kernel of the inputs and its own weights.
    """

    parts: tuple[Kernel, ...]

    def __init__(self, parts: Sequence[Kernel]):
        self.parts = tuple(as_kernel(p) for p in parts)
        if not self.parts:
            raise ValueError("kernels.LCM: expected at least one ICM kernel, found none")

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        total = self.parts[0](x, y)
        for part in self.parts[1:]:
            total = total + part(x, y)
        return total


class Derivative(Kernel):
    """A process together with its derivatives.

    Args:
        kernel: a kernel with two derivatives at zero distance: `RBF`, `Matern32` or smoother. (Of
            a rougher one the derivative process does not exist.)

    Raises:
        ValueError: a kernel known to be rougher than that is among its parts.

    Example:
        >>> import jax.numpy as jnp
        >>> from probkit.models import kernels
        >>> k = kernels.Derivative(kernels.RBF(lengthscale=0.5))
        >>> float(k(jnp.array([0.3, 1.0]), jnp.array([0.3, 1.0])))
        4.0
    """

    kernel: Any

    def __init__(self, kernel: Any):
        self.kernel = as_kernel(kernel)
        check_slopes(self.kernel)

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        a, i = _split(x, "kernels.Derivative")
        b, j = _split(y, "kernels.Derivative")

        def along_y(u: Array, v: Array) -> Array:
            value, slope = jax.value_and_grad(self.kernel, argnums=1)(u, v)
            return jnp.concatenate([value[None], slope])

        # Row 0: the value and its slopes in y; row 1 + a: their derivatives in x_a.
        values, slopes = along_y(a, b), jax.jacfwd(along_y)(a, b)
        table = jnp.concatenate([values[None], slopes.T])
        return table[i, j]


def _split(x: ArrayLike, where: str) -> tuple[Array, Array]:
    """A point's inputs, and the whole number in its last coordinate."""
    point = vector(x)
    if len(point) < 2:
        raise ValueError(
            f"{where}: expected points with their kind as the last coordinate, found points of one "
            "coordinate; list the column of kinds last: at=['x', 'kind']"
        )
    return point[:-1], jnp.rint(point[-1]).astype(int)
