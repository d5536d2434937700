r"""Kernels made of others: on some columns, behind a network, across a change point.

    Columns        k(x[c], y[c])
    Deep           k(net(x), net(y))
    ChangePoint    (1 - s(x)) (1 - s(y)) k_1(x, y) + s(x) s(y) k_2(x, y),
                   s(x) = sigmoid((x - t) / w)

Each is positive semi-definite when its parts are: functions of the inputs, and products with
``g(x) g(y)``, keep that (Rasmussen and Williams 2006, section 4.2.4; Saatci, Turner and Rasmussen
2010 for change points).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.models.kernels._kernel import Kernel, as_kernel, pairs, vector


class Columns(Kernel):
    """A kernel on some of the points' coordinates.

    Args:
        kernel: any kernel.
        columns: numbers of the coordinates, in the order of ``at=``; one number gives the kernel
            a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from probkit.models import kernels
        >>> k = kernels.Columns(kernels.RBF(), [0]) * kernels.Columns(kernels.Matern32(), [1, 2])
        >>> float(k(jnp.ones(3), jnp.ones(3)))
        1.0
    """

    kernel: Any
    columns: tuple[int, ...] | int = eqx.field(static=True)

    def __init__(self, kernel: Any, columns: Sequence[int] | int):
        self.kernel = as_kernel(kernel)
        self.columns = columns if isinstance(columns, int) else tuple(columns)

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.kernel(self.chosen(vector(x)), self.chosen(vector(y)))

    def chosen(self, points: Array) -> Array:
        """The kernel's own coordinates of points ``(..., d)``."""
        columns = (self.columns,) if isinstance(self.columns, int) else self.columns
        d = points.shape[-1]
        if max(columns, default=0) >= d or min(columns, default=0) < -d:
            raise ValueError(
                f"kernels.Columns: expected columns among 0 to {d - 1} (the points have "
                f"{d} coordinates), found {self.columns}; list every input in at=[...]"
            )
        index = self.columns if isinstance(self.columns, int) else jnp.asarray(self.columns)
        return points[..., index]


@pairs.register
def _of_columns(kernel: Columns, a: Array, b: Array) -> Array:
    return pairs(kernel.kernel, *(kernel.chosen(jax.vmap(vector)(x)) for x in (a, b)))


class Deep(Kernel):
    """A kernel between the outputs of a network (any function of a point).

    The network may be a variable of the model (``pk.module``), so that its weights are inferred,
    or a fixed one.

    Args:
        network: a function of one point, such as an equinox module; it gets a vector.
        kernel: the kernel between its outputs.

    Example:
        >>> from probkit.models import kernels
        >>> k = kernels.Deep(lambda x: x**2, kernels.RBF())
        >>> float(k(2.0, -2.0))
        1.0
    """

    network: Any
    kernel: Any

    def __init__(self, network: Any, kernel: Any):
        if not callable(network):
            raise TypeError(
                "kernels.Deep: expected the network (a function of one point) first, found "
                f"{type(network).__name__}; write Deep(network, kernel)"
            )
        self.network, self.kernel = network, as_kernel(kernel)

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.kernel(self.network(vector(x)), self.network(vector(y)))


@pairs.register
def _of_deep(kernel: Deep, a: Array, b: Array) -> Array:
    # The network sees each point once, not each pair.
    seen = [jax.vmap(lambda x: kernel.network(vector(x)))(points) for points in (a, b)]
    return pairs(kernel.kernel, *seen)


class ChangePoint(Kernel):
    """One kernel before a point on an axis and another after it, with a smooth transition.

    Args:
        before, after: the two kernels.
        location: where they change over, on the axis of ``column``.
        width: how wide the transition is, positive, in the same units.
        column: the number of the coordinate that they change along.

    Example:
        >>> from probkit.models import kernels
        >>> k = kernels.ChangePoint(kernels.RBF(), kernels.RBF(variance=9.0), 0.0, width=0.1)
        >>> float(k(-5.0, -5.0)), float(k(5.0, 5.0))
        (1.0, 9.0)
    """

    before: Any
    after: Any
    location: Any
    width: Any
    column: int = eqx.field(static=True)

    def __init__(self, before: Any, after: Any, location: Any, width: Any = 1.0, column: int = 0):
        self.before, self.after = as_kernel(before), as_kernel(after)
        self.location, self.width, self.column = location, width, column

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        a, b = self._share(x), self._share(y)
        return (1.0 - a) * (1.0 - b) * self.before(x, y) + a * b * self.after(x, y)

    def _share(self, x: ArrayLike) -> Array:
        return jax.nn.sigmoid((vector(x)[self.column] - self.location) / self.width)

    def shares(self, points: Array) -> Array:
        """How far each point is past the change, ``(n,)``."""
        return jax.vmap(self._share)(points)


@pairs.register
def _of_change_point(kernel: ChangePoint, a: Array, b: Array) -> Array:
    s, t = kernel.shares(a)[:, None], kernel.shares(b)
    first, second = pairs(kernel.before, a, b), pairs(kernel.after, a, b)
    return (1.0 - s) * (1.0 - t) * first + s * t * second
