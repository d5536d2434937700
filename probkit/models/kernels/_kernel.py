"""Kernels: pure functions k(x, y) of two points, and the matrices made of them.

A point is a number (one column of inputs) or a vector. Whatever maps two points to a number is a
kernel for `probkit.gp`; the classes of this package can also be added and multiplied. Matrices
are made by mapping the function over pairs of points, O(n m) evaluations, unless the kernel's class
registers a quicker way with `pairs` (kernels of a distance do, and what is composed of them).
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

PointKernel = Callable[[Array, Array], Array]


class Kernel(eqx.Module):
    """Base of the kernels of this package: a function of two points, with ``+`` and ``*``.

    Example:
        >>> from probkit.models import kernels
        >>> k = 2.0 * kernels.RBF(lengthscale=0.5) + kernels.Matern52()
        >>> float(k(0.3, 0.3))
        3.0
    """

    @abc.abstractmethod
    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        """The covariance of the function's values at two points: a scalar."""

    def __add__(self, other: Any) -> Kernel:
        return Sum(self, as_kernel(other))

    def __radd__(self, other: Any) -> Kernel:
        return Sum(as_kernel(other), self)

    def __mul__(self, other: Any) -> Kernel:
        return Product(self, as_kernel(other))

    def __rmul__(self, other: Any) -> Kernel:
        return Product(as_kernel(other), self)


class Function(Kernel):
    """A kernel from a plain function of two points."""

    fn: Any

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.fn(jnp.asarray(x), jnp.asarray(y))


class Constant(Kernel):
    """The same covariance ``variance`` for every pair of points."""

    variance: Any = 1.0

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return jnp.asarray(self.variance, jnp.result_type(float))


class Sum(Kernel):
    """The covariance of a sum of two independent functions."""

    left: Kernel
    right: Kernel

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.left(x, y) + self.right(x, y)


class Product(Kernel):
    """The covariance of a product of two independent functions."""

    left: Kernel
    right: Kernel

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.left(x, y) * self.right(x, y)


def as_kernel(value: Any, numbers: bool = True) -> Kernel:
    """A kernel of this package from one, from a GPJax kernel, a plain function, or a number.

    Args:
        value: what is to be one.
        numbers: whether a number counts, as the `Constant` kernel.

    Raises:
        TypeError: it is none of these.
    """
    from probkit.models.kernels._gpjax import adapted, is_gpjax

    if isinstance(value, Kernel):
        return value
    if is_gpjax(value):
        return adapted(value)
    if isinstance(value, type) and issubclass(value, Kernel):
        raise TypeError(
            f"expected a kernel, found the class {value.__name__}; call it: {value.__name__}(...)"
        )
    if callable(value):
        return Function(value)
    if numbers and jnp.ndim(value) == 0 and isinstance(value, int | float | Array | np.generic):
        return Constant(value)
    raise TypeError(
        "expected the kernel's function to return k(x, y), a function of two points, a kernel of "
        f"pk.kernels or a GPJax kernel; found {type(value).__name__}"
    )


def cross_covariance(kernel: PointKernel, a: Array, b: Array) -> Array:
    """Kernel matrix ``(len(a), len(b))`` of points of shape ``(n,)`` or ``(n, d)``.

    Raises:
        ValueError: the kernel does not return a number.
    """
    return pairs(kernel, jnp.asarray(a), jnp.asarray(b))


@functools.singledispatch
def pairs(kernel: Any, a: Array, b: Array) -> Array:
    """The kernel matrix of two sets of points, by the kernel's class; see `cross_covariance`.

    This is the way for any function of two points. A class with a quicker one registers it:
    ``@pairs.register``. It must return what this returns, up to rounding.
    """
    out = jax.vmap(lambda x: jax.vmap(lambda y: kernel(x, y))(b))(a)
    return _numbers(out, 2, a)


@pairs.register
def _of_sum(kernel: Sum, a: Array, b: Array) -> Array:
    return pairs(kernel.left, a, b) + pairs(kernel.right, a, b)


@pairs.register
def _of_product(kernel: Product, a: Array, b: Array) -> Array:
    return pairs(kernel.left, a, b) * pairs(kernel.right, a, b)


def diagonal(kernel: PointKernel, a: Array) -> Array:
    """``k(x, x)`` for each point, shape ``(len(a),)``; costs O(n)."""
    return _numbers(jax.vmap(lambda x: kernel(x, x))(a), 1, a)


def _numbers(out: Any, rank: int, points: Array) -> Array:
    value = jnp.asarray(out)
    if value.ndim != rank:
        raise ValueError(
            f"expected k(x, y) to return a number for two points of shape {points.shape[1:]}, "
            f"found shape {value.shape[rank:]}; sum over the points' coordinates"
        )
    return value


def vector(x: ArrayLike) -> Array:
    """A point as a vector of at least one floating coordinate."""
    return jnp.atleast_1d(jnp.asarray(x, jnp.result_type(float)))
