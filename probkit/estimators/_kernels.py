r"""Kernels of the estimators: by name, as an object, or as a function of hyperparameters.

    by name      k(x, y) = sd^2 rho(|x - y| / length)      (one length, or one a column)
    an object    its numbers, each times exp(h)
    a function   of parameters, each a positive number exp(h)

Hyperparameters are logs. Those of a named kernel count from the data's own scales, so that no
input need be rescaled: ``length = unit * exp(log_length)``, with ``unit`` the root mean squared
distance of two rows over the square root of two (a column's standard deviation, in one column), and
``sd = spread * exp(log_sd)``, with ``spread`` the outcomes' standard deviation (1 for classes).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probkit.core import nearest
from probkit.models import kernels
from probkit.models.kernels._gpjax import Adapted

RADIAL: dict[str, Callable[..., kernels.Kernel]] = {
    "rbf": kernels.RBF,
    "matern12": kernels.Matern12,
    "matern32": kernels.Matern32,
    "matern52": kernels.Matern52,
    "matern92": kernels.Matern92,
}


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """How a model makes its kernel.

    Attributes:
        make: ``(log_kernel, unit, spread) -> kernel``.
        start: centres of the hyperparameters' priors, ``(count,)`` (logs).
        names: a name for each hyperparameter.
        scales: what ``exp`` of each is multiplied by to give the value that is reported:
            ``"spread"``, ``"unit"`` or a number.
        named: whether rows and columns of zeros may be added without changing it.
    """

    make: Callable[[Any, Any, Any], kernels.Kernel]
    start: np.ndarray
    names: tuple[str, ...]
    scales: tuple[Any, ...]
    named: bool = False


def kernel_plan(kernel: Any, columns: int, ard: bool) -> KernelPlan:
    """The plan of a kernel that a user passed.

    Raises:
        ValueError: an unknown name.
        TypeError: no name, kernel or function.
    """
    if isinstance(kernel, str):
        return _by_name(kernel, columns, ard)
    if ard:
        raise ValueError(
            "ard=True: expected a kernel by name, which gets one length scale a column; a kernel "
            "object says itself which length scales it has"
        )
    if isinstance(kernel, kernels.Kernel):
        return _from_object(kernel)
    if callable(kernel) and not isinstance(kernel, type):
        return _from_function(kernel)
    raise TypeError(
        f"kernel: expected one of {sorted(RADIAL)}, a kernel such as pk.kernels.RBF(0.5) or a "
        f"function of hyperparameters that returns one, found {kernel!r}"
    )


def _by_name(name: str, columns: int, ard: bool) -> KernelPlan:
    if name not in RADIAL:
        raise ValueError(
            f"kernel: expected one of {sorted(RADIAL)} (or a kernel object), found {name!r}."
            f"{nearest(name, RADIAL)}"
        )
    maker, count = RADIAL[name], columns if ard else 1

    def make(log_kernel: Any, unit: Any, spread: Any) -> kernels.Kernel:
        lengths = unit * jnp.exp(log_kernel[1:])
        variance = (spread * jnp.exp(log_kernel[0])) ** 2
        return maker(lengths if ard else lengths[0], variance)

    lengths = tuple(f"length[{i}]" for i in range(count)) if ard else ("length",)
    scales = ("spread", *(["unit"] * count))
    return KernelPlan(make, np.zeros(1 + count), ("sd", *lengths), scales, not ard)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float) or (
        isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _from_object(kernel: kernels.Kernel) -> KernelPlan:
    # Kernels from elsewhere keep parameters in spaces of their own: those are held.
    free, held = eqx.partition(kernel, _is_number, is_leaf=lambda k: isinstance(k, Adapted))
    leaves, tree = jax.tree.flatten(free)
    values = [np.asarray(leaf, float) for leaf in leaves]
    sizes = [v.size for v in values]
    flat = np.concatenate([v.ravel() for v in values]) if values else np.zeros(0)

    def make(log_kernel: Any, unit: Any, spread: Any) -> kernels.Kernel:
        moved, at = [], 0
        for value, size in zip(values, sizes, strict=True):
            part = jnp.exp(log_kernel[at : at + size]).reshape(value.shape)
            moved.append(jnp.asarray(value) * part)
            at += size
        return eqx.combine(jax.tree.unflatten(tree, moved), held)

    names = tuple(f"kernel[{i}]" for i in range(flat.size))
    return KernelPlan(make, np.zeros(flat.size), names, tuple(flat.tolist()))


def _from_function(kernel: Callable[..., Any]) -> KernelPlan:
    names = tuple(inspect.signature(kernel).parameters)

    def make(log_kernel: Any, unit: Any, spread: Any) -> kernels.Kernel:
        return kernel(**{k: jnp.exp(log_kernel[i]) for i, k in enumerate(names)})

    return KernelPlan(make, np.zeros(len(names)), names, (1.0,) * len(names))
