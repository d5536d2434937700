"""Data that index an array out of its bounds, found when data are bound.

JAX clamps an index beyond the end of an array and says nothing: with groups numbered from 1, every
row would get the effect of the group after its own, and the last two groups would share one. So the
jaxpr of each node's function is walked with intervals in the place of integers: the smallest and
the largest value of a data column go through casts, reshapes, sums, differences and the wrapping of
negative indices, up to the gather that uses them. What is not understood is passed over, so nothing
is refused that might be meant. O(operations) for each bind; the jaxpr is kept with the program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from probkit.models._sites import call

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram


@dataclass(frozen=True)
class _Span:
    """Integers from ``lo`` to ``hi``, read from a data column (or None, a constant)."""

    lo: int
    hi: int
    column: str | None = None


@dataclass(frozen=True)
class _Parts:
    """The columns of an array of multi-dimensional indices."""

    parts: tuple[_Span | None, ...]


_SAME = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "transpose")


def check_indices(program: GraphProgram, columns: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError if a node's function indexes an array beyond its end with data."""
    for name, node in program.nodes.items():
        whole = [p for p in node.parents if _is_integer(columns.get(p)) and p not in program.nodes]
        if not whole:
            continue
        traced = program.cached(("jaxpr", name), lambda n=name: _trace(program, n))
        if traced is None:
            continue
        jaxpr, inputs = traced
        spans = [_span(p, columns[p]) if p in whole else None for p in inputs]
        for span, size in _walk(jaxpr, spans)[1]:
            _refuse(name, span, size, columns)


def _is_integer(column: np.ndarray | None) -> bool:
    return column is not None and column.dtype.kind in "iu" and column.size > 0


def _span(name: str, column: np.ndarray) -> _Span:
    return _Span(int(column.min()), int(column.max()), name)


def _refuse(name: str, span: _Span, size: int, columns: Mapping[str, np.ndarray]) -> None:
    found = columns[span.column or ""]
    counted = "codes count from 0: subtract 1" if span.hi == size else "mend the codes"
    raise ValueError(
        f"site {name!r}: its function indexes an axis of length {size} (0 to {size - 1}) with "
        f"{span.column!r}, whose values run from {found.min()} to {found.max()}; {counted}, or "
        "pass labels (text, or a categorical column) under the name of the dim"
    )


def _trace(program: GraphProgram, name: str) -> tuple[Any, list[str]] | None:
    """The jaxpr of a node's function, and the names of its inputs."""
    node, plan = program.nodes[name], program.plan
    traced: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for parent in node.parents:
        if parent in program.facts:
            f = program.facts[parent]
            kind = np.int32 if f.discrete else program.dtype
            traced[parent] = jax.ShapeDtypeStruct(f.shape, kind)
        elif parent in plan.columns:
            shape, kind = plan.columns[parent]
            traced[parent] = jax.ShapeDtypeStruct(shape, np.dtype(kind))
        elif parent in program.sizes:
            fixed[parent] = program.sizes[parent]
        else:
            return None
    for parent, dim in node.sizes.items():
        traced.pop(parent, None)
        fixed[parent] = program.sizes[dim]
    names = list(traced)

    def outputs(*values: Any) -> Any:
        out = call(name, node, {**dict(zip(names, values, strict=True)), **fixed})
        return [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)]

    try:
        return jax.make_jaxpr(outputs)(*traced.values()), names
    except (TypeError, ValueError):
        return None  # a function that the trace of the whole model has judged already


def _walk(closed: Any, spans: list) -> tuple[list, list[tuple[_Span, int]]]:
    """Spans of a jaxpr's outputs, and the indices that leave their axis, with its length."""
    known: dict[Any, Any] = {}
    faults: list[tuple[_Span, int]] = []

    def read(atom: Any) -> Any:
        return _constant(atom.val) if isinstance(atom, Literal) else known.get(atom)

    jaxpr = closed.jaxpr
    known.update(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))
    known.update(zip(jaxpr.invars, spans, strict=True))
    for eqn in jaxpr.eqns:
        values = [read(x) for x in eqn.invars]
        inner = _inner(eqn)
        if inner is not None and len(inner.jaxpr.invars) == len(values):
            outs, more = _walk(inner, values)
            faults += more
            known.update(zip(eqn.outvars, outs, strict=True))
            continue
        if eqn.primitive.name == "gather":
            faults += _beyond(eqn, values[1])
        if eqn.outvars:
            known[eqn.outvars[0]] = _apply(eqn, values)
    return [read(x) for x in jaxpr.outvars], faults


def _inner(eqn: Any) -> Any:
    for key in ("jaxpr", "call_jaxpr"):
        if isinstance(eqn.params.get(key), ClosedJaxpr):
            return None if eqn.primitive.name == "scan" else eqn.params[key]
    return None


def _constant(value: Any) -> _Span | None:
    array = np.asarray(value) if np.size(value) else np.zeros(1, float)
    if array.dtype.kind not in "iub":
        return None
    return _Span(int(array.min()), int(array.max()))


def _apply(eqn: Any, values: list) -> Any:
    """The span of an operation's first output; None where it is not known."""
    name = eqn.primitive.name
    if name == "concatenate":
        # Only index columns that are set side by side are kept apart.
        widths = [x.aval.shape[eqn.params["dimension"]] for x in eqn.invars]
        if any(w != 1 for w in widths) or any(isinstance(v, _Parts) for v in values):
            return None
        return _Parts(tuple(values))
    spans = [v for v in values if isinstance(v, _Span)]
    if name in _SAME:
        return values[0]
    if not spans or len(spans) < len(values):
        return None
    column = next((s.column for s in spans if s.column is not None), None)
    a, b = spans[0], spans[-1]
    if name == "add":
        return _Span(a.lo + b.lo, a.hi + b.hi, column)
    if name == "sub":
        return _Span(a.lo - b.hi, a.hi - b.lo, column)
    if name == "lt":
        return _Span(int(a.hi < b.lo), int(a.lo < b.hi))
    if name == "select_n" and len(values) == 3:
        return _chosen(*spans)
    return None


def _chosen(test: _Span, plain: _Span, wrapped: _Span) -> _Span | None:
    """``where(i < 0, i + n, i)``: the index as it is where it is not negative."""
    if test.lo == test.hi:
        return wrapped if test.lo else plain
    if plain.lo < 0 <= plain.hi and plain.column == wrapped.column:
        return replace(plain, lo=min(0, wrapped.lo))
    return None


def _beyond(eqn: Any, index: Any) -> Iterator[tuple[_Span, int]]:
    """Components of a gather's index that leave the axis they index."""
    axes = eqn.params["dimension_numbers"].start_index_map
    parts = index.parts if isinstance(index, _Parts) else (index,)
    if len(parts) != len(axes):
        return
    shape, slices = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    for axis, part in zip(axes, parts, strict=True):
        size = shape[axis]
        if part is None or part.column is None or slices[axis] != 1:
            continue
        if part.hi >= size or part.lo < 0:
            yield part, size
