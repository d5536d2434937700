r"""Broyden's method for the root of a field that is almost a gradient: one evaluation a step.

The hybrid's hyperparameters are where its energy's derivative at frozen sites vanishes. That field
has no potential (the sites move with the hyperparameters), so no line search on a value can find
its root. It differs little from the gradient of EP's energy, whose search came before and left an
inverse Hessian ``H0``. From there

    p = -H g,    s = x+ - x,   y = g+ - g,    H <- H + (s - H y) s'H / (s'H y)

(Broyden's "good" update of the inverse, Nocedal and Wright 2006, section 11.1), kept as ``H0`` and
pairs of vectors. A trial is taken when ``g'H0 g`` falls; otherwise the next step is half as long,
with what the refused trial taught. Half of ``g'H0 g`` is what is left to gain, in nats, as it would
be for a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.inference.gaussian._quasi_newton import direction_of
from probkit.inference.gaussian._search import MAX_MOVE, Search

_MEMORY = 12
_LEAST = 0.05  # of s's: an update that divides by less is left out


class Root(NamedTuple):
    """Pairs with ``H = H0 + sum_i left_i right_i'``, how many there are, and ``g'H0 g``."""

    left: Array
    right: Array
    pairs: Array
    merit: Array


def begin_root(d: int, dtype: Any) -> Root:
    """No pairs yet."""
    none: Any = np.zeros((_MEMORY, d), dtype)
    count: Any = np.zeros((), np.int32)
    merit: Any = np.full((), np.inf, dtype)
    return Root(none, none, count, merit)


def follow(at: Search, root: Root, value: Array, slope: Array) -> tuple[Search, Root, Array]:
    """Judge the trial, whose value and field these are; also returns whether it was taken."""

    def first(g: Array) -> Array:
        return -direction_of(g, at.memory)

    fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    slope = jnp.where(fine, slope, 0.0)
    beginning = ~jnp.isfinite(root.merit)
    merit = jnp.sum(slope * first(slope))
    taken = fine & (beginning | (merit < 0.999 * root.merit))
    learnt = _updated(at, root, slope, first, fine & ~beginning)
    x, g = jnp.where(taken, at.trial, at.x), jnp.where(taken, slope, at.slope)
    merit = jnp.where(taken, merit, root.merit)
    direction = -(first(g) + _through(learnt.left, learnt.right, g))
    largest = jnp.max(jnp.abs(direction), initial=0.0)
    whole = jnp.minimum(1.0, MAX_MOVE / jnp.maximum(largest, 1e-30))
    length = jnp.where(taken, whole, 0.5 * jnp.minimum(at.length, whole))
    new = at._replace(
        x=x,
        value=jnp.where(taken, value, at.value),
        slope=g,
        trial=x + length * direction,
        direction=direction,
        length=length,
        gain=0.5 * merit,
        looks=at.looks + 1,
        refused=jnp.where(taken, 0, at.refused + 1).astype(jnp.int32),
    )
    return new, learnt._replace(merit=merit), taken


def _updated(
    at: Search, root: Root, slope: Array, first: Callable[[Array], Array], use: Array
) -> Root:
    """The pairs with that of this trial, if it says something."""
    # When the memory is full it begins anew: a pair means nothing without those before it.
    full = root.pairs == _MEMORY
    left, right = (jnp.where(full, 0.0, a) for a in (root.left, root.right))
    count = jnp.where(full, 0, root.pairs)
    s, y = at.trial - at.x, slope - at.slope
    hy = first(y) + _through(left, right, y)
    hs = first(s) + _through(right, left, s)
    scale = jnp.sum(hs * y)
    good = use & (jnp.abs(scale) > _LEAST * jnp.sum(s * s)) & jnp.any(s != 0.0)
    row = (s - hy) / jnp.where(good, scale, 1.0)
    here = (jnp.arange(_MEMORY) == count)[:, None] & good
    left, right = jnp.where(here, row, left), jnp.where(here, hs, right)
    return Root(left, right, (count + good).astype(jnp.int32), root.merit)


def _through(left: Array, right: Array, g: Array) -> Array:
    """``sum_i left_i right_i'g``."""
    return jnp.sum(left * jnp.sum(right * g, axis=1)[:, None], axis=0)


def handed_over(at: Search) -> Search:
    """The same point to be looked at afresh by another engine, with the inverse Hessian kept."""
    zero = jnp.zeros_like(at.slope)
    return at._replace(
        value=jnp.full_like(at.value, jnp.finfo(at.value.dtype).max),
        slope=zero,
        trial=at.x,
        direction=zero,
        length=jnp.zeros_like(at.length),
        gain=jnp.full_like(at.gain, jnp.inf),
        refused=jnp.zeros_like(at.refused),
    )


def chosen(which: Array, a: Any, b: Any) -> Any:
    """``a`` where ``which``, else ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(which, x, y), a, b)
