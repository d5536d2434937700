r"""The automatic stop: nobody chooses a learning rate or a number of steps.

Steps are taken in windows. At the end of a window the mean of the parameters over its second half
is compared with the best fit so far (at first: the start) by paired draws, and

    gain > max(tolerance, its error)   go on with the same step size
    otherwise                          a quiet window: step size x 0.4, windows x 1.5
    gain < -tolerance                  back to the best fit; counts as half a quiet window

A count of two ends the fit, whether or not the two follow each other: where noise makes every
other window gain a little, waiting for two in a row takes thousands of steps for a thousandth of a
nat. It also ends where nothing is left to gain: half the
variance of ``log p - log q`` (where small, the KL divergence from the target) is below the
tolerance. The best fit is what is returned, so that no step can spoil it: noise in the steps of an
optimiser drives it off even an exact start.

The idea of stopping by the averaged iterates' change in the objective, with step sizes reduced in
stages, is that of Welandawe, Andersen, Vehtari and Huggins (2022); the comparison of averages with
the best fit, and growing windows, are departures: windows of a fixed length stop slow fits early.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from probkit.core import Target
from probkit.inference.vi._engine import Recipe, compare

_REDUCE, _GROW, _BACK = 0.4, 1.5, 0.5
#: Consecutive steps without a finite gradient after which a fit is given up.
MOST_BAD = 25


def judge(
    recipe: Recipe,
    key: Array,
    target: Target,
    state: dict[str, Any],
    numbers: dict[str, Array],
    pairs: int,
) -> dict[str, Any]:
    """The state after a block, with a window's end judged if it is there."""
    inside = state["inside"] + 1
    ends = (inside >= state["window"]) & ~state["done"] & numbers["settled"]
    unravel = ravel_pytree(state["best"])[1]
    mean = unravel(state["sum"] / jnp.maximum(state["terms"], 1.0))

    def look(carry: tuple) -> tuple:
        args = (target, state["frame"], mean, state["best"], numbers["alpha"])
        # A body that does not depend on the loop's count would be moved out of the loop, and be
        # done after every block.
        return carry[0] + 1, compare(recipe, jax.random.fold_in(key, carry[0]), *args, pairs)

    like = jax.eval_shape(lambda: look((jnp.int32(0), None))[1])
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    # A loop of no or one iteration; see the module text of `_engine`.
    trips = ends.astype(jnp.int32)
    _, seen = jax.lax.while_loop(lambda c: c[0] < trips, look, (jnp.int32(0), blank))
    return _decide(state, {**seen, "ends": ends, "inside": inside}, mean, numbers)


def _decide(
    state: dict[str, Any], seen: dict[str, Any], mean: Any, numbers: dict[str, Array]
) -> dict[str, Any]:
    ends, gain, tolerance = seen["ends"], seen["gain"], numbers["tolerance"]
    climbing = gain > jnp.maximum(tolerance, seen["gain_se"])
    better, worse = ends & (gain > 0), ends & (gain < -tolerance)
    pick = lambda yes, a, b: jax.tree.map(lambda x, y: jnp.where(yes, x, y), a, b)  # noqa: E731
    best = pick(better, mean, state["best"])
    figures = pick(better, seen["new"], seen["old"])
    more = jnp.where(gain < -tolerance, _BACK, 1.0)
    quiet = jnp.where(climbing, state["quiet"], state["quiet"] + more)
    grown = jnp.ceil(state["window"] * _GROW).astype(state["window"].dtype)
    out = {
        "best": best,
        "params": jnp.where(worse, ravel_pytree(best)[0], state["params"]),
        "m": jnp.where(worse, 0.0, state["m"]),
        "quiet": jnp.where(ends, quiet, state["quiet"]),
        "rate": jnp.where(ends & ~climbing, _REDUCE * state["rate"], state["rate"]),
        "window": jnp.where(ends & ~climbing, grown, state["window"]),
        "inside": jnp.where(ends, 0, seen["inside"]),
        "gain": jnp.where(ends, gain, state["gain"]),
        "figures": pick(ends, figures, state["figures"]),
    }
    over = (out["quiet"] >= 2.0) | (out["figures"]["half_variance"] < tolerance)
    lost = state["bad"] >= MOST_BAD
    # Starts that are done take no steps and end no windows while others go on.
    return {**state, **out, "done": state["done"] | over | lost}
