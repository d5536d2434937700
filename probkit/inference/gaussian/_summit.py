r"""The top of a log density with its curvature: where and how wide a sampler's start should be.

The top is searched for by L-BFGS from the best of several candidates; there the Hessian ``-A`` is
taken by central differences of the gradient, 2 d of them. With ``A = V diag(a) V'``,

    z = centre + scale u,     scale = V diag(a^-1/2) V',

is a standard normal in ``u`` where the density is normal. Curvatures are kept within bounds, since
a direction that the data say nothing about has next to none. All of it is one loop around one
evaluation of the gradient, for what is compiled counts.

`curved` gives a function whose gradient comes from constants (frozen sites) a second derivative, by
differences too: automatic differentiation would take those constants at their word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._search import Search, advance, begin

_STEP = 1e-3  # of the differences; hyperparameters are logs
_GAIN, _REFUSED, _LOOKS = 1e-2, 12, 120
_FLATTEST, _STEEPEST = 0.1, 1e8  # the first is a standard deviation of three


class Summit(NamedTuple):
    """The affine map ``u -> centre + scale u``: ``(d,)``, ``(d, d)``, and ``log |det scale|``."""

    centre: Array
    scale: Array
    log_scale: Array

    def out(self, u: Array) -> Array:
        """Points ``(..., d)`` in the coordinates outside."""
        return self.centre + u @ self.scale.T


def plain(d: int, dtype: Any) -> Summit:
    """The identity."""
    return Summit(jnp.zeros(d, dtype), jnp.eye(d, dtype=dtype), jnp.zeros((), dtype))


def summit(fn: Callable[[Array], Array], candidates: Array) -> Summit:
    """That of a log density ``fn``, searched for from the best of ``candidates``, ``(count, d)``.

    The identity where nothing finite is found.
    """
    return _climbed(fn, candidates)[0]


def highest_of(fn: Callable[[Array], Array], sets: Array) -> Summit:
    """The highest of several `summit`s, one for each of ``sets``, ``(searches, count, d)``."""
    found, depths = jax.lax.map(lambda candidates: _climbed(fn, candidates), sets)
    best = jnp.argmin(depths)
    return jax.tree.map(lambda x: x[best], found)


def _climbed(fn: Callable[[Array], Array], candidates: Array) -> tuple[Summit, Array]:
    """A summit, and how deep below zero it lies (infinite where nothing finite is found)."""
    d, dtype = candidates.shape[1], candidates.dtype
    both = jax.value_and_grad(lambda z: -fn(z))

    def hunting(at: Search) -> Array:
        searching = at.looks >= candidates.shape[0]
        there = (at.gain < _GAIN) | (at.refused >= _REFUSED) | ~jnp.isfinite(at.value)
        return ~(searching & there) & (at.looks < _LOOKS)

    def body(carry: tuple[Search, Array, Array]) -> tuple[Search, Array, Array]:
        at, count, rows = carry
        climbing = hunting(at)
        # Row 2 k is the gradient a step ahead along coordinate k, row 2 k + 1 a step behind.
        aside = jnp.where(jnp.arange(d) == count // 2, _STEP, 0.0) * jnp.where(count % 2, -1.0, 1.0)
        value, slope = both(jnp.where(climbing, at.trial, at.x + aside.astype(dtype)))
        further, _ = advance(at, value, slope, candidates)
        at = jax.tree.map(lambda a, b: jnp.where(climbing, a, b), further, at)
        rows = jnp.where(climbing, rows, rows.at[count].set(slope))
        return at, count + jnp.where(climbing, 0, 1), rows

    first = (begin(candidates), jnp.int32(0), jnp.zeros((2 * d, d), dtype))
    at, _, rows = jax.lax.while_loop(lambda c: c[1] < 2 * d, body, first)
    bend = (rows[::2] - rows[1::2]) / (2.0 * _STEP)
    curvature, along = jnp.linalg.eigh(0.5 * (bend + bend.T))
    width = jnp.clip(curvature, _FLATTEST, _STEEPEST) ** -0.5
    found = Summit(at.x, (along * width) @ along.T, jnp.sum(jnp.log(width)))
    fine = jnp.all(jnp.isfinite(found.centre)) & jnp.all(jnp.isfinite(found.scale))
    fine &= jnp.isfinite(at.value)
    whole = jax.tree.map(lambda a, b: jnp.where(fine, a, b), found, plain(d, dtype))
    return whole, jnp.where(fine, at.value, jnp.inf)


def curved(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """``fn`` of a vector, with the derivative of its gradient by central differences.

    Forward over reverse only, as `jax.hessian` goes: two gradients a direction.
    """
    both = jax.value_and_grad(fn)

    @jax.custom_jvp
    def looked(z: Array) -> tuple[Array, Array]:
        return both(z)

    @looked.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        (z,), (v,) = primals, tangents
        value, slope = both(z)
        length = jnp.linalg.norm(v)
        step = _STEP / jnp.where(length > 0, length, 1.0)
        turn = (both(z + step * v)[1] - both(z - step * v)[1]) / (2.0 * step)
        return (value, slope), (jnp.dot(slope, v), turn)

    @jax.custom_jvp
    def valued(z: Array) -> Array:
        return fn(z)

    @valued.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        value, slope = looked(primals[0])
        return value, jnp.dot(slope, tangents[0])

    return valued
