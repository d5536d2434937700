"""Bind: a Model and data become a Target. Every static fault is reported here, by site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from probkit.core import Labels, Target, listing, nearest
from probkit.models._centring import choose_centring, parse_reparam
from probkit.models._data import Data, read_data
from probkit.models._graph_program import GraphProgram, Plan, missing_dim
from probkit.models._model import Model
from probkit.models._nodes import Factor, RandomVariable
from probkit.models._observed import check_observed, split_missing
from probkit.models._sizes import resolve_sizes, used_dims

_MAX_PROGRAMS = 8


def bind(
    model: Model,
    data: Any = None,
    *,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
    reparam: Any = "auto",
    observe: bool = True,
    like: Target | None = None,
) -> Target:
    """The Target of a model with data.

    Args:
        model: the model.
        data: a mapping of arrays, an xarray Dataset, a data frame, or None.
        coords: labels by dim; they also give the sizes of dims that no data reach.
        dims: dims of bare arrays in ``data``, by name.
        reparam: ``"auto"`` (each hierarchical location-scale site is centred or not, element by
            element, by how informative the data are at a pilot point), ``"centred"``,
            ``"noncentred"``, ``"off"`` (as declared), or a dictionary of the last three by site.
        observe: whether declared names found in the data are observed (False: they are ignored).
        like: a Target of the same model; categories, coords and centring follow it.

    Returns:
        A `Target`. Targets of the same model, sizes, dtypes and observed names share compiled
        programs.

    Raises:
        ValueError, TypeError: any static fault, with the site, what was expected, what was found,
            and the remedy.
    """
    prepared, extra_dims, extra_coords = _prepared(model, data)
    given = {**extra_dims, **(dict(dims) if dims is not None else {})}
    trained = {} if like is None else like.labels.coords
    parsed = _read(model, prepared, given, trained)
    labels = {**_training_coords(like), **extra_coords, **dict(coords or {})}
    nodes = model.nodes
    observed = _observed(nodes, parsed) if observe else []
    _check_names(model, parsed, observed)
    rows_hint = None if like is None else like.labels.rows
    sizes, axes, rows = resolve_sizes(nodes, parsed, observed, labels, rows_hint, auto=True)
    columns = _columns(nodes, parsed, sizes)
    values, missing = split_missing(nodes, parsed, observed)
    style = parse_reparam(reparam, nodes)
    plan = Plan(
        nodes=nodes,
        sizes=sizes,
        columns={k: (v.shape, v.dtype.name) for k, v in columns.items()},
        data_dims={k: axes[k] for k in (*columns, *observed)},
        observed={k: (v.shape, v.dtype.name) for k, v in values.items()},
        missing={k: int(m.sum()) for k, m in missing.items()},
        style=style,
        dtype=np.dtype(jnp.result_type(float)).name,
    )
    program = _program(model, plan, columns, values, missing)
    check_observed(program, values, missing, _listed(prepared))
    arrays = program.pack(columns, values, missing)
    if program.enumeration is not None:
        program.enumeration.check_elementwise(arrays)
    table = Labels(
        coords=_coords(program, parsed, labels, rows, missing),
        observed={k: _with_holes(v, missing.get(k)) for k, v in values.items()},
        constants=dict(columns),
        rows=rows,
        rebind=lambda new, **options: bind(model, new, **options),
        source=model,
    )
    target = Target(program, arrays, table)
    return choose_centring(target, like)


def _prepared(model: Model, data: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    dims: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    if model._prepare is not None:
        data, dims, coords = model._prepare(data)
    if model._given:
        if data is not None and not isinstance(data, Mapping):
            parsed = read_data(data)
            data = {**parsed.arrays}
        data = {**(data if data is not None else {}), **model._given}
    return data, dict(dims), dict(coords)


def _read(model: Model, data: Any, dims: dict, trained: Mapping[str, np.ndarray]) -> Data:
    nodes = model.nodes
    wanted = {p for n in nodes.values() for p in n.parents} | set(nodes)
    wanted |= {d for n in nodes.values() for d in n.dims}
    # Only dims whose labels came from the data at training are categories of a column.
    categories = {k: v for k, v in trained.items() if k in wanted}
    names = None if isinstance(data, Mapping) else wanted
    return read_data(data, dims=dims, categories=categories, names=names)


def _training_coords(like: Target | None) -> dict[str, np.ndarray]:
    if like is None:
        return {}
    own = like.labels
    fixed = set(used_dims(like.labels.source.nodes))
    return {k: v for k, v in own.coords.items() if k != own.rows and k in fixed}


def _observed(nodes: Mapping[str, Any], parsed: Data) -> list[str]:
    found = []
    for name in parsed.arrays:
        node = nodes.get(name)
        if isinstance(node, RandomVariable):
            found.append(name)
        elif node is not None:
            kind = "a factor" if isinstance(node, Factor) else "deterministic"
            raise ValueError(
                f"site {name!r}: it is {kind} and cannot be observed, but the data have a column of "
                "that name; rename the column, or use model.do to set the variable"
            )
    return found


def _check_names(model: Model, parsed: Data, observed: list[str]) -> None:
    nodes = model.nodes
    sizes = {d for n in nodes.values() for d in (*n.dims, *n.event_dims)}
    sizes |= {d for axes in parsed.dims.values() for d in axes or ()}
    for name, node in nodes.items():
        for parent in node.parents:
            if parent in node.sizes or parent in node.optional:
                continue
            if parent not in nodes and parent not in parsed and parent not in sizes:
                options = [*nodes, *parsed.arrays, *sizes]
                raise ValueError(
                    f"site {name!r}: its parent {parent!r} is neither a variable, nor a column of "
                    f"the data, nor a dim.{nearest(parent, options)} Variables: {listing(nodes)}; "
                    f"data: {listing(parsed.arrays)}; dims: {listing(sizes)}."
                )
    if parsed.is_frame:
        return
    parents = {p for n in nodes.values() for p in n.parents}
    for name in parsed.arrays:
        if name not in nodes and name not in parents and name not in sizes:
            latent = [k for k in nodes if k not in observed]
            close = nearest(name, latent)
            if close:
                raise ValueError(
                    f"data {name!r}: no variable uses or declares it.{close} (That variable would "
                    "be left unobserved.) Rename the entry, or leave it out."
                )


def _columns(nodes: Mapping[str, Any], parsed: Data, sizes: dict) -> dict[str, np.ndarray]:
    """Columns that nodes use, checked for holes and for codes out of range."""
    out = {}
    for name, node in nodes.items():
        for parent in node.parents:
            if parent in nodes or parent in node.sizes or parent not in parsed:
                continue
            out[parent] = _host(parent, parsed.array(parent))
            if parent in parsed.missing:
                holes = parsed.missing[parent]
                first = tuple(int(i) for i in np.argwhere(holes)[0])
                raise ValueError(
                    f"site {name!r}: its covariate {parent!r} has {int(holes.sum())} missing "
                    f"entries (the first at {first}); only observed variables are imputed: drop "
                    f"those rows, fill them, or declare a distribution for {parent!r}"
                )
            _check_codes(name, parent, out[parent], sizes)
    return out


def _check_codes(name: str, parent: str, codes: np.ndarray, sizes: dict[str, int]) -> None:
    size = sizes.get(parent)
    if size is None or codes.dtype.kind not in "iu" or codes.size == 0:
        return
    if codes.min() < 0 or codes.max() >= size:
        raise ValueError(
            f"site {name!r}: the codes in {parent!r} run from {codes.min()} to {codes.max()}, but "
            f"dim {parent!r} has {size} entries (expected 0 to {size - 1}): codes count from 0"
        )


def _host(name: str, array: np.ndarray) -> np.ndarray:
    """A column in the computation's dtypes; whole numbers too large for them are an error."""
    if array.dtype.kind == "f":
        return array.astype(jnp.result_type(float))
    if array.dtype.kind in "iu":
        kind = np.dtype(jnp.result_type(int))
        limit = np.iinfo(kind)
        if array.size and (array.min() < limit.min or array.max() > limit.max):
            raise ValueError(
                f"data {name!r}: whole numbers up to {array.max()} do not fit into {kind.name}; "
                "pass them as floats, or subtract an offset"
            )
        return array.astype(kind)
    return array


def _listed(data: Any) -> frozenset[str]:
    """Names given as plain Python numbers or lists: these carry no dtype of their own."""
    if not isinstance(data, Mapping):
        return frozenset()
    return frozenset(k for k, v in data.items() if isinstance(v, list | tuple | int | float))


def _program(model: Model, plan: Plan, columns: dict, values: dict, missing: dict) -> GraphProgram:
    key = plan.key()
    if key in model._programs:
        model._programs.move_to_end(key)
        return model._programs[key]
    program = GraphProgram(plan, columns, values, missing)
    model._programs[key] = program
    while len(model._programs) > _MAX_PROGRAMS:
        model._programs.popitem(last=False)
    return program


def _coords(
    program: GraphProgram, parsed: Data, labels: dict, rows: str | None, missing: dict
) -> dict[str, np.ndarray]:
    """Labels of every dim of the program: the caller's, the data's, else 0, 1, 2, ..."""
    out = {}
    for dim, size in program.sizes.items():
        if dim in labels:
            found = np.asarray(labels[dim])
        elif dim in parsed.coords:
            found = np.asarray(parsed.coords[dim])
        elif dim == rows and parsed.row_labels is not None:
            found = np.asarray(parsed.row_labels)
        else:
            found = np.arange(size)
        out[dim] = found if len(found) == size else np.arange(size)
    for name in program.imputed:
        dims = program.facts[name].dims
        axes = [out[d][i] for d, i in zip(dims, np.nonzero(missing[name]), strict=True)]
        many = [", ".join(map(str, row)) for row in zip(*axes, strict=True)]
        out[missing_dim(name, dims)] = axes[0] if len(axes) == 1 else np.asarray(many)
    return out


def _with_holes(value: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return value
    holes = value.astype(float)
    holes[mask] = np.nan
    return holes

