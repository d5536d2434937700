"""Which dim is which axis, and how long it is: resolved once, when data are bound.

The sources, in this order: coords given by the caller; dims that the data name themselves; observed
variables (their declared dims); the rows of a frame; categorical columns; bare arrays whose only
fitting consumer dim is unknown yet; integer codes named like a dim. Two sources that disagree are
an error that names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probkit.core import Target, listing, nearest
from probkit.models._data import ROWS, Data
from probkit.models._graph import dims_of_consumers
from probkit.models._nodes import Factor, Node, RandomVariable


class Sizes:
    """Sizes of dims under construction, each with where it came from."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.sources: dict[str, str] = {}

    def put(self, dim: str, size: int, source: str) -> None:
        """Record a size; a ValueError names both sources where two of them disagree."""
        known = self.sizes.get(dim)
        if known is None:
            self.sizes[dim] = int(size)
            self.sources[dim] = source
        elif known != size:
            raise ValueError(
                f"dim {dim!r}: expected one length, found {known} ({self.sources[dim]}) and "
                f"{size} ({source}); make the two agree, or give them different dims"
            )


def used_dims(nodes: Mapping[str, Node]) -> list[str]:
    """All dims that nodes declare, in order."""
    found: dict[str, None] = {}
    for node in nodes.values():
        for dim in (*node.dims, *node.event_dims, *node.sizes.values()):
            found[dim] = None
    return list(found)


def resolve_sizes(
    nodes: Mapping[str, Node],
    data: Data,
    observed: list[str],
    coords: Mapping[str, Any],
    rows: str | None,
    like: Target | None = None,
) -> tuple[dict[str, int], dict[str, tuple[str | None, ...]], str | None]:
    """Sizes of dims, dims of every array, and the rows' dim.

    Args:
        nodes: the model's nodes.
        data: what was read.
        observed: declared variables found in the data.
        coords: labels by dim.
        rows: the rows' dim where it is known already (from training).
        like: the target of the training data, whose bare arrays' dims hold for new ones.
    """
    sizes = Sizes()
    dims = used_dims(nodes)
    parents = {p for n in nodes.values() for p in n.parents}
    rows = _rows(nodes, data, observed, rows)
    _put_coords(sizes, coords, dims, data, rows, like)
    known_axes = {} if like is None else like.program.data_dims
    axes = _named_axes(nodes, data, observed, rows, known_axes)
    for name, names in axes.items():
        for dim, size in zip(names, data.arrays[name].shape, strict=True):
            if dim is not None:
                sizes.put(dim, size, f"the axes of {name!r}")
    for dim, labels in data.coords.items():
        if dim in dims and dim not in sizes.sizes:
            sizes.put(dim, len(labels), f"the labels of {dim!r}")
    _guess_axes(nodes, data, parents, axes, sizes, rows)
    for dim in dims:
        if dim not in sizes.sizes and dim in data.arrays and dim not in observed:
            codes = data.arrays[dim]
            if codes.dtype.kind in "iu" and codes.size and codes.min() >= 0:
                _check_from_zero(dim, codes)
                sizes.put(dim, int(codes.max()) + 1, f"the largest code in column {dim!r}")
    _require_sizes(nodes, sizes)
    return sizes.sizes, axes, rows


def _put_coords(
    sizes: Sizes,
    coords: Mapping[str, Any],
    dims: list[str],
    data: Data,
    rows: str | None,
    like: Target | None,
) -> None:
    source = "coords" if like is None else "coords, or those of the training data"
    in_use = {*dims, *(d for axes in data.dims.values() for d in axes or ()), rows}
    for dim, labels in coords.items():
        if dim in in_use:
            sizes.put(dim, len(labels), source)
        elif like is None or dim not in like.labels.coords:
            raise ValueError(
                f"coords: the model has no dim {dim!r}.{nearest(dim, dims)} "
                f"Its dims are {listing(dims)}; name one of these, or leave the entry out."
            )


def check_coords(coords: Any) -> dict[str, np.ndarray]:
    """The caller's coords, or an error that says what labels of a dim look like."""
    if coords is None:
        return {}
    if not isinstance(coords, Mapping):
        raise TypeError(
            "coords: expected a mapping from dims to labels, such as {'school': names}, found "
            f"{type(coords).__name__}"
        )
    return {dim: _labels(dim, labels) for dim, labels in coords.items()}


def _labels(dim: Any, labels: Any) -> np.ndarray:
    if not isinstance(dim, str):
        raise TypeError(f"coords: expected names of dims, found {dim!r}; give a string")
    if labels is None or isinstance(labels, set | frozenset | Mapping):
        raise TypeError(
            f"coords[{dim!r}]: expected a sequence of labels, found {type(labels).__name__}; give "
            "a list, whose order says which label is which entry"
        )
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(
            f"coords[{dim!r}]: expected a sequence of labels, found shape {array.shape}; give a "
            "list with one label for each entry"
        )
    if not array.size:
        raise ValueError(f"coords[{dim!r}]: expected at least one label, found none; fill the list")
    names, counts = np.unique(array.astype(str), return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"coords[{dim!r}]: expected distinct labels, but {str(names[counts > 1][0])!r} occurs "
            f"{counts.max()} times; make them unique"
        )
    return array


def _rows(
    nodes: Mapping[str, Node], data: Data, observed: list[str], rows: str | None
) -> str | None:
    """The dim of a frame's rows: that of the observed variables in it, else the consumers'.

    Without a frame, that of the observed variables, or else of the likelihood factors.
    """
    if not any(axes == (ROWS,) for axes in data.dims.values()):
        if rows is not None:
            return rows
        first = {_own_rows(nodes[k], nodes, observed) for k in observed if nodes[k].dims}
        if not observed:
            terms = [n for n in nodes.values() if isinstance(n, Factor) and n.likelihood]
            first = {n.dims[0] for n in terms if len(n.dims) == 1}
        return first.pop() if len(first) == 1 else None
    found: dict[str, str] = {}
    for name in observed:
        if data.dims.get(name) == (ROWS,):
            node = nodes[name]
            if len(node.dims) + len(node.event_dims) > 1:
                raise ValueError(
                    f"site {name!r}: declared with dims {node.dims + node.event_dims}, but a data "
                    "frame's column has one axis, its rows; use long-format dims (one dim for the "
                    "rows, index columns for the rest), or pass an array"
                )
            for dim in node.dims + node.event_dims:
                found[dim] = name
    if len(found) > 1:
        raise ValueError(
            f"data frame: its rows would be both {listing(found)} (the dims of observed "
            f"variables {listing(found.values())}); pass a mapping of arrays instead"
        )
    if found:
        return next(iter(found))
    if rows is not None:
        return rows
    columns = [k for k, axes in data.dims.items() if axes == (ROWS,)]
    named = {d for k in columns for d in dims_of_consumers(k, nodes) if d not in data.coords}
    return named.pop() if len(named) == 1 else "row"


def _own_rows(node: Node, nodes: Mapping[str, Node], observed: list[str]) -> str | None:
    """The dim of an observed array that new data replace.

    Of several dims it is the first that no latent variable has: firms whose effects were learnt
    stay what they are, and the years are new. None if all of them have some.
    """
    if len(node.dims) == 1:
        return node.dims[0]
    learnt = {
        d
        for k, n in nodes.items()
        if k not in observed and isinstance(n, RandomVariable)
        for d in n.dims + n.event_dims
    }
    free = [d for d in node.dims if d not in learnt]
    return free[0] if free else None


def _named_axes(
    nodes: Mapping[str, Node],
    data: Data,
    observed: list[str],
    rows: str | None,
    known: Mapping[str, tuple[str | None, ...]],
) -> dict[str, tuple[str | None, ...]]:
    out: dict[str, tuple[str | None, ...]] = {}
    for name, array in data.arrays.items():
        axes = data.dims.get(name)
        if axes is not None:
            out[name] = tuple(rows if dim == ROWS else dim for dim in axes)
            if name in observed:
                _check_observed_dims(name, nodes[name], out[name])
            continue
        if name in observed:
            out[name] = _observed_axes(name, nodes[name], array.shape)
        elif len(known.get(name, ())) == array.ndim:
            out[name] = known[name]
        else:
            out[name] = (None,) * array.ndim
    return out


def _observed_axes(name: str, node: Node, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Dims of a bare observed array: the declared ones, and names for event axes without any."""
    declared = node.dims + node.event_dims
    extra = len(shape) - len(declared)
    if extra == 0 or (extra > 0 and not node.event_dims):
        return (*declared, *(f"{name}_dim_{i}" for i in range(extra)))
    raise ValueError(
        f"site {name!r}: expected {len(declared)} axes {declared}, found data of shape {shape}; "
        "reshape the data or declare other dims"
    )


def _check_observed_dims(name: str, node: Node, axes: tuple[str | None, ...]) -> None:
    declared = node.dims + node.event_dims
    named = axes[: len(declared)] if not node.event_dims else axes
    if declared and named != declared:
        raise ValueError(
            f"site {name!r}: expected data with dims {declared}, as declared, found {axes}; "
            "rename one of them"
        )


def _guess_axes(
    nodes: Mapping[str, Node],
    data: Data,
    parents: set[str],
    axes: dict[str, tuple[str | None, ...]],
    sizes: Sizes,
    rows: str | None,
) -> None:
    """Dims of bare arrays from the one dim of their consumers whose length fits."""
    for unknown_too in (False, True):
        for name in axes:
            if name not in parents or None not in axes[name]:
                continue
            candidates = dims_of_consumers(name, nodes)
            shape = data.arrays[name].shape
            if unknown_too and len(shape) == 1:
                unknown = [d for d in candidates if d not in sizes.sizes]
                if len(unknown) == 1 and axes[name] == (None,):
                    sizes.put(unknown[0], shape[0], f"the length of {name!r}")
                    axes[name] = (unknown[0],)
                    continue
            axes[name] = tuple(
                known if known is not None else _fit(size, i, shape, candidates, sizes, rows)
                for i, (known, size) in enumerate(zip(axes[name], shape, strict=True))
            )


def _fit(
    size: int, axis: int, shape: tuple, candidates: list[str], sizes: Sizes, rows: str | None
) -> str | None:
    fits = [d for d in candidates if sizes.sizes.get(d) == size]
    if shape.count(size) > 1:
        return None
    if len(fits) > 1 and rows in fits and axis == 0:
        return rows
    return fits[0] if len(fits) == 1 else None


def _check_from_zero(dim: str, codes: np.ndarray) -> None:
    """Raise if whole numbers that set the size of a dim are labels (years, ids from 1)."""
    if codes.min() == 0:
        return
    raise ValueError(
        f"column {dim!r}: whole numbers under the name of a dim are codes, which count from 0, but "
        f"these run from {codes.min()} to {codes.max()}; to have them as labels make them text or "
        f"categorical ({dim}.astype(str)), or pass codes together with coords={{{dim!r}: [...]}}"
    )


def _require_sizes(nodes: Mapping[str, Node], sizes: Sizes) -> None:
    for name, node in nodes.items():
        for dim in (*node.dims, *node.sizes.values()):
            if dim not in sizes.sizes:
                raise ValueError(
                    f"site {name!r}: the size of its dim {dim!r} is not known."
                    f"{nearest(dim, sizes.sizes)} Pass its labels in coords={{{dim!r}: [...]}}, "
                    "or data along it."
                )
