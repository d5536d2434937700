r"""The one door to GPJax: its kernels as pure functions k(x, y).

GPJax is imported when one of its kernels is first asked for. Its kernels hold parameters in
wrappers of their own; here they are built from plain arrays (which may be traced) and only ever
called, so that neither its posteriors nor its likelihoods nor its optimisers are used.
"""

from __future__ import annotations

import sys
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.models.kernels._kernel import Kernel, vector


class Adapted(Kernel):
    """A GPJax kernel as a kernel of this package."""

    kernel: Any

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return jnp.asarray(self.kernel(vector(x), vector(y)))


def is_gpjax(value: Any) -> bool:
    """Whether a value is a GPJax kernel; imports nothing."""
    module = sys.modules.get("gpjax")
    return module is not None and isinstance(value, module.kernels.AbstractKernel)


def is_gpjax_mean(value: Any) -> bool:
    """Whether a value is a mean function of GPJax; imports nothing."""
    module = sys.modules.get("gpjax")
    return module is not None and isinstance(value, module.mean_functions.AbstractMeanFunction)


def mean_values(value: Any, x: Array) -> Array:
    """A GPJax mean function at points of shape ``(n,)`` or ``(n, d)``: shape ``(n,)``."""
    return jnp.asarray(value(x[:, None] if x.ndim == 1 else x))[:, 0]


def adapted(value: Any) -> Kernel:
    """A GPJax kernel object as a pure function of two points."""
    return Adapted(value)


class Built(Kernel):
    """A kernel that GPJax makes of plain numbers when it is called.

    Attributes:
        name: its class.
        parameters: its positive numbers (or arrays) by name.
        fixed: arguments of another kind: a degree, a power with an upper limit.
    """

    name: str = eqx.field(static=True)
    parameters: dict[str, Any]
    fixed: dict[str, Any]

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        from gpjax import kernels

        made = getattr(kernels, self.name)(**self.parameters, **self.fixed)
        return jnp.asarray(made(vector(x), vector(y)))


def _make(name: str, fixed: dict[str, Any] | None = None, **parameters: Any) -> Kernel:
    from gpjax import kernels

    made = Built(name, parameters, fixed or {})
    getattr(kernels, name)(**parameters, **made.fixed)  # GPJax's own checks
    return made


def Linear(variance: Any = 1.0) -> Kernel:
    """``variance * x.y``: straight lines through the origin. From GPJax."""
    return _make("Linear", variance=variance)


def Periodic(lengthscale: Any = 1.0, period: Any = 1.0, variance: Any = 1.0) -> Kernel:
    r"""``variance * exp(-1/2 sum_d (sin(pi (x_d - y_d) / period) / lengthscale)^2)``. From GPJax.

    (Some texts write ``exp(-2 sin^2 / l^2)``: their length scale is twice this one.)

    Example:
        >>> from probkit.models import kernels
        >>> k = kernels.Periodic(period=2.0)
        >>> bool(abs(k(0.1, 2.1) - 1.0) < 1e-6)
        True
    """
    return _make("Periodic", lengthscale=lengthscale, period=period, variance=variance)


def Polynomial(degree: int = 2, shift: Any = 1.0, variance: Any = 1.0) -> Kernel:
    """``(variance * x.y + shift) ** degree``. From GPJax."""
    return _make("Polynomial", {"degree": degree}, shift=shift, variance=variance)


def PoweredExponential(lengthscale: Any = 1.0, power: Any = 1.0, variance: Any = 1.0) -> Kernel:
    """``variance * exp(-(|x - y| / lengthscale) ** power)``, a power of at most 2. From GPJax."""
    fixed = {"power": power}
    return _make("PoweredExponential", fixed, lengthscale=lengthscale, variance=variance)


def RationalQuadratic(lengthscale: Any = 1.0, alpha: Any = 1.0, variance: Any = 1.0) -> Kernel:
    """``variance * (1 + |x - y|^2 / (2 alpha lengthscale^2)) ** -alpha``. From GPJax."""
    return _make("RationalQuadratic", lengthscale=lengthscale, alpha=alpha, variance=variance)


def White(variance: Any = 1.0) -> Kernel:
    """``variance`` where two points are equal, else 0. From GPJax."""
    return _make("White", variance=variance)
