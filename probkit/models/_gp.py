r"""A Gaussian process in the graph: a latent function evaluated at the rows of a column.

    f ~ N(m, K + j I),     K_ij = k(x_i, x_j),     f = m + L z,   L L' = K + j I,   z ~ N(0, I)

``z`` are the sampler's coordinates (the whitened form), since K is close to singular for smooth
kernels; ``reparam={"f": "centred"}`` asks for ``f`` itself. The jitter ``j`` is by default
``n * eps * mean(diag K)`` with ``eps`` that of the dtype: the size of the rounding error of K's
Cholesky factor. Cost: O(n^3) an evaluation, O(n^2) memory.

A model with such a node computes in float64, whatever JAX's setting: with the jitter that single
precision needs, a process is another one. ``precision="single"`` keeps the caller's setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist

from probkit.core import Target, check_choice, check_options
from probkit.core._trees import in_precision
from probkit.models._nodes import Node, RandomVariable, names, signature_of
from probkit.models.kernels._gpjax import is_gpjax, is_gpjax_mean, mean_values
from probkit.models.kernels._kernel import Kernel, as_kernel, cross_covariance
from probkit.models.kernels._kinds import check_kinds


@dataclass(frozen=True, eq=False)
class GaussianProcess(RandomVariable):
    """The node of a latent function; ``at`` names its input columns."""

    at: tuple[str, ...] = ()
    double: bool = True

    @property
    def process(self) -> ProcessFunction:
        """The parts of its function: kernel, points, mean."""
        return cast(ProcessFunction, self.fn)


@dataclass(frozen=True, eq=False)
class ProcessFunction:
    """A Gaussian process' distribution as a function of its parents, called by keyword."""

    kernel: Callable[..., Any]
    kernel_parents: tuple[str, ...]
    mean: Any
    mean_parents: tuple[str, ...]
    at: tuple[str, ...]
    stacked: bool
    jitter: float | None

    def __call__(self, **values: Any) -> dist.MultivariateNormal:
        x, kernel = self.points(values), self.kernel_of(values)
        self._check_kinds(kernel, values)
        gram = cross_covariance(kernel, x, x)
        tril = jnp.linalg.cholesky(gram + self.noise(gram) * jnp.eye(len(gram), dtype=gram.dtype))
        return dist.MultivariateNormal(self.mean_of(values), scale_tril=tril)

    def kernel_of(self, values: Mapping[str, Any]) -> Kernel:
        """The kernel, given the parents' values."""
        made = self.kernel(**{k: values[k] for k in self.kernel_parents if k in values})
        return as_kernel(made, numbers=False)

    def _check_kinds(self, kernel: Kernel, values: Mapping[str, Any]) -> None:
        """Points are known while a model is inspected, and traced in its programs."""
        columns = [values[k] for k in self.at]
        if all(isinstance(c, np.ndarray) for c in columns):
            x = np.stack(columns, axis=-1) if self.stacked else np.asarray(columns[0])
            check_kinds(kernel, x.reshape(len(x), -1))

    def points(self, values: Mapping[str, Any]) -> Array:
        """The inputs, ``(n,)`` for one column, ``(n, d)`` for a list of them."""
        columns = [jnp.asarray(values[k], float) for k in self.at]
        return jnp.stack(columns, axis=-1) if self.stacked else columns[0]

    def noise(self, gram: Array) -> Array:
        """The jitter that the covariance matrix gets: a scalar."""
        if self.jitter is not None:
            return jnp.asarray(self.jitter, gram.dtype)
        rounding = len(gram) * float(jnp.finfo(gram.dtype).eps)
        return rounding * jnp.mean(jnp.diagonal(gram))

    def mean_of(self, values: Mapping[str, Any]) -> Array:
        """The prior mean at the points, shape ``(n,)``."""
        x = self.points(values)
        found = self.mean
        if callable(found) and not is_gpjax_mean(found):
            found = found(**{k: values[k] for k in self.mean_parents if k in values})
        if is_gpjax_mean(found):
            found = mean_values(found, x)
        found = jnp.asarray(0.0 if found is None else found, x.dtype)
        if found.shape not in ((), (len(x),)):
            raise ValueError(
                f"expected the mean to be a number or {len(x)} of them, one a row of "
                f"{', '.join(self.at)}; found shape {found.shape}"
            )
        return jnp.broadcast_to(found, (len(x),))


def gp(
    kernel_fn: Callable[..., Any],
    at: str | Sequence[str] = "",
    mean: Any = None,
    dims: str | Sequence[str] | None = None,
    *,
    jitter: float | None = None,
    precision: str = "double",
    **unknown: Any,
) -> GaussianProcess:
    """A latent function with a Gaussian-process prior, evaluated at the rows of the data.

    Args:
        kernel_fn: a function of parents (length scales, variances) that returns the kernel: one of
            `probkit.kernels`, any ``k(x, y)`` of two points, or a GPJax kernel. A kernel without
            parents may be given as it is.
        at: the column of inputs; a list of columns makes points of several coordinates.
        mean: the mean function's values: a number, or a function of parents that returns one a row
            (or a mean function of GPJax).
        dims: the name of the rows' dim; by default that of the column.
        jitter: a variance added to the diagonal; by default as much as the dtype's rounding needs.
        precision: ``"double"`` computes the whole model in float64, whatever JAX's setting;
            ``"single"`` keeps that setting (float32 by default, for GPUs without fast doubles).

    Raises:
        TypeError: ``kernel_fn`` is no function, or an option is misspelt.
        ValueError: ``at`` names no column.

    Example:
        >>> import probkit as pk
        >>> from probkit import dist
        >>> model = pk.Model(
        ...     scale=dist.LogNormal(0, 1),
        ...     f=pk.gp(lambda scale: pk.kernels.Matern52(scale), at="x"),
        ...     y=pk.rv(lambda f: dist.Normal(f, 0.1), dims="row"),
        ... )
        >>> target = model.bind({"x": [0.0, 0.5, 2.0], "y": [0.3, 0.4, -0.2]})
        >>> target.sites["f"].dims
        ('row',)
    """
    options = ["kernel_fn", "at", "mean", "dims", "jitter", "precision"]
    check_options("pk.gp", unknown, options)
    columns = names("pk.gp(at)", at or None)
    if not columns:
        raise ValueError(
            "pk.gp: expected the name of the column of inputs (or several); give at='x'"
        )
    rows = names("pk.gp", dims)
    if len(rows) > 1:
        raise ValueError(f"pk.gp: expected one dim, that of the rows, found {rows}")
    if jitter is not None and not jitter >= 0:
        raise ValueError(f"pk.gp(jitter=): expected a variance of zero or more, found {jitter}")
    check_choice("pk.gp(precision)", precision, ("double", "single"))
    kernel_fn = _parentless(kernel_fn)
    found, optional, sizes = signature_of("pk.gp(kernel_fn)", kernel_fn)
    other: tuple[str, ...] = ()
    if callable(mean) and not is_gpjax_mean(mean):
        other, more, also = signature_of("pk.gp(mean)", mean)
        optional, sizes = (optional | more), {**sizes, **also}
    fn = ProcessFunction(kernel_fn, found, mean, other, columns, not isinstance(at, str), jitter)
    parents = tuple(dict.fromkeys((*found, *other, *columns)))
    return GaussianProcess(
        fn,
        parents,
        frozenset(optional - set(columns)),
        {k: v for k, v in sizes.items() if k not in columns},
        (),
        rows,
        True,
        f"GaussianProcess({', '.join(parents)})",
        columns,
        precision == "double",
    )


def _parentless(kernel_fn: Any) -> Any:
    """A kernel object in place of a function of parents: the function without parents."""
    if isinstance(kernel_fn, Kernel) or is_gpjax(kernel_fn):
        return lambda: kernel_fn
    return kernel_fn


def resolve_processes(
    nodes: Mapping[str, Node], data_dims: Mapping[str, tuple[str | None, ...]]
) -> dict[str, Node]:
    """The nodes with every Gaussian process along the dim of its column's rows."""
    out = dict(nodes)
    for name, node in nodes.items():
        if not isinstance(node, GaussianProcess) or node.event_dims:
            continue
        axes = data_dims.get(node.at[0], ())
        if axes and axes[0] is not None:
            out[name] = dataclasses.replace(node, event_dims=(axes[0],))
    return out


def processes(nodes: Mapping[str, Node]) -> dict[str, GaussianProcess]:
    """The Gaussian processes among the nodes."""
    return {k: n for k, n in nodes.items() if isinstance(n, GaussianProcess)}


def check_memory(name: str, n: int, dtype: Any) -> None:
    """Raise if the covariance matrix, its factor and one derivative would not fit into memory."""
    need, have = 3.0 * n * n * np.dtype(dtype).itemsize, memory()
    if need > have:
        most = int((have / 3.0 / np.dtype(dtype).itemsize) ** 0.5)
        raise ValueError(
            f"site {name!r}: a Gaussian process at {n} points needs three matrices of {n} x {n} "
            f"({need / 2**30:.0f} GiB), and this machine has {have / 2**30:.0f} GiB; expected "
            f"{most} points at the most: use pk.SVGP(), whose inducing points never form "
            "the matrix, or average or subsample the rows"
        )


@functools.cache
def memory() -> float:
    """Bytes of the machine's main memory (infinite where the system does not say)."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def precision_of(
    nodes: Mapping[str, Node], like: Target | None, precision: str | None = None
) -> contextlib.AbstractContextManager[None]:
    """The floating precision that a model is bound in.

    Raises:
        ValueError: ``precision`` is neither ``"double"`` nor None.
    """
    if precision is not None:
        check_choice("bind(precision)", precision, ("double",))
    if like is not None:
        return in_precision(like.dtype)
    if precision == "double" or any(n.double for n in processes(nodes).values()):
        return in_precision(np.float64)
    return contextlib.nullcontext()


def whitened(nodes: Mapping[str, Node], style: Mapping[str, str]) -> dict[str, str]:
    """Styles of parametrisation with every Gaussian process whitened, unless named otherwise."""
    return {**dict.fromkeys(processes(nodes), "noncentred"), **style}


def moved_points(
    nodes: Mapping[str, Node],
    columns: Mapping[str, np.ndarray],
    rows: str | None,
    like: Target | None,
) -> dict[str, np.ndarray]:
    """Training points of each Gaussian process whose points new data move, by site.

    Draws at the new points come from the conditional distribution given the draws at these.
    """
    out: dict[str, np.ndarray] = {}
    if like is None:
        return out
    for name, node in processes(nodes).items():
        # The rows of new data are other rows, even where their points are the same.
        if rows in node.event_dims or any(_differs(k, columns, like) for k in node.at):
            old = [np.asarray(like.labels.constants[k]) for k in node.at]
            out[name] = np.stack(old, -1) if node.process.stacked else old[0]
    return out


def _differs(column: str, columns: Mapping[str, np.ndarray], like: Target) -> bool:
    old, new = like.labels.constants.get(column), columns.get(column)
    return old is None or new is None or not np.array_equal(old, new)
