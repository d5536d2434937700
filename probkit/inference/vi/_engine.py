r"""The engine's two moves: a block of optimiser steps, and a paired comparison of two fits.

A block is 50 steps of Adam (Kingma and Ba 2015) on the objective's gradient, and the running mean
of the parameters. A comparison pushes the same noise through both fits, so that what both get wrong
cancels in the difference. Both are written for one start and are vectorised over starts: under
that a ``cond`` would do both of its branches, so what is done only now and then is the body of a
loop with no or one iteration.

Cost of a step: ``particles`` gradients of the log density and two passes of the family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from probkit.core import Batch, Target
from probkit.inference.vi._family import Family, Params
from probkit.inference.vi._objectives import bounds, cotangents
from probkit.inference.vi._score import score_gradient

#: Optimiser steps in one step of the driver.
BLOCK = 50

_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8
#: Gradients are cut at so many times their root mean square, after the first steps.
_OUTLIER, _EARLY = 10.0, 20.0
#: Entries of noise that are drawn for a whole block at once, at the most.
_MOST_NOISE = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """The static half of a fit: what changes the compiled program.

    Attributes:
        family: the variational family.
        objective: one of `OBJECTIVES`.
        gradient: one of `GRADIENTS`.
        particles: draws a step.
        group: draws in each importance-weighted bound.
        prox: whether the entropy is left to a proximal step.
    """

    family: Family
    objective: str
    gradient: str
    particles: int
    group: int
    prox: bool


def outward(frame: Params, w: Array) -> Array:
    """The unconstrained point of whitened coordinates."""
    scale = frame["scale"]
    return frame["centre"] + (scale @ w if scale.ndim == 2 else scale * w)


def inward(frame: Params, z: Array) -> Array:
    """Whitened coordinates of an unconstrained point."""
    gap, scale = z - frame["centre"], frame["scale"]
    if scale.ndim == 2:
        return jax.scipy.linalg.solve_triangular(scale, gap, lower=True)
    return gap / scale


def log_volume(frame: Params) -> Array:
    """``log |det dz/dw|``."""
    scale = frame["scale"]
    return jnp.sum(jnp.log(jnp.diag(scale) if scale.ndim == 2 else scale))


def whitened(target: Target, frame: Params, batch: Batch | None = None) -> Callable:
    """The log density as a function of whitened coordinates."""
    shift = log_volume(frame)
    return lambda w: target.flat_log_density(outward(frame, w), batch) + shift


def gradient_of(
    recipe: Recipe, noise: Array, params: Params, log_p: Callable, alpha: Array, heat: Array
) -> tuple[Params, Array, Array]:
    """Gradient of the (negative) objective, its value's estimate, and the draws.

    ``heat`` in (0, 1] multiplies log p (tempering).
    """
    family, n = recipe.family, recipe.particles

    def push(params: Params) -> tuple:
        w, log_q, mass, score = jax.vmap(lambda e: family.push(params, e))(noise)
        return (w, log_q, mass), score

    (w, log_q, mass), back, score = jax.vjp(push, params, has_aux=True)
    value, slope = jax.vmap(jax.value_and_grad(log_p))(w)
    ratio = heat * value - log_q
    a, b, c = cotangents(
        recipe.objective, recipe.gradient, recipe.group, alpha, ratio, heat * slope, score
    )
    b = jnp.zeros_like(b) if recipe.prox else b * mass
    # Strata: the mass of a draw has a gradient of its own; a constant in it costs nothing.
    by_mass = -(ratio - jnp.mean(ratio)) / n
    (grad,) = back((a * mass[:, None], b, by_mass))
    if recipe.objective == "forward_kl":
        fixed = jax.lax.stop_gradient(w)
        over = lambda p: jnp.dot(c, jax.vmap(lambda x: family.log_density(p, x))(fixed))  # noqa: E731
        grad = jax.tree.map(jnp.add, grad, jax.grad(over)(params))
    return grad, jnp.mean(mass * ratio), w


def block(
    recipe: Recipe,
    key: Array,
    target: Target,
    state: dict[str, Any],
    batch: Batch | None,
    numbers: dict[str, Array],
) -> dict[str, Any]:
    """``BLOCK`` steps of Adam. ``numbers``: alpha, first (step number), temper (steps).

    A fit that is done takes none.
    """
    frame = state["frame"]
    rows = None if batch is None else batch.index.reshape(BLOCK, -1)
    size, dtype = frame["centre"].shape[0], frame["centre"].dtype
    unravel = ravel_pytree(state["best"])[1]

    def fresh(i: Array | int) -> Array:
        return recipe.family.noise(jax.random.fold_in(key, i), recipe.particles, size, dtype)

    like = jax.eval_shape(fresh, 0)
    # All of a block's noise at once, where that is little: a generator's runtime is its start.
    at_once = BLOCK * like.size <= _MOST_NOISE
    ready = jax.vmap(fresh)(jnp.arange(BLOCK)) if at_once else None

    def one(i: Array | int, carry: dict[str, Any]) -> dict[str, Any]:
        part = None if batch is None or rows is None else Batch(batch.dim, rows[i])
        log_p = whitened(target, frame, part)
        heat = jnp.minimum(1.0, 0.01 + (numbers["first"] + i) / jnp.maximum(numbers["temper"], 1.0))
        heat = jnp.where(numbers["temper"] > 0, heat, 1.0).astype(dtype)
        noise = fresh(i) if ready is None else ready[i]
        params = unravel(carry["params"])
        if recipe.gradient == "score":
            args = (params, log_p, heat, carry["control"])
            grad, value, w, control = score_gradient(recipe.family, noise, *args)
            return {**_adam(recipe, carry, unravel, grad, value, w), "control": control}
        tree, value, w = gradient_of(recipe, noise, params, log_p, numbers["alpha"], heat)
        return _adam(recipe, carry, unravel, ravel_pytree(tree)[0], value, w)

    kept = ("params", "m", "v", "count", "sum", "terms", "rate", "bad", "lost", "trouble", "value")
    carry = {k: state[k] for k in (*kept, "control") if k in state}
    anew = _restarts(state)
    carry["sum"] = jnp.where(anew, jnp.zeros_like(carry["sum"]), carry["sum"])
    carry["terms"] = jnp.where(anew, 0.0, carry["terms"])
    # The value of a block is the mean over its steps.
    carry["value"] = jnp.where(state["done"], carry["value"], 0.0)
    return {**state, **jax.lax.fori_loop(0, jnp.where(state["done"], 0, BLOCK), one, carry)}


def _restarts(state: dict[str, Any]) -> Array:
    """Whether the mean starts anew: at the first block of the second half of a window."""
    return state["inside"] == state["window"] // 2


def _adam(
    recipe: Recipe,
    carry: dict[str, Any],
    unravel: Callable[[Array], Params],
    grad: Array,
    value: Array,
    w: Array,
) -> dict[str, Any]:
    """One step of all parameters, one vector; left out (and counted) if the gradient is not finite.

    A vector, because a family's parameters are many small arrays, and a CPU's runtime counts
    operations, not entries.
    """
    fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
    count = carry["count"] + jnp.where(fine, 1.0, 0.0)
    safe = jnp.maximum(count, 1.0)
    first, second = 1.0 - _FIRST**safe, 1.0 - _SECOND**safe
    # One outlier in the tails must not set the step size of the next thousand steps.
    limit = jnp.where(count > _EARLY, _OUTLIER, jnp.inf) * (jnp.sqrt(carry["v"] / second) + _TINY)
    grad = jnp.clip(grad, -limit, limit)
    m = jnp.where(fine, _FIRST * carry["m"] + (1 - _FIRST) * grad, carry["m"])
    v = jnp.where(fine, _SECOND * carry["v"] + (1 - _SECOND) * grad * grad, carry["v"])
    step = carry["rate"] / (jnp.sqrt(v / second) + _TINY)
    moved, old = unravel(carry["params"] - step * m / first), unravel(carry["params"])
    moved = ravel_pytree(recipe.family.settle(moved, old, unravel(step), recipe.prox))[0]
    params = jnp.where(fine, moved, carry["params"])
    # The first point of the first bad step: `finish` names its sites.
    trouble = jnp.where(~fine & (carry["lost"] == 0), w[jnp.argmax(_odd(w))], carry["trouble"])
    return {
        "params": params,
        "m": m,
        "v": v,
        "count": count,
        "sum": carry["sum"] + params,
        "terms": carry["terms"] + 1.0,
        "rate": carry["rate"],
        "bad": jnp.where(fine, 0, carry["bad"] + 1),
        "lost": carry["lost"] + jnp.where(fine, 0, 1),
        "trouble": trouble,
        "value": carry["value"] + jnp.where(fine, value, jnp.nan) / BLOCK,
    }


def _odd(w: Array) -> Array:
    return jnp.sum(w**2, axis=1)


def compare(
    recipe: Recipe,
    key: Array,
    target: Target,
    frame: Params,
    new: Params,
    old: Params,
    alpha: Array,
    pairs: int,
) -> dict[str, Any]:
    """How much better ``new`` is than ``old`` by the same noise, and the figures of ``new``.

    Returns:
        ``gain`` with its standard error ``gain_se``, and for ``new`` and ``old`` ``value``, ``se``
        and ``half_variance`` of ``log p - log q``: where that is small it is the KL divergence
        from the target, whatever the family.
    """
    family = recipe.family
    noise = family.noise(key, pairs, frame["centre"].shape[0], frame["centre"].dtype)
    log_p = whitened(target, frame)

    def ratios(params: Params) -> tuple[Array, Array, Array]:
        w, log_q, mass, _ = jax.vmap(lambda e: family.push(params, e))(noise)
        return w, jax.vmap(log_p)(w) - log_q, mass

    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), new, old)
    points, (first, second), (mass, old_mass) = jax.vmap(ratios)(both)
    w = points[1]
    if recipe.objective == "forward_kl":
        # KL(p || q): draws of the old fit, weighted to the target, see both densities.
        log_q = jax.vmap(lambda x: family.log_density(new, x))(w)
        share = jax.nn.softmax(second) * pairs
        gains = share * (log_q + second - jax.vmap(log_p)(w))
        values, others = first, second
    else:
        values = bounds(recipe.objective, recipe.group, alpha, first)
        others = bounds(recipe.objective, recipe.group, alpha, second)
        if recipe.objective == "elbo":
            values, others = mass * values, old_mass * others
        gains = values - others
    gain = jnp.mean(gains)
    root = jnp.sqrt(jnp.asarray(gains.shape[0], gains.dtype))
    return {
        "gain": jnp.where(jnp.isfinite(gain), gain, -jnp.inf),
        "gain_se": jnp.nan_to_num(jnp.std(gains) / root),
        "new": _figures(values, first, mass),
        "old": _figures(others, second, old_mass),
    }


def _figures(values: Array, ratio: Array, mass: Array) -> dict[str, Array]:
    count = jnp.asarray(values.shape[0], values.dtype)
    return {
        "value": jnp.mean(values),
        "se": jnp.std(values) / jnp.sqrt(count),
        "half_variance": 0.5 * jnp.mean(mass * (ratio - jnp.mean(mass * ratio)) ** 2),
    }
