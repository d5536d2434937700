r"""A Gaussian process in the graph: a latent function evaluated at the rows of a column.

    f ~ N(m, K + j I),     K_ij = k(x_i, x_j),     f = m + L z,   L L' = K + j I,   z ~ N(0, I)

``z`` are the sampler's coordinates (the whitened form), since K is close to singular for smooth
kernels; ``reparam={"f": "centred"}`` asks for ``f`` itself. The jitter ``j`` is by default
``n * eps * mean(diag K)`` with ``eps`` that of the dtype: the size of the rounding error of K's
Cholesky factor. Cost: O(n^3) an evaluation, O(n^2) memory.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist

from probkit.core import Target, check_options
from probkit.models._nodes import Node, RandomVariable, names, signature_of


@dataclass(frozen=True, eq=False)
class GaussianProcess(RandomVariable):
    """The node of a latent function; ``at`` names its input columns."""

    at: tuple[str, ...] = ()


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
        x = self._points(values)
        kernel = self.kernel(**{k: values[k] for k in self.kernel_parents if k in values})
        gram = gram_matrix(kernel, x)
        n = gram.shape[0]
        noise = self.jitter
        if noise is None:
            noise = n * float(jnp.finfo(gram.dtype).eps) * jnp.mean(jnp.diagonal(gram))
        tril = jnp.linalg.cholesky(gram + noise * jnp.eye(n, dtype=gram.dtype))
        return dist.MultivariateNormal(self._mean(values, n, gram.dtype), scale_tril=tril)

    def _points(self, values: Mapping[str, Any]) -> Array:
        columns = [jnp.asarray(values[k], float) for k in self.at]
        if not self.stacked:
            return columns[0]
        return jnp.stack(columns, axis=-1)

    def _mean(self, values: Mapping[str, Any], n: int, dtype: Any) -> Array:
        found = self.mean
        if callable(found):
            found = found(**{k: values[k] for k in self.mean_parents if k in values})
        found = jnp.asarray(0.0 if found is None else found, dtype)
        if found.shape not in ((), (n,)):
            raise ValueError(
                f"expected the mean to be a number or {n} of them, one a row of "
                f"{', '.join(self.at)}; found shape {found.shape}"
            )
        return jnp.broadcast_to(found, (n,))


def gram_matrix(kernel: Any, x: Array) -> Array:
    """The kernel's matrix at points ``x``, shape ``(n,)`` or ``(n, d)``.

    ``kernel`` is ``k(x, y)``, a function of two points, or a GPJax kernel.
    """
    gpjax = sys.modules.get("gpjax")
    if gpjax is not None and isinstance(kernel, gpjax.kernels.AbstractKernel):
        points = x[:, None] if x.ndim == 1 else x
        return jnp.asarray(kernel.cross_covariance(points, points), x.dtype)
    if not callable(kernel):
        raise TypeError(
            "expected the kernel's function to return k(x, y), a function of two points, or a "
            f"GPJax kernel; found {type(kernel).__name__}"
        )
    value: Any = kernel
    gram = jax.vmap(lambda a: jax.vmap(lambda b: value(a, b))(x))(x)
    if gram.ndim != 2:
        raise ValueError(
            f"expected k(x, y) to return a number for two points of shape {x.shape[1:]}, found "
            f"shape {gram.shape[2:]}; sum over the points' coordinates"
        )
    return gram


def gp(
    kernel_fn: Callable[..., Any],
    at: str | Sequence[str] = "",
    mean: Any = None,
    dims: str | Sequence[str] | None = None,
    *,
    jitter: float | None = None,
    **unknown: Any,
) -> GaussianProcess:
    """A latent function with a Gaussian-process prior, evaluated at the rows of the data.

    Args:
        kernel_fn: a function of parents (length scales, variances) that returns the kernel:
            ``k(x, y)`` of two points, or a GPJax kernel.
        at: the column of inputs; a list of columns makes points of several coordinates.
        mean: the mean function's values: a number, or a function of parents that returns one a row.
        dims: the name of the rows' dim; by default that of the column.
        jitter: a variance added to the diagonal; by default as much as the dtype's rounding needs.

    Raises:
        TypeError: ``kernel_fn`` is no function, or an option is misspelt.
        ValueError: ``at`` names no column.

    Example:
        >>> import jax.numpy as jnp
        >>> import probkit as pk
        >>> from probkit import dist
        >>> model = pk.Model(
        ...     scale=dist.LogNormal(0, 1),
        ...     f=pk.gp(lambda scale: lambda a, b: jnp.exp(-((a - b) / scale) ** 2 / 2), at="x"),
        ...     y=pk.rv(lambda f: dist.Normal(f, 0.1), dims="row"),
        ... )
        >>> target = model.bind({"x": [0.0, 0.5, 2.0], "y": [0.3, 0.4, -0.2]})
        >>> target.sites["f"].dims
        ('row',)
    """
    check_options("pk.gp", unknown, ["kernel_fn", "at", "mean", "dims", "jitter"])
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
    found, optional, sizes = signature_of("pk.gp(kernel_fn)", kernel_fn)
    other: tuple[str, ...] = ()
    if callable(mean):
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
    )


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


def whitened(nodes: Mapping[str, Node], style: Mapping[str, str]) -> dict[str, str]:
    """Styles of parametrisation with every Gaussian process whitened, unless named otherwise."""
    processes = {k: "noncentred" for k, n in nodes.items() if isinstance(n, GaussianProcess)}
    return {**processes, **style}


def check_prediction(
    nodes: Mapping[str, Node],
    columns: Mapping[str, np.ndarray],
    rows: str | None,
    like: Target | None,
) -> None:
    """Raise if new data move the points of a Gaussian process: its draws would be the prior's."""
    if like is None:
        return
    for name, node in nodes.items():
        if not isinstance(node, GaussianProcess):
            continue
        for column in node.at:
            old, new = like.labels.constants.get(column), columns.get(column)
            moved = old is None or new is None or not np.array_equal(old, new)
            # Variables along the rows are drawn afresh, from the prior, even at equal points.
            if moved or rows in node.event_dims:
                raise ValueError(
                    f"site {name!r}: a Gaussian process was fitted at other points of {column!r}, "
                    "and predictions there do not follow from its draws alone; fit with the new "
                    "points among the data and the outcome missing (NaN) there: they are imputed"
                )
