r"""Many optimisers at once: limited-memory BFGS from a batch of starts, in one loop.

Each start minimises f(u) = -log p(scale u) by steps ``u + a p``, with ``p = -H g`` from the last
``m`` pairs (s, y) by the two-loop recursion (Nocedal and Wright 2006, algorithm 7.4). A step is
taken if it satisfies Armijo's condition, else ``a`` shrinks to 0.3 a; every pass of the loop is one
gradient for every start, whatever each is doing, so that the batch never waits for one lane's line
search and only one evaluation is compiled.

Cost: at most ``passes`` gradients a start and O(m d) each; the loop ends when all have converged
(largest scaled gradient below 1e-3) or cannot move.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

_MEMORY = 6
_ARMIJO, _SHRINK, _SHORTEST, _FLAT = 1e-4, 0.3, 1e-7, 1e-3
_LONGEST = 10.0


def climb(
    log_density: Callable[[Array], Array], starts: Array, scale: Array, passes: int = 150
) -> tuple[Array, Array, Array]:
    """Local maxima of a log density (traceable).

    Args:
        log_density: of one point, shape ``(d,)``.
        starts: shape ``(n, d)``; one with a log density that is not finite stays where it is.
        scale: typical size of each coordinate, shape ``(d,)``.
        passes: gradients a start at the most.

    Returns:
        Points ``(n, d)``, their log densities ``(n,)`` and largest scaled gradients ``(n,)``.

    Example:
        >>> log_density = lambda x: -jnp.sum((x - 1.0) ** 2)
        >>> x, value, slope = climb(log_density, jnp.zeros((3, 2)), jnp.ones(2))
        >>> bool(jnp.all(jnp.abs(x - 1.0) < 1e-3))
        True
    """
    fn = jax.value_and_grad(lambda u: -log_density(scale * u))
    size = starts.shape[1]

    def begin(u: Array) -> dict[str, Array]:
        f, g = fn(u)
        usable = jnp.isfinite(f) & jnp.all(jnp.isfinite(g))
        g = jnp.where(usable, g, 0.0)
        memory = jnp.zeros((_MEMORY, size), u.dtype)
        weight = jnp.zeros(_MEMORY, u.dtype)
        state = {"u": u, "f": f, "g": g, "s": memory, "y": memory, "r": weight}
        return {**state, **_headed(state, first=True), "on": usable & (_slope(g) > _FLAT)}

    def move(state: dict[str, Array]) -> dict[str, Array]:
        u, f, g = state["u"], state["f"], state["g"]
        new_u = u + state["a"] * state["p"]
        new_f, new_g = fn(new_u)
        finite = jnp.isfinite(new_f) & jnp.all(jnp.isfinite(new_g))
        rounding = 4 * jnp.finfo(u.dtype).eps * jnp.abs(f)
        enough = f + _ARMIJO * state["a"] * jnp.dot(g, state["p"]) + rounding
        taken = finite & (new_f <= enough)
        moved = {"u": new_u, "f": new_f, "g": new_g, **_remembered(state, new_u - u, new_g - g)}
        moved |= _headed(moved, first=False)
        stayed = {**{k: state[k] for k in moved}, "a": _SHRINK * state["a"]}
        out = jax.tree.map(lambda x, y: jnp.where(taken, x, y), moved, stayed)
        out["on"] = (_slope(out["g"]) > _FLAT) & (out["a"] > _SHORTEST)
        return jax.tree.map(lambda x, y: jnp.where(state["on"], x, y), out, state)

    def body(carry: tuple) -> tuple:
        return carry[0] + 1, jax.vmap(move)(carry[1])

    def going(carry: tuple) -> Array:
        return (carry[0] < passes) & jnp.any(carry[1]["on"])

    first = (jnp.int32(0), jax.vmap(begin)(starts / scale))
    _, last = jax.lax.while_loop(going, body, first)
    return scale * last["u"], -last["f"], jax.vmap(_slope)(last["g"])


def _slope(g: Array) -> Array:
    return jnp.max(jnp.abs(g))


def _remembered(state: dict[str, Array], s: Array, y: Array) -> dict[str, Array]:
    """The memory with a new pair, where its curvature is positive."""
    inner = jnp.dot(s, y)
    good = inner > 1e-10 * jnp.linalg.norm(s) * jnp.linalg.norm(y)
    weight = 1.0 / jnp.where(good, inner, 1.0)
    new = {
        "s": jnp.concatenate([state["s"][1:], s[None]]),
        "y": jnp.concatenate([state["y"][1:], y[None]]),
        "r": jnp.concatenate([state["r"][1:], weight[None]]),
    }
    return {k: jnp.where(good, v, state[k]) for k, v in new.items()}


def _headed(state: dict[str, Array], first: bool) -> dict[str, Array]:
    """The direction downhill, and the first step to try along it."""
    g, s, y, r = state["g"], state["s"], state["y"], state["r"]
    q, alphas = g, []
    # Pairs that are not there yet have weight 0 and change nothing.
    for i in reversed(range(_MEMORY)):
        alphas.append(r[i] * jnp.dot(s[i], q))
        q = q - alphas[-1] * y[i]
    inner = jnp.dot(y[-1], y[-1])
    known = (r[-1] > 0) & (inner > 0)
    size = jnp.where(known, jnp.dot(s[-1], y[-1]) / jnp.where(known, inner, 1.0), 1.0)
    q = size * q
    for i, alpha in zip(range(_MEMORY), reversed(alphas), strict=True):
        q = q + s[i] * (alpha - r[i] * jnp.dot(y[i], q))
    downhill = jnp.dot(q, g) > 0
    p = -jnp.where(downhill, q, g)
    length = jnp.linalg.norm(p)
    most = jnp.where(known & downhill & (not first), _LONGEST, 1.0)
    return {"p": p, "a": jnp.minimum(1.0, most / jnp.maximum(length, 1e-30))}
