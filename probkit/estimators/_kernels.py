r"""Kernels of the estimators: by name, as an object, or as a function of hyperparameters.

    by name      k(x, y) = sd^2 rho(|x - y| / length)      (one length, or one a column)
    an object    its numbers, each times exp(h): none changes its sign
    a function   of parameters, each a positive number: its default (or 1) times exp(h)

Hyperparameters are logs. Those of a named kernel count from the data's own scales, so that no
input need be rescaled: ``length = unit * exp(log_length)``, with ``unit`` the root mean squared
distance of two rows over the square root of two (a column's standard deviation, in one column), and
``sd = spread * exp(log_sd)``, with ``spread`` the outcomes' standard deviation (1 for classes).
Those of an object or a function count from the numbers given, save that what sets the function's
size (variances, whichever numbers they are) is moved until the prior variance of the function, on
average over the rows, is that of the outcomes: see `sized`.
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
from probkit.core._trees import in_precision
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
        given: whether the numbers are a user's, of whatever size.
    """

    make: Callable[[Any, Any, Any], kernels.Kernel]
    start: np.ndarray
    names: tuple[str, ...]
    scales: tuple[Any, ...]
    named: bool = False
    given: bool = False


#: Rows that the size of a kernel is judged by, steps of Newton's method, the log of a large factor.
_ROWS, _STEPS, _LARGE = 64, 4, 14.0


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


def sized(plan: KernelPlan, x: np.ndarray, spread: float) -> np.ndarray:
    """The plan's centres, moved so that the mean prior variance at the rows is ``spread^2``.

    What sets the size are the numbers that the variance grows with as a power ``p`` when they are
    made large (variances: 1; standard deviations: 2; locations and length scales: 0). All of them
    are multiplied by the same number to the ``1/p``, found by Newton's method: in a sum of kernels
    shares stay as they are. Nothing moves where there is no such number.
    """
    rows = x[np.linspace(0, len(x) - 1, min(len(x), _ROWS)).astype(int)]

    def size(h: Any) -> Any:
        return jnp.log(jnp.mean(kernels.diagonal(plan.make(h, 1.0, 1.0), jnp.asarray(rows))))

    found = plan.start
    with in_precision(np.float64):
        start, slope = jnp.asarray(plan.start), jax.grad(size)
        power = np.diagonal(jax.vmap(slope)(start + _LARGE * jnp.eye(len(start))))
        along = np.where(power > 0.5, 1.0 / np.where(power > 0.5, power, 1.0), 0.0)
        for _ in range(_STEPS if along.any() else 0):
            missing = 2.0 * np.log(spread) - float(size(jnp.asarray(found)))
            found = found + along * missing / float(along @ np.asarray(slope(jnp.asarray(found))))
    return found if np.all(np.isfinite(found)) else plan.start


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float) or (
        isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _from_object(kernel: kernels.Kernel) -> KernelPlan:
    # Kernels from elsewhere keep parameters in spaces of their own: those are held.
    is_leaf = lambda k: isinstance(k, Adapted)  # noqa: E731
    fixed = jax.tree_util.GetAttrKey("fixed")
    learnt = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _is_number(leaf) and fixed not in path, kernel, is_leaf=is_leaf
    )
    free, held = eqx.partition(kernel, learnt, is_leaf=is_leaf)
    paths, tree = jax.tree_util.tree_flatten_with_path(free)
    values = [np.asarray(leaf, float) for _, leaf in paths]
    sizes = [v.size for v in values]
    flat = np.concatenate([v.ravel() for v in values]) if values else np.zeros(0)

    def make(log_kernel: Any, unit: Any, spread: Any) -> kernels.Kernel:
        moved, at = [], 0
        for value, size in zip(values, sizes, strict=True):
            part = jnp.exp(log_kernel[at : at + size]).reshape(value.shape)
            moved.append(jnp.asarray(value) * part)
            at += size
        return eqx.combine(jax.tree.unflatten(tree, moved), held)

    names = tuple(n for path, leaf in paths for n in _names(path, np.shape(leaf)))
    return KernelPlan(make, np.zeros(flat.size), names, tuple(flat.tolist()), given=True)


def _names(path: Any, shape: tuple[int, ...]) -> list[str]:
    """``left.lengthscale``, or ``lengthscale[0]``, ``lengthscale[1]`` of an array."""
    words = [getattr(key, "name", getattr(key, "key", getattr(key, "idx", ""))) for key in path]
    name = ".".join(str(w) for w in words if w != "parameters")
    places = [",".join(map(str, place)) for place in np.ndindex(*shape)]
    return [f"{name}[{place}]" if place else name for place in places]


def _from_function(kernel: Callable[..., Any]) -> KernelPlan:
    found = inspect.signature(kernel).parameters
    names = tuple(found)
    for k, p in found.items():
        if not (p.default is p.empty or isinstance(p.default, (int, float, np.number))):
            raise TypeError(
                f"kernel: expected a function of positive numbers (hyperparameters) that returns a "
                f"kernel, found {kernel!r}, whose argument {k!r} has the default {p.default!r}; "
                f"kernels of other libraries are not taken: use one of {sorted(RADIAL)} or of "
                "pk.kernels"
            )
    given = tuple(1.0 if p.default is p.empty else float(p.default) for p in found.values())

    def make(log_kernel: Any, unit: Any, spread: Any) -> kernels.Kernel:
        return kernel(**{k: given[i] * jnp.exp(log_kernel[i]) for i, k in enumerate(names)})

    return KernelPlan(make, np.zeros(len(names)), names, given, given=True)
