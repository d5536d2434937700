"""Bind: a Model and data become a Target. Every static fault is reported here, by site."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from probkit.core import Labels, Target, check_options, listing, nearest
from probkit.core._trees import in_precision
from probkit.models._centring import choose_centring, parse_reparam
from probkit.models._data import ROWS, Data, read_data
from probkit.models._facts import Facts, compiled_facts, inspect_sites
from probkit.models._gp import moved_points, precision_of, resolve_processes, whitened
from probkit.models._gp_latent import with_owners
from probkit.models._graph_program import GraphProgram, Plan, missing_dim
from probkit.models._indexing import check_indices
from probkit.models._markov import resolve_chains
from probkit.models._model import Model
from probkit.models._nodes import Factor, RandomVariable
from probkit.models._numbers import in_kind
from probkit.models._observed import check_observed, split_missing
from probkit.models._sizes import check_coords, resolve_sizes, used_dims

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
    precision: str | None = None,
    **unknown: Any,
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
        like: a Target of the same model; categories, coords, centring and precision follow it.
        precision: ``"double"`` computes in float64; None is JAX's setting (single precision,
            unless jax_enable_x64 is on), and double for models with a Gaussian process.

    Returns:
        A `Target`. Targets of the same model, sizes, dtypes and observed names share compiled
        programs.

    Raises:
        ValueError, TypeError: any static fault, with the site, what was expected, what was found,
            and the remedy.
    """
    check_options("bind", unknown, _OPTIONS)
    with precision_of(model.nodes, like, precision):
        return _bound(model, data, coords, dims, reparam, observe, like)


def _bound(
    model: Model, data: Any, coords: Any, dims: Any, reparam: Any, observe: bool, like: Any
) -> Target:
    chosen = check_coords(coords)
    prepared, extra_dims, extra_coords = _prepared(model, data, chosen)
    labels = {**_training_coords(like), **extra_coords, **chosen}
    parsed = _read(model, prepared, _dims_option(extra_dims, dims), labels, like)
    nodes = model.nodes
    observed = _observed(nodes, parsed) if observe else []
    _check_names(model, parsed, observed, like)
    sizes, axes, rows = resolve_sizes(nodes, parsed, observed, labels, _rows_of(like), like)
    nodes = resolve_processes(resolve_chains(nodes, axes), axes)
    columns = _columns(nodes, parsed, sizes)
    values, missing = split_missing(nodes, parsed, observed)
    style = whitened(nodes, parse_reparam(reparam, nodes))
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
    # Parameters, supports and the values of discrete variables may depend on the columns' values.
    facts = inspect_sites(plan, columns, values)
    check_observed(facts, values, missing, _listed(prepared) | _listed(model._given))
    program = _program(model, plan, facts, missing)
    check_indices(program, columns)
    arrays = program.pack(columns, values, missing)
    moved = moved_points(nodes, columns, rows, like)
    if moved:
        arrays["process"] = moved
        if like is not None and "by_row" in like.arrays.get("latent", {}):
            arrays["pointwise"] = ()
    # Nothing is summed out where there is nothing to fit: simulating needs no density.
    if values and like is None and program.enumeration is not None:
        program.enumeration.check_elementwise(arrays)
    table = Labels(
        coords=_coords(program, parsed, labels, rows, missing),
        observed={k: _with_holes(v, missing.get(k)) for k, v in values.items()},
        constants=dict(columns),
        rows=rows,
        categorical=parsed.categorical,
        rebind=partial(_rebind, model),
        source=model,
    )
    target = Target(program, arrays, table)
    target = choose_centring(target, like)
    return target if like is not None else with_owners(target)


_OPTIONS = ("coords", "dims", "reparam", "observe", "like", "precision")


def _rebind(model: Model, data: Any, *, scored: bool = False, **options: Any) -> Target:
    """The model bound to new data.

    Args:
        model: the model.
        data: the new data.
        scored: as data whose terms are wanted, each of the entry of a process that it depends on;
            else as data to predict.
        options: of `bind`.
    """
    target = bind(model, data, **options)
    if not scored:
        return target
    arrays = {k: v for k, v in target.arrays.items() if k not in ("process", "pointwise")}
    with in_precision(target.dtype):
        return with_owners(Target(target.program, arrays, target.labels))


def _prepared(
    model: Model, data: Any, chosen: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    if model._prepare is None:
        return data, {}, {}
    data, dims, coords = model._prepare(data, chosen)
    return data, dict(dims), dict(coords)


def _dims_option(extra: Mapping[str, Any], dims: Any) -> Any:
    """The dims of bare arrays: those of a formula, and the caller's."""
    if not extra or (dims is not None and not isinstance(dims, Mapping)):
        return dims
    return {**extra, **(dims if dims is not None else {})}


def _read(
    model: Model, data: Any, dims: Any, labels: Mapping[str, Any], like: Target | None
) -> Data:
    nodes = model.nodes
    wanted = {p for n in nodes.values() for p in n.parents} | set(nodes)
    wanted |= {d for n in nodes.values() for d in n.dims}
    # Columns that held labels at training hold labels again, even if they look like numbers.
    known = {}
    if like is not None:
        trained = like.labels
        known = {k: labels[k] if k in labels else trained.coords[k] for k in trained.categorical}
    names = None if isinstance(data, Mapping) else wanted
    order = {k: v for k, v in labels.items() if k not in known}
    parsed = read_data(data, dims=dims, categories=known, order=order, names=names)
    return _transposed(nodes, _counted(nodes, _with_given(model, parsed), labels))


def _counted(nodes: Mapping[str, Any], parsed: Data, labels: Mapping[str, Any]) -> Data:
    """Columns of True and False under the name of a dim as codes of these two labels."""
    found = [
        d
        for d in used_dims(nodes)
        if d in parsed and d not in nodes and parsed.arrays.get(d, np.zeros(0)).dtype == bool
    ]
    if not found:
        return parsed
    known = {d: labels.get(d, np.array([False, True])) for d in found}
    return replace(
        parsed,
        arrays={**parsed.arrays, **{d: parsed.arrays[d].astype(np.int32) for d in found}},
        coords={**parsed.coords, **known},
        categorical=parsed.categorical | set(found),
    )


def _with_given(model: Model, parsed: Data) -> Data:
    """The data with what `Model.condition` gave; the two may not name the same variable."""
    if not model._given:
        return parsed
    both = [k for k in model._given if k in parsed]
    if both:
        raise ValueError(
            f"site {both[0]!r}: it was conditioned on a value already, and the data have a column "
            "of that name; leave it out of the data, or bind the model without condition()"
        )
    more = read_data(model._given)
    return replace(
        parsed,
        arrays={**parsed.arrays, **more.arrays},
        dims={**parsed.dims, **more.dims},
        coords={**more.coords, **parsed.coords},
        missing={**parsed.missing, **more.missing},
        categorical=parsed.categorical | more.categorical,
        names=(*parsed.names, *more.names),
    )


def _transposed(nodes: Mapping[str, Any], parsed: Data) -> Data:
    """Observed arrays whose dims are named, in the order that the variable declares."""
    for name, node in nodes.items():
        declared, found = node.dims + node.event_dims, parsed.dims.get(name)
        if not isinstance(node, RandomVariable) or not declared or found is None:
            continue
        if found == declared or set(found) != set(declared):
            continue
        order = [found.index(d) for d in declared]
        for part in (parsed.arrays, parsed.missing):
            if name in part:
                part[name] = np.transpose(part[name], order)
        parsed.dims[name] = declared
    return parsed


def _rows_of(like: Target | None) -> str | None:
    return None if like is None else like.labels.rows


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
                f"site {name!r}: it is {kind} and cannot be observed, but the data have a column "
                "of that name; leave the column out or rename it (a variable that model.do has set "
                "takes no data)"
            )
    return found


def _check_names(model: Model, parsed: Data, observed: list[str], like: Target | None) -> None:
    nodes = model.nodes
    sizes = {d for n in nodes.values() for d in (*n.dims, *n.event_dims)}
    sizes |= {d for axes in parsed.dims.values() for d in axes or () if d != ROWS}
    for name, node in nodes.items():
        for parent in node.parents:
            if parent in node.sizes or parent in node.optional:
                continue
            if like is not None and parent in like.labels.constants and parent not in parsed:
                raise ValueError(
                    f"site {name!r}: its parent {parent!r} was a column of the training data and "
                    f"is not in the new data.{nearest(parent, parsed.arrays)} "
                    f"The new data have: {listing(parsed.arrays)}; add the column."
                )
            if parent not in nodes and parent not in parsed and parent not in sizes:
                options = [*nodes, *parsed.names, *sizes]
                raise ValueError(
                    f"site {name!r}: its parent {parent!r} is neither a variable, nor a column of "
                    f"the data, nor a dim.{nearest(parent, options)} Variables: {listing(nodes)}; "
                    f"data: {listing(parsed.names)}; dims: {listing(sizes)}."
                )
    if like is None:
        _check_unused(nodes, parsed, observed, sizes)
        _warn_of_prior(nodes, parsed, observed)


def _warn_of_prior(nodes: Mapping[str, Any], parsed: Data, observed: list[str]) -> None:
    """Warn if there are data that nobody uses, and nothing is observed."""
    parents = {p for n in nodes.values() for p in n.parents}
    unused = [k for k in parsed.names if k not in parents and k not in nodes]
    likely = any(isinstance(n, Factor) and n.likelihood for n in nodes.values())
    if unused and not observed and not likely:
        variables = [k for k, n in nodes.items() if isinstance(n, RandomVariable)]
        warnings.warn(
            f"bind: nothing is observed, so a fit draws from the prior: none of the columns "
            f"{listing(unused)} has the name of a variable ({listing(variables)}); rename the "
            "outcome's column or the variable",
            UserWarning,
            stacklevel=4,
        )


def _check_unused(
    nodes: Mapping[str, Any], parsed: Data, observed: list[str], sizes: set[str]
) -> None:
    """Raise if a column that nobody uses looks like a misspelt variable.

    A frame may hold many columns that the model does not use: there only an outcome (a variable
    that nothing depends on) counts, and only names that differ in case or by a letter or two.
    """
    parents = {p for n in nodes.values() for p in n.parents}
    latent = [k for k in nodes if k not in observed]
    if parsed.is_frame:
        ends = [k for k in latent if k not in parents and isinstance(nodes[k], RandomVariable)]
        found = [c for c in parsed.names if c not in nodes and c not in parents]
        pairs = [(c, k) for k in ends for c in found if _misspelt(c, k)]
        close = {c: f" Did you mean {k!r}?" for c, k in pairs}
    else:
        found = [k for k in parsed.arrays if k not in nodes and k not in parents]
        close = {c: nearest(c, latent) for c in found if c not in sizes}
    for name, hint in close.items():
        if hint:
            raise ValueError(
                f"data {name!r}: no variable uses or declares it.{hint} (That variable would "
                "be left unobserved.) Rename the entry, or leave it out."
            )


def _misspelt(column: str, variable: str) -> bool:
    a, b = column.lower().replace("_", ""), variable.lower().replace("_", "")
    return a == b or difflib.SequenceMatcher(None, a, b).ratio() > 0.85


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
            _check_labels(name, parent, parsed, used_dims(nodes))
            _check_codes(name, parent, out[parent], sizes)
    return out


def _check_labels(name: str, parent: str, parsed: Data, dims: list[str]) -> None:
    """Codes of labels count something of a dim; as numbers they would mean their alphabet."""
    if parent in parsed.categorical and parent not in dims:
        raise ValueError(
            f"site {name!r}: its parent {parent!r} holds labels "
            f"({listing(parsed.coords[parent].tolist(), 4)}), expected numbers, since no variable "
            f"has a dim {parent!r} that they could index; declare one with dims={parent!r} and use "
            f"it as a[{parent}], or turn the labels into numbers"
        )


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
    """A column in the computation's dtypes."""
    if array.dtype.kind in "fiu":
        kind = jnp.result_type(float if array.dtype.kind == "f" else int)
        return in_kind(name, array, np.dtype(kind))
    return array


def _listed(data: Any) -> frozenset[str]:
    """Names given as plain Python numbers or lists: these carry no dtype of their own."""
    if not isinstance(data, Mapping):
        return frozenset()
    return frozenset(k for k, v in data.items() if isinstance(v, list | tuple | int | float))


def _program(
    model: Model, plan: Plan, facts: dict[str, Facts], missing: dict[str, np.ndarray]
) -> GraphProgram:
    key = (plan.key(), compiled_facts(facts))
    if key in model._programs:
        model._programs.move_to_end(key)
        return model._programs[key]
    program = GraphProgram(plan, facts, missing)
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
