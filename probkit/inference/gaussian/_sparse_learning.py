r"""Steps of the sparse engines: natural gradients on q, Adam on the hyperparameters, and the stop.

One step evaluates the objective and its gradient on the rows at hand, once, and moves both

    sites <- (1 - rho) sites + rho target                   (eq. 1 of `_sparse`)
    theta <- theta + rate Adam(d objective / d theta)

``theta`` maximises the objective (plus the log prior for ``objective="map"``), as for the dense
engines (`_learning`). It begins at the best of ``screen`` random points, each judged by the bound
after some natural-gradient steps on at most a thousand rows: from a bad start even an exact evidence
leads to a useless optimum.

Nobody chooses a number of steps. They are taken in windows, and the mean objective of a window is
compared with that of the one before, with its error from the scatter inside:

    gain > max(tolerance, 2 errors)    go on
    otherwise                          a quiet window: rate x 0.4 (rho too, in mini-batches or where
                                       the objective fell), windows x 1.25; the fourth ends the fit

With mini-batches the result is the mean of ``theta`` over the last window. Then `_sparse_posterior`
takes q to its optimum on all rows, so that the noise of mini-batches is in ``theta`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from probkit.core import Batch, Status, Target
from probkit.inference.gaussian import _inducing_points as points
from probkit.inference.gaussian import _sparse as sparse
from probkit.inference.gaussian._learning import memory
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._sparse import Basis, Bounds, Natural

#: Windows without a gain that end a fit, steps of a window, and steps in a row that may fail.
QUIET, _SHORT, _LONG, MOST_BAD = 4, 20, 200, 25
_REDUCE, _GROW = 0.4, 1.25
_SCREEN_ROWS, _SCREEN_STEPS = 1000, 8
_COPIES, _NODES = 8, 128  # arrays of rows x points alive at once, and nodes of the quadratures
_MOVE = optax.scale_by_adam()

#: ``(problem, theta, z, sites, tied, weight) -> (Bounds, Basis)``.
Objective = Callable[..., tuple[Bounds, Basis]]


class Form(NamedTuple):
    """What tells the sparse engines apart.

    Attributes:
        value: `_sparse.elbo_at` or `_sparse.energy_at`.
        tied: whether the sites on u (not those on v) stay when the hyperparameters move.
    """

    value: Objective
    tied: bool


class Settings(NamedTuple):
    """A method's options as the steps need them."""

    name: str
    form: Form
    count: int | None
    given: Any
    choose: str
    move: bool
    objective: str
    screen: int
    batch: int | None
    step: Any
    rate: Any
    tolerance: Any


def init(key: Array, target: Target, how: Settings) -> dict[str, Any]:
    """The state of one search."""
    problem = Problem.of(target)
    _check(problem, how)
    count = points.check_fit(how.name, problem, how.count, how.given)
    row_key, place_key, start_key, screen_key = jax.random.split(key, 4)
    latent, dtype = problem.latent, target.dtype
    candidates = [latent.start(k, target.arrays) for k in jax.random.split(start_key, how.screen)]
    thetas = jnp.stack(candidates).astype(dtype)
    x = latent.points(target.arrays)[points.some_rows(row_key, latent.size)]
    z = how.given if how.given is not None else x[points.kmeans(place_key, x, count)]
    z = jnp.asarray(z, dtype)
    rows = _screening_rows(screen_key, problem, how)
    values, sites = jax.lax.map(lambda t: _screened(problem, t, z, rows), thetas)
    best = jnp.nanargmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
    theta = thetas[best]
    own = jax.tree.map(lambda a: a[best], sites)
    if how.given is None and how.choose == "greedy":
        z = jnp.asarray(x[points.greedy(problem, theta, x, count)], dtype)
        own = _screened(problem, theta, z, rows)[1]
    if how.form.tied:
        own = sparse.coloured(sparse.basis(problem, theta, z), own)
    free = {"theta": theta, "z": z} if how.move else {"theta": theta}
    return {
        "theta": theta,
        "z": z,
        "l1": own.l1,
        "l2": own.l2,
        "adam": _MOVE.init(free),
        **_windows(problem, how, theta),
    }


def _check(problem: Problem, how: Settings) -> None:
    """Raise where the rows at hand would not fit in memory."""
    m = points.check_fit(how.name, problem, how.count, how.given)
    rows = problem.latent.size if how.batch is None else how.batch
    need = 8.0 * _COPIES * rows * (m + _NODES)
    if need > memory():
        raise ValueError(
            f"{how.name}: site {problem.latent.name!r}: steps of {rows} rows with {m} inducing "
            f"points need about {need / 1e9:.0f} GB, and this machine has {memory() / 1e9:.0f} GB: "
            "use mini-batches (batch_size=512)"
        )
    if how.batch is not None and not problem.latent.rows_apart(problem.arrays):
        raise ValueError(
            f"{how.name}: site {problem.latent.name!r}: mini-batches need observations that lie "
            f"along the rows of {problem.latent.dim!r}, none missing, each depending on its own "
            "row; leave batch_size out to take all rows in every step"
        )


def _windows(problem: Problem, how: Settings, theta: Array) -> dict[str, Array]:
    """The stop's part of the state."""
    n = problem.latent.size
    length = _SHORT if how.batch is None else min(max(_SHORT, n // how.batch), _LONG)
    zero, inf = jnp.zeros((), theta.dtype), jnp.asarray(jnp.inf, theta.dtype)
    count = jnp.int32(0)
    return {
        "window": jnp.asarray(length, theta.dtype),
        "inside": count,
        "sum": zero,
        "squares": zero,
        "past": -inf,
        "past_error": zero,
        "mean": theta,
        "sum_theta": jnp.zeros_like(theta),
        "rate": zero + 1.0,
        "rho": zero + 1.0,
        "gain": inf,
        "gain_error": zero,
        "quiet": count,
        "bad": count,
        "elbo": -inf,
    }


def _screening_rows(key: Array, problem: Problem, how: Settings) -> Array | None:
    """Row numbers that starts are compared on; all rows where they cannot be had apart."""
    n = problem.latent.size
    if n <= _SCREEN_ROWS or not problem.latent.rows_apart(problem.arrays):
        return None
    return points.some_rows(key, n, _SCREEN_ROWS)


def _screened(problem: Problem, theta: Array, z: Array, rows: Array | None) -> tuple[Array, Natural]:
    """The bound at a start after some natural-gradient steps, and the sites on v."""
    few = sparse.part(problem, rows)
    weight = problem.latent.size / few.latent.size
    rho = 1.0 if problem.kind == "gaussian" else 0.5
    m, dtype = z.shape[0], z.dtype

    def once(_: Any, sites: Natural) -> Natural:
        found, _ = sparse.elbo_at(few, theta, z, sites, False, weight)
        return mixed(sites, found.target, rho)

    start = Natural(jnp.zeros(m, dtype), jnp.zeros((m, m), dtype))
    sites = jax.lax.fori_loop(0, 1 if rho == 1.0 else _SCREEN_STEPS, once, start)
    found, _ = sparse.elbo_at(few, theta, z, sites, False, weight)
    value = found.elbo - problem.penalty(theta)
    return value + problem.latent.log_prior(theta, problem.arrays), sites


def mixed(old: Natural, new: Natural, rho: Array | float) -> Natural:
    """A step of length ``rho`` from old sites to new."""
    return jax.tree.map(lambda a, b: (1.0 - rho) * a + rho * b, old, new)


def step(
    target: Target, state: dict[str, Any], batch: Batch | None, how: Settings
) -> tuple[dict[str, Any], dict[str, Array]]:
    """One step of q and of the hyperparameters."""
    problem = Problem.of(target)
    rows = None if batch is None else jnp.asarray(batch.index)
    some = sparse.part(problem, rows)
    weight = problem.latent.size / some.latent.size
    sites = Natural(state["l1"], state["l2"])
    free = {"theta": state["theta"], "z": state["z"]} if how.move else {"theta": state["theta"]}

    def loss(free: dict) -> tuple[Array, tuple[Bounds, Basis]]:
        theta, z = free["theta"], free.get("z", state["z"])
        found, at = how.form.value(some, theta, z, sites, how.form.tied, weight)
        total = found.value - problem.penalty(theta)
        if how.objective == "map":
            total += problem.latent.log_prior(theta, problem.arrays)
        return -total, (found, at)

    (value, (found, at)), slope = jax.value_and_grad(loss, has_aux=True)(free)
    new = sparse.coloured(at, found.target) if how.form.tied else found.target
    rho = natural_step(problem, how) * state["rho"]
    moves, adam = _MOVE.update(slope, state["adam"])
    rate = how.rate * state["rate"]
    ahead = jax.tree.map(lambda a, b: a - rate * b, free, moves)
    after = mixed(sites, new, rho)
    fine = jax.tree.map(lambda a: jnp.all(jnp.isfinite(a)), (value, slope, after))
    fine = jnp.all(jnp.stack(jax.tree.leaves(fine)))
    pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(fine, x, y), a, b)  # noqa: E731
    kept = {"l1": after.l1, "l2": after.l2, "adam": adam, **ahead}
    out = {**state, **pick(kept, {k: state[k] for k in kept})}
    out["bad"] = jnp.where(fine, 0, state["bad"] + 1).astype(jnp.int32)
    out["elbo"] = jnp.where(fine, found.elbo, state["elbo"])
    out = _judged(out, jnp.where(fine, -value, state["past"]), how)
    return out, {"objective": -value, "rate": rate, "gain": out["gain"]}


def natural_step(problem: Problem, how: Settings) -> Any:
    """The length of a natural-gradient step before any reduction."""
    if how.step is not None:
        return how.step
    if how.batch is not None:
        return 0.1
    return 1.0 if problem.kind == "gaussian" else 0.5


def _judged(state: dict[str, Any], value: Array, how: Settings) -> dict[str, Any]:
    """The state with the step counted, and a window's end judged if it is there."""
    inside = state["inside"] + 1
    total, squares = state["sum"] + value, state["squares"] + (value - state["past"]) ** 2
    # (Squares are taken about the last window's mean: those of large values would cancel.)
    first = ~jnp.isfinite(state["past"])
    squares = jnp.where(first, 0.0, squares)
    sums = state["sum_theta"] + state["theta"]
    ends = inside >= state["window"]
    count = inside.astype(value.dtype)
    mean = total / count
    scatter = jnp.maximum(squares / count - (mean - state["past"]) ** 2, 0.0)
    error = jnp.where(first, 0.0, jnp.sqrt(scatter / count))
    gain = mean - state["past"]
    both = jnp.sqrt(error**2 + state["past_error"] ** 2)
    quiet = ends & ~(gain > jnp.maximum(how.tolerance, 2.0 * both))
    fell = quiet & (gain < -how.tolerance)
    slower = quiet if how.batch is not None else fell
    pick = lambda yes, a, b: jnp.where(yes, a, b)  # noqa: E731
    return {
        **state,
        "inside": pick(ends, 0, inside).astype(jnp.int32),
        "sum": pick(ends, 0.0, total),
        "squares": pick(ends, 0.0, squares),
        "sum_theta": pick(ends, jnp.zeros_like(sums), sums),
        "mean": pick(ends, sums / count, state["mean"]),
        "past": pick(ends, mean, state["past"]),
        "past_error": pick(ends, error, state["past_error"]),
        "gain": pick(ends, gain, state["gain"]),
        "gain_error": pick(ends, both, state["gain_error"]),
        "quiet": state["quiet"] + quiet.astype(jnp.int32),
        "rate": pick(quiet, _REDUCE * state["rate"], state["rate"]),
        "rho": pick(slower, _REDUCE * state["rho"], state["rho"]),
        "window": pick(quiet, jnp.ceil(_GROW * state["window"]), state["window"]),
    }


def terminate(state: dict[str, Any]) -> tuple[Array, Array]:
    """Done after the last quiet window, or when steps fail one after the other."""
    lost = state["bad"] >= MOST_BAD
    code = jnp.where(lost, int(Status.NONFINITE), int(Status.OK)).astype(jnp.int32)
    return (state["quiet"] >= QUIET) | lost, code
