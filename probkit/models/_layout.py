"""Dims as NumPyro plates: one fixed position each, counted from the right.

A site's natural batch axes are in the order of its own dims. As a NumPyro site it has one axis for
each plate position, of length one where it lacks the plate; further to the left may stand the axes
of enumerated discrete variables. Two dims that never meet in one site may share a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


@dataclass(frozen=True)
class Layout:
    """``positions[dim]`` is negative; ``depth`` is how many positions there are."""

    positions: Mapping[str, int]
    sizes: Mapping[str, int]
    depth: int

    @staticmethod
    def of(sites: Sequence[tuple[str, ...]], sizes: Mapping[str, int]) -> Layout:
        """Positions such that no two dims of one site share theirs, few and kept in order.

        Dims are placed one by one, each as far right as those before it allow; the last dims of
        sites come first, so that sites whose dims are in the same order need no transposition.
        """
        last_first = sorted(
            {d for dims in sites for d in dims},
            key=lambda d: (max(len(dims) - dims.index(d) for dims in sites if d in dims), d),
        )
        positions: dict[str, int] = {}
        for dim in last_first:
            met = {k for dims in sites if dim in dims for k in dims}
            taken = {positions[k] for k in met if k in positions}
            place = -1
            while place in taken:
                place -= 1
            positions[dim] = place
        depth = -min(positions.values(), default=0)
        return Layout(positions, {d: sizes[d] for d in positions}, depth)

    def shape(self, dims: Sequence[str]) -> tuple[int, ...]:
        """The plates' part of the shape of a site with these dims."""
        out = [1] * self.depth
        for dim in dims:
            out[self.positions[dim]] = self.sizes[dim]
        return tuple(out)

    def place(self, value: Array, dims: Sequence[str], event: int) -> Array:
        """From ``(lead..., natural batch, event)`` to ``(lead..., plates, event)``."""
        batch = len(dims)
        lead = value.ndim - batch - event
        order = sorted(range(batch), key=lambda i: self.positions[dims[i]])
        axes = [*range(lead), *(lead + i for i in order), *range(lead + batch, value.ndim)]
        moved = jnp.transpose(value, axes)
        tail = value.shape[lead + batch :]
        return moved.reshape((*value.shape[:lead], *self.shape(dims), *tail))

    def natural(self, value: Array, dims: Sequence[str], event: int) -> tuple[Array, int]:
        """The inverse of `place`, and how many leading axes there are.

        Axes of length one stand for whole plates (all elements of an enumerated variable at one
        value) and are spread out.
        """
        missing = self.depth + event - value.ndim
        if missing > 0:
            value = value.reshape((*(1,) * missing, *value.shape))
        lead = value.ndim - self.depth - event
        tail = value.shape[lead + self.depth :]
        full = jnp.broadcast_to(value, (*value.shape[:lead], *self.shape(dims), *tail))
        order = sorted(range(len(dims)), key=lambda i: self.positions[dims[i]])
        sizes = [self.sizes[dims[i]] for i in order]
        squeezed = full.reshape((*value.shape[:lead], *sizes, *tail))
        back = [lead + order.index(i) for i in range(len(dims))]
        axes = [*range(lead), *back, *range(lead + len(dims), squeezed.ndim)]
        return jnp.transpose(squeezed, axes), lead


def over_lead(fn: Callable[..., Any], values: Sequence[Array], leads: Sequence[int]) -> Any:
    """``fn`` of arrays without their leading axes, mapped over these (aligned at their right)."""
    depth = max(leads, default=0)
    padded = [
        v.reshape((*(1,) * (depth - lead), *v.shape)) for v, lead in zip(values, leads, strict=True)
    ]
    return _over(fn, padded, depth)


def _over(fn: Callable[..., Any], values: list[Array], depth: int) -> Any:
    if depth == 0:
        return fn(*values)
    mapped = [v.shape[0] > 1 for v in values]
    args = [v if m else v[0] for v, m in zip(values, mapped, strict=True)]

    def inner(*rest: Array) -> Any:
        return _over(fn, list(rest), depth - 1)

    if not any(mapped):
        return jax.tree.map(lambda x: jnp.asarray(x)[None], inner(*args))
    return jax.vmap(inner, in_axes=[0 if m else None for m in mapped])(*args)


def lead_shape(values: Sequence[Array], leads: Sequence[int]) -> tuple[int, ...]:
    """The leading axes that `over_lead` maps over."""
    return tuple(
        np.broadcast_shapes(*(v.shape[:lead] for v, lead in zip(values, leads, strict=True)))
    )
