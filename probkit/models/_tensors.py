"""Log factors over discrete variables: tensors with an axis a variable, then an axis a dim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram


@dataclass(frozen=True, eq=False)
class Tensor:
    """Log factor: one leading axis for each of ``variables``, then one for each of ``dims``."""

    variables: tuple[str, ...]
    dims: tuple[str, ...]
    value: Array


def at_codes(
    program: GraphProgram, variables: Sequence[str], fn: Callable[[tuple], Array], lead: int = 0
) -> Array:
    """``fn(codes)`` for all combinations of codes: an axis a variable, after ``lead`` axes."""
    mapped = fn
    for i in reversed(range(len(variables))):
        mapped = _vmap_code(mapped, i, lead)
    return mapped(tuple(jnp.arange(program.facts[v].support_size) for v in variables))


def _vmap_code(fn: Callable, i: int, lead: int) -> Callable:
    def mapped(codes: tuple) -> Array:
        def one(code: Array) -> Array:
            return fn((*codes[:i], code, *codes[i + 1 :]))

        return jax.vmap(one, out_axes=lead)(codes[i])

    return mapped


def product(
    tensors: Sequence[Tensor], dims: tuple[str, ...], variable: str, program: GraphProgram
) -> Tensor:
    """Factors multiplied (log terms added) after summing over their dims outside ``dims``."""
    variables = tuple(dict.fromkeys(v for t in tensors for v in t.variables))
    for other in variables:
        if not set(program.facts[other].dims) <= set(dims):
            raise ValueError(
                f"site {variable!r}: it is discrete with dims {dims}, and shares a factor with "
                f"the discrete {other!r} of dims {program.facts[other].dims}; neither set of dims "
                "holds the other, so they cannot be summed out: make one depend on a dim of the "
                "other"
            )
    total: Any = jnp.zeros(())
    for t in tensors:
        lead = len(t.variables)
        gone = tuple(lead + i for i, d in enumerate(t.dims) if d not in dims)
        kept = tuple(d for d in t.dims if d in dims)
        value = jnp.sum(t.value, axis=gone) if gone else t.value
        value = aligned(Tensor(t.variables, kept, value), dims)
        total = total + spread(value, t.variables, variables)
    sizes = [program.facts[v].support_size for v in variables]
    shape = (*sizes, *(program.sizes[d] for d in dims))
    return Tensor(variables, dims, jnp.broadcast_to(total, shape))


def aligned(t: Tensor, dims: tuple[str, ...]) -> Array:
    """The factor's value with an axis for each of ``dims``, in that order (1 where it has none)."""
    lead = len(t.variables)
    order = [lead + t.dims.index(d) for d in dims if d in t.dims]
    value = jnp.transpose(t.value, [*range(lead), *order])
    shape = list(value.shape[:lead])
    sizes = iter(value.shape[lead:])
    shape += [next(sizes) if d in t.dims else 1 for d in dims]
    return value.reshape(shape)


def spread(value: Array, have: Sequence[str], want: Sequence[str]) -> Array:
    """The value with one leading axis for each of ``want``, in that order (1 where it has none)."""
    lead = len(have)
    order = [have.index(v) for v in want if v in have]
    value = jnp.transpose(value, [*order, *range(lead, value.ndim)])
    sizes = iter(value.shape[:lead])
    shape = [next(sizes) if v in have else 1 for v in want]
    return value.reshape((*shape, *value.shape[lead:]))


def pick(
    value: Array,
    keep: int,
    variables: Sequence[str],
    dims: tuple[str, ...],
    chosen: Mapping[str, Array],
    program: GraphProgram,
) -> Array:
    """Variables put in: axes ``keep``, the variables (taken at ``chosen``), then ``dims``."""
    for v in variables:
        own = program.facts[v].dims
        codes = jnp.transpose(chosen[v], [own.index(d) for d in dims if d in own])
        shape = [program.sizes[d] if d in own else 1 for d in dims]
        depth = value.ndim - keep - 1 - len(dims)
        index = codes.reshape((*(1,) * (keep + 1 + depth), *shape))
        full = (*value.shape[:keep], 1, *value.shape[keep + 1 :])
        found = jnp.take_along_axis(value, jnp.broadcast_to(index, full), axis=keep)
        value = jnp.squeeze(found, axis=keep)
    return value
