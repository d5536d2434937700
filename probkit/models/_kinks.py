r"""Whether the terms of a Gaussian vector have kinks, found when data are bound.

Engines integrate smooth terms by a quick rule, and look for kinks where there are any. A jump of
the slope ``l'`` or of the curvature ``l''`` cannot be seen at a point, since derivatives are
right almost everywhere; it is seen as a rise of the slope that the curvature does not explain,

    d = l'(b) - l'(a) - (b - a) (l''(a) + l''(b)) / 2,

of first order in ``b - a`` (or larger) at a kink, else of third. So the line is cut into cells
whose widths grow with the distance from zero, ``f = e sinh(u)``, since neither the units of ``f``
nor where the kinks are is known. Each cell is halved towards the larger ``d`` until next to
nothing is left of its width: a jump that is still there is a kink. It counts if it is no smaller
than a thousandth of what was seen in the cell, and a millionth of what was seen nearer to zero:
tails of smooth densities that are differences of numbers next to one have steps of rounding. Nor
does it count where the term is e^-35 of its largest value, where many densities are clipped: no
posterior goes there. Large data are looked at in part: each row has some of the cells, others
than its neighbours have. Cost: one small compilation and at most some 1e6 evaluations of a term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core._programs import BRIEF, compiled

if TYPE_CHECKING:
    from probkit.models._gp_latent import GraphLatent

#: The cells: the unit near zero, how far they go, and how many; rows that have all of them.
_UNIT, _FARTHEST, _CELLS, _ROWS = 1e-2, 1e6, 192, 96
#: How often a cell is halved, and the width that is next to nothing, in units of the distance.
_HALVINGS, _NARROW = 34, 1e-10
#: Jumps that count, as shares of the largest values in the cell, and nearer to zero.
_LOCAL, _WIDE = 1e-3, 1e-6
_DEEP = 35.0  # nats below the top


class _Cells(NamedTuple):
    """Ends ``(cells, n)``, slopes and curvatures there ``(cells, 2, n)``, and the largest seen."""

    low: Array
    high: Array
    a: Array
    b: Array
    most: Array


def kink_mark(latent: GraphLatent, arrays: dict, theta: np.ndarray) -> dict[str, np.ndarray]:
    """The mark ``"kinked"`` for arrays of a Target whose terms have kinks, else nothing.

    As long as entries have observations at the most, rounded up to a power of two.
    """
    # (Shifted a little: some densities have another slope at zero itself.)
    u = np.linspace(-1, 1, _CELLS + 1) * np.arcsinh(_FARTHEST / _UNIT) + 0.01
    edges = _UNIT * np.sinh(u)
    owners = np.concatenate(list(arrays["latent"]["owner"].values()))
    # All cells are somebody's, however few rows there are.
    every = min(-(-max(latent.size, len(owners)) // _ROWS), latent.size)
    mine = (np.arange(_CELLS)[::every, None] + np.arange(latent.size)) % _CELLS
    low, high = (e.astype(latent.program.dtype) for e in (edges[mine], edges[mine + 1]))

    def fn(arrays: dict, theta: Array, low: Array, high: Array) -> Array:
        return _look(lambda f: latent.log_likelihood(theta, f, arrays), low, high)

    args = (arrays, theta, low, high)
    program = compiled(latent.program, "kinks", latent.name, fn, args, options=BRIEF)
    if not bool(program(*args)):
        return {}
    most = int(np.max(np.bincount(owners)))
    return {"kinked": np.zeros(1 << (most - 1).bit_length(), np.int8)}


def _look(fn: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Whether a pointwise function has kinks in some cells ``(cells, n)`` of its entries."""
    one = jnp.ones_like(low[0])

    def slope(f: Array) -> Array:
        return jax.jvp(fn, (f,), (one,))[1]

    look = jax.vmap(lambda f: jnp.stack(jax.jvp(slope, (f,), (one,))))  # along cells

    def unexplained(width: Array, a: Array, b: Array) -> Array:
        gap = jnp.abs(b[:, 0] - a[:, 0] - 0.5 * width * (a[:, 1] + b[:, 1]))
        return jnp.where(jnp.isfinite(gap), gap, -1.0)

    def halve(_: Any, c: _Cells) -> _Cells:
        middle = 0.5 * (c.low + c.high)
        m = look(middle)
        gaps = unexplained(middle - c.low, c.a, m), unexplained(c.high - middle, m, c.b)
        wide = c.high - c.low > _NARROW * (jnp.abs(middle) + _UNIT)
        left, right = wide & (gaps[0] >= gaps[1]), wide & (gaps[0] < gaps[1])
        return _Cells(
            jnp.where(right, middle, c.low),
            jnp.where(left, middle, c.high),
            jnp.where(right[:, None], m, c.a),
            jnp.where(left[:, None], m, c.b),
            jnp.maximum(c.most, _finite(m)),
        )

    a, b = look(low), look(high)
    seen = jnp.maximum(_finite(a), _finite(b))
    # The largest values of cells of the same row no further from zero than the cell.
    far = jnp.maximum(jnp.abs(low), jnp.abs(high))
    order = jnp.argsort(far, axis=0)
    risen = jax.lax.cummax(jnp.take_along_axis(seen, order[:, None], axis=0), axis=0)
    inner = jnp.take_along_axis(risen, jnp.argsort(order, axis=0)[:, None], axis=0)
    end: Any = jax.lax.fori_loop(0, _HALVINGS, halve, _Cells(low, high, a, b, seen))
    jump = jnp.abs(end.a - end.b)
    counts = jump > _LOCAL * end.most + _WIDE * inner + jnp.finfo(low.dtype).tiny
    heights = jax.vmap(fn)(jnp.concatenate([low, end.low]))
    top = jnp.max(jnp.where(jnp.isfinite(heights), heights, -jnp.inf), axis=0)
    return jnp.any(counts & (heights[len(low) :] > top - _DEEP)[:, None])


def _finite(x: Array) -> Array:
    """Absolute values, zero where they are not finite."""
    return jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0)
