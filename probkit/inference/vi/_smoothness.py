r"""Are the gradients the density's own? A check that needs no more than values and gradients.

On a line from a to b a differentiable function obeys ``f(b) - f(a) = int_0^1 grad f . (b - a) dt``.
A factor that rounds, sorts, compares or detaches its arguments changes in value with a gradient of
zero, and variational inference (like every method that follows gradients) does not see it. The
integral is taken by Simpson's rule between draws of the approximation, site by site, so that the
site to blame has a name. 8 lines of 65 points; one compiled program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Check, Target, Weights, listing
from probkit.core._programs import compiled
from probkit.core._trees import in_precision

_LINES, _POINTS, _LIMIT = 8, 65, 0.1
_ADVICE = (
    "its value changes where its gradient says that it does not (rounding, comparisons, "
    "stop_gradient): make the factor smooth, or use a method without gradients"
)


def smoothness(
    target: Target, approximation: Approximation, key: np.ndarray, weights: Weights
) -> list[Check]:
    """The entry ``gradients`` of the verdict: how far differences are from integrated gradients."""
    rows = np.asarray(weights.points[: 2 * _LINES], target.dtype)
    first, last = rows[:_LINES], rows[_LINES:]
    with in_precision(target.dtype):
        args = (first, last, target.arrays)
        program = target.program
        gaps = compiled(program, "smoothness", None, _along(program), args)(*args)
        found = {k: np.asarray(v, float) for k, v in gaps.items()}
    # Most lines must disagree: one may pass near a kink or a pole.
    worst = {k: float(np.median(v)) for k, v in found.items() if np.all(np.isfinite(v))}
    if not worst:
        return []
    bad = [k for k, v in worst.items() if v > _LIMIT]
    value = max(worst.values())
    where = f"log density of {listing(bad)}" if bad else ""
    return [Check("gradients", not bad, value, _LIMIT, where, _ADVICE if bad else "")]


def _along(program: Any) -> Any:
    """Relative gaps by site, shape ``(lines,)``, of lines between two sets of points."""

    def lines(first: Array, last: Array, arrays: dict) -> dict[str, Array]:
        target = Target(program, arrays)

        def terms(x: Array) -> dict[str, Array]:
            found = target.terms(program.flat.unravel(x))
            return {k: jnp.sum(v) for k, v in {**found.prior, **found.likelihood}.items()}

        def one(a: Array, b: Array) -> dict[str, Array]:
            t = jnp.linspace(0.0, 1.0, _POINTS, dtype=a.dtype)
            look = lambda s: jax.jvp(terms, (a + s * (b - a),), (b - a,))  # noqa: E731
            values, slopes = jax.vmap(look)(t)
            weight = np.full(_POINTS, 2.0)
            weight[1::2], weight[[0, -1]] = 4.0, 1.0
            rule = jnp.asarray(weight / (3.0 * (_POINTS - 1)), a.dtype)
            return jax.tree.map(lambda f, g: _gap(f, jnp.dot(rule, g)), values, slopes)

        return jax.vmap(one)(first, last)

    return lines


def _gap(values: Array, integral: Array) -> Array:
    """Difference against integral, relative to how much the function moves (at least a nat)."""
    moved = jnp.max(values) - jnp.min(values)
    return jnp.abs(values[-1] - values[0] - integral) / jnp.maximum(moved, 1.0)
