"""Which kernels belong to processes without derivatives (``k`` is not smooth enough at ``x = y``).

Automatic differentiation does not tell: the derivative of a distance is taken as zero where two
points coincide, so that the variance of a slope that does not exist comes out as a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from probkit.models.kernels._arccosine import ArcCosine
from probkit.models.kernels._gpjax import Adapted, Built, is_gpjax
from probkit.models.kernels._kernel import Kernel
from probkit.models.kernels._networks import NTK
from probkit.models.kernels._radial import Matern12
from probkit.models.kernels._spectral import SpectralMixture

#: GPJax's kernels whose second derivatives are right where two points coincide (those of its
#: smoother Matern kernels are zero there), and those that hold others.
_SMOOTH = ("Constant", "Linear", "Periodic", "Polynomial", "RBF", "RationalQuadratic")
_HOLDERS = ("ProductKernel", "SumKernel")


def check_slopes(kernel: Kernel) -> None:
    """Raise a ValueError if a part of a kernel is known to have no derivatives."""
    for part in _parts(kernel):
        found = _rough(part)
        if found:
            raise ValueError(
                "kernels.Derivative: expected a kernel whose process has a derivative everywhere, "
                f"found {found}; take RBF, Matern32 or a smoother one of pk.kernels"
            )


def _is_kernel(value: Any) -> bool:
    return isinstance(value, Kernel) or is_gpjax(value)


def _parts(kernel: Any) -> Iterator[Any]:
    """A kernel and all kernels inside it."""
    yield kernel
    inner = jax.tree.leaves(kernel, is_leaf=lambda x: x is not kernel and _is_kernel(x))
    for part in inner:
        if part is not kernel and _is_kernel(part):
            yield from _parts(part)


def _rough(kernel: Any) -> str:
    """The kernel's own name where it is rough; its parts are not looked at."""
    name = type(kernel).__name__
    if isinstance(kernel, Built):
        return "" if kernel.name in _SMOOTH else kernel.name
    if is_gpjax(kernel):
        return "" if name in (*_SMOOTH, *_HOLDERS) else f"{name} of GPJax"
    if isinstance(kernel, Adapted):
        return ""
    if isinstance(kernel, ArcCosine):
        return "ArcCosine of order 0" if kernel.order == 0 else ""
    if isinstance(kernel, NTK):
        return "NTK with activation 'relu'" if kernel.activation == "relu" else ""
    if isinstance(kernel, SpectralMixture):
        return "SpectralMixture with df=1" if kernel.df == 1 else ""
    return name if isinstance(kernel, Matern12) else ""
