"""Scatters as loops: what the one-kernel compiler lacks (see `probkit.core._one_kernel`).

The gradient of ``a[index]`` is a scatter, so every model with groups has one. As a loop over the
rows that reads, adds and writes one window each, it can stand inside a kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun
from jaxtyping import Array

_COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "scatter": lambda old, new: new,
    "scatter-add": lambda old, new: old + new,
    "scatter_add": lambda old, new: old + new,
}


def with_scatters_as_loops(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, its scatters (set and add, without batching dims) replaced by loops."""
    if not _has_scatter(closed.jaxpr):
        return closed
    return jax.make_jaxpr(lambda *args: _evaluate(closed, args))(*closed.in_avals)


def _has_scatter(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name in _COMBINE or any(map(_has_scatter, _inner(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def _evaluate(closed: ClosedJaxpr, args: tuple) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(x) for x in eqn.invars]
        values.update(zip(eqn.outvars, _apply(jaxpr, eqn, operands), strict=True))
    return [read(x) for x in jaxpr.outvars]


def _apply(jaxpr: Jaxpr, eqn: Any, operands: list[Any]) -> list[Any]:
    if eqn.primitive.name in _COMBINE and _is_plain(eqn):
        operand, indices, updates = operands
        return [_loop(eqn.primitive.name, operand, indices, updates, eqn.params)]
    params = {k: _rewritten(v) for k, v in eqn.params.items()}
    # A program of this one operation: how operations are bound differs among versions of JAX.
    given = {x: v for x, v in zip(eqn.invars, operands, strict=True) if isinstance(x, Var)}
    alone = jaxpr.replace(
        constvars=(),
        invars=list(given),
        outvars=eqn.outvars,
        eqns=[eqn.replace(params=params)],
        effects=eqn.effects,
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())


def _rewritten(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr):
        return with_scatters_as_loops(value)
    if isinstance(value, Jaxpr):
        # A bare program has nowhere to keep constants: with any, it is left as it is.
        if value.constvars:
            return value
        found = with_scatters_as_loops(ClosedJaxpr(value, ())).jaxpr
        return value if found.constvars else found
    if isinstance(value, (tuple, list)) and any(isinstance(x, ClosedJaxpr) for x in value):
        return type(value)(_rewritten(x) for x in value)
    return value


def _is_plain(eqn: Any) -> bool:
    """Whether `_loop` does what the equation says; others are left for XLA to refuse."""
    numbers, update = eqn.params["dimension_numbers"], eqn.params.get("update_jaxpr")
    if numbers.operand_batching_dims or numbers.scatter_indices_batching_dims:
        return False
    if eqn.primitive.name != "scatter" or update is None:
        return True
    # `x.at[i].apply(f)` is the same operation with another rule of update than "take the new one".
    return not update.eqns and list(update.outvars) == [update.invars[1]]


def _loop(name: str, operand: Any, indices: Any, updates: Any, params: dict[str, Any]) -> Array:
    numbers, mode = params["dimension_numbers"], params["mode"]
    windowed = list(numbers.update_window_dims)
    over = [d for d in range(updates.ndim) if d not in windowed]
    rows = 1
    for d in over:
        rows *= updates.shape[d]
    inner = iter([updates.shape[d] for d in windowed])
    window = [1 if d in numbers.inserted_window_dims else next(inner) for d in range(operand.ndim)]
    updates = jnp.transpose(updates, [*over, *windowed]).reshape(rows, *window)
    where = indices.reshape(rows, -1).astype(jnp.int32)
    places = list(numbers.scatter_dims_to_operand_dims)
    last = [operand.shape[d] - window[d] for d in places]
    drops = mode == jax.lax.GatherScatterMode.FILL_OR_DROP

    def one(i: Array, out: Array) -> Array:
        at = where[i]
        start = [jnp.int32(0)] * operand.ndim
        for k, d in enumerate(places):
            start[d] = at[k]
        old = jax.lax.dynamic_slice(out, start, window)
        new = _COMBINE[name](old, updates[i])
        if drops:
            inside = [(at[k] >= 0) & (at[k] <= end) for k, end in enumerate(last)]
            new = jnp.where(functools.reduce(jnp.logical_and, inside), new, old)
        return jax.lax.dynamic_update_slice(out, new, start)

    return jax.lax.fori_loop(0, rows, one, operand)
