r"""Steps of the sparse engines: natural gradients on q, Adam on the hyperparameters, and the stop.

One step moves both, on the rows at hand:

    sites <- (1 - rho) sites + rho target                   (eq. 1 of `_sparse`)
    theta <- theta + rate Adam(d objective / d theta)

With all rows the gradient is taken at the new sites, so that at ``rho = 1`` and normal terms it is
that of the bound at its optimum over q (Titsias 2009); with mini-batches at the old sites, since a
q that has just seen the rows at hand makes the gradient on them biased.

``theta`` maximises the objective (plus the log prior for ``objective="map"``), as for the dense
engines (`_learning`). It begins at the best of ``screen`` points, each judged by the bound
after some natural-gradient steps on at most a thousand rows: from a bad start even an exact
evidence leads to a useless optimum.

Nobody chooses a number of steps. They are taken in windows of two epochs (20 to 400 steps). At a
window's end the objective is evaluated at the mean of the hyperparameters over it, with q taken
towards its optimum there, always on the same rows (all, or as many as half a window has seen), so
that two windows are compared without the noise of mini-batches:

    gain > tolerance    go on  (mini-batches: at least 1e-3 nats a row, or 1e-5 where no search
                               follows)
    otherwise           a quiet window: rate x 0.4 (rho too, with mini-batches), windows x 1.5;
                        the third ends these steps

From the best window's mean (for the hybrid's field, which is no gradient, the last one's, and
changes of either sign count) `_sparse_search` goes to the optimum on all rows, unless these are
very many (more than 4e9 / m^2). Mini-batches alone do not get there in reasonable time: whitened
sites and scales move together, a small part of the way in each step, and tied sites make of a
batch's noise a bias.
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
from probkit.inference.gaussian._problem import Problem, placed
from probkit.inference.gaussian._sparse import Basis, Bounds, Natural
from probkit.inference.gaussian._sparse_rows import part
from probkit.inference.gaussian._starts import place_of, starts

#: Windows without a gain that end a fit, steps of a window, and steps in a row that may fail.
QUIET, _SHORT, _SOME, _LONG, MOST_BAD = 3, 20, 50, 400, 25
_REDUCE, _GROW = 0.4, 1.5
_SCREEN_ROWS, _SCREEN_STEPS, _JUDGE_STEPS = 1000, 8, 3
_COPIES, _NODES = 8, 128  # arrays of rows x points alive at once, and nodes of the quadratures
#: Rows x points^2 up to which `_sparse_search` ends the search (240,000 rows at 128 points), and
#: nats a row that a window of mini-batches must gain: where it does, and beyond.
_MOST_WORK, _ROUGH, _PER_ROW = 4e9, 1e-3, 1e-5
#: Without noise a short memory: the steep first steps must not slow down the thousand after them.
_WHOLE, _NOISY = optax.scale_by_adam(b1=0.9, b2=0.95), optax.scale_by_adam(b1=0.9, b2=0.99)

#: ``(problem, theta, z, sites, tied, weight, rho, first) -> (Bounds, Basis)``.
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
    number: int | None
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
    count = points.check_fit(how.name, problem, how.number, how.given)
    row_key, place_key, start_key, screen_key, judge_key = jax.random.split(key, 5)
    latent, dtype = problem.latent, target.dtype
    asides = starts(place_of(start_key), how.screen, latent.theta.size, dtype)
    thetas = placed(problem, asides)
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
        "adam": _WHOLE.init(free),
        **_windows(problem, how, free, judge_key),
    }


def _check(problem: Problem, how: Settings) -> None:
    """Raise where the rows at hand would not fit in memory."""
    m = points.check_fit(how.name, problem, how.number, how.given)
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
            f"along the rows of {problem.latent.dim!r}, each depending on its own row; leave "
            "batch_size out to take all rows in every step"
        )


def _windows(problem: Problem, how: Settings, free: dict, key: Array) -> dict[str, Any]:
    """The stop's part of the state."""
    n, dtype = problem.latent.size, free["theta"].dtype
    length = _SHORT if how.batch is None else min(max(_SOME, -(-2 * n // how.batch)), _LONG)
    zero, inf = jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype)
    count = jnp.int32(0)
    state = {
        "window": jnp.asarray(length, dtype),
        "inside": count,
        "sum": jax.tree.map(jnp.zeros_like, free),
        "best": free,
        "past": -inf,
        "rate": zero + 1.0,
        "rho": zero + 1.0,
        "gain": inf,
        "quiet": count,
        "bad": count,
    }
    seen = n if how.batch is None else max(_SCREEN_ROWS, length * how.batch // 2)
    if seen < n:
        state["judges"] = points.some_rows(key, n, seen)
    return state


def _screening_rows(key: Array, problem: Problem, how: Settings) -> Array | None:
    """Row numbers that starts are compared on; all rows where they cannot be had apart."""
    n = problem.latent.size
    if n <= _SCREEN_ROWS or not problem.latent.rows_apart(problem.arrays):
        return None
    return points.some_rows(key, n, _SCREEN_ROWS)


def _screened(
    problem: Problem, theta: Array, z: Array, rows: Array | None
) -> tuple[Array, Natural]:
    """The bound at a start after some natural-gradient steps, and the sites on v."""
    few = part(problem, rows)
    weight = problem.latent.size / few.latent.size
    m, dtype = z.shape[0], z.dtype
    start = Natural(jnp.zeros(m, dtype), jnp.zeros((m, m), dtype))
    sites = _settled(few, theta, z, start, weight, _SCREEN_STEPS)
    found, _ = sparse.elbo_at(few, theta, z, sites, False, weight)
    value = found.elbo - problem.penalty(theta)
    return value + problem.latent.log_prior(theta, problem.arrays), sites


def _settled(
    problem: Problem, theta: Array, z: Array, sites: Natural, weight: float, steps: int
) -> Natural:
    """Sites on v after some natural-gradient steps at fixed hyperparameters."""
    exact = problem.kind == "gaussian"
    rows = sparse.project(problem, theta, z, sparse.basis(problem, theta, z))
    rho, steps = (1.0, 1) if exact else (0.5, steps)
    return sparse.refreshed(problem, theta, rows, sites, weight, rho, steps)


def step(
    target: Target, state: dict[str, Any], batch: Batch | None, how: Settings
) -> tuple[dict[str, Any], dict[str, Array]]:
    """One step of q and of the hyperparameters."""
    problem = Problem.of(target)
    rows = None if batch is None else jnp.asarray(batch.index)
    some = part(problem, rows)
    weight = problem.latent.size / some.latent.size
    sites = Natural(state["l1"], state["l2"])
    free = {"theta": state["theta"], "z": state["z"]} if how.move else {"theta": state["theta"]}

    rho, whole = natural_step(problem, how) * state["rho"], batch is None

    def loss(free: dict) -> tuple[Array, tuple[Bounds, Basis]]:
        theta, z = free["theta"], free.get("z", state["z"])
        found, at = how.form.value(some, theta, z, sites, how.form.tied, weight, rho, whole)
        return -found.value - beside(problem, theta, how.objective == "map"), (found, at)

    (value, (found, at)), slope = jax.value_and_grad(loss, has_aux=True)(free)
    after = sparse.coloured(at, found.sites) if how.form.tied else found.sites
    moves, adam = (_WHOLE if whole else _NOISY).update(slope, state["adam"])
    rate = how.rate * state["rate"]
    ahead = jax.tree.map(lambda a, b: a - rate * b, free, moves)
    fine = jax.tree.map(lambda a: jnp.all(jnp.isfinite(a)), (value, slope, after))
    fine = jnp.all(jnp.stack(jax.tree.leaves(fine)))
    pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(fine, x, y), a, b)  # noqa: E731
    kept = {"l1": after.l1, "l2": after.l2, "adam": adam, **ahead}
    out = {**state, **pick(kept, {k: state[k] for k in kept})}
    out["bad"] = jnp.where(fine, 0, state["bad"] + 1).astype(jnp.int32)
    out = _judged(problem, out, how)
    return out, {"objective": -value, "rate": rate, "gain": out["gain"]}


def natural_step(problem: Problem, how: Settings) -> Any:
    """The length of a natural-gradient step before any reduction."""
    if how.step is not None:
        return how.step
    if how.batch is not None:
        return 0.05
    return 1.0 if problem.kind == "gaussian" else 0.5


def beside(problem: Problem, theta: Array, with_prior: bool) -> Array:
    """What the objective has besides the bound: the log prior, and the wall."""
    value = -problem.penalty(theta)
    return value + problem.latent.log_prior(theta, problem.arrays) if with_prior else value


def searched(problem: Problem, count: int) -> bool:
    """Whether the hyperparameters' optimum is looked for on all rows at the end."""
    return 0 < problem.latent.theta.size and problem.latent.size * count**2 <= _MOST_WORK


def _judged(problem: Problem, state: dict[str, Any], how: Settings) -> dict[str, Any]:
    """The state with the step counted, and a window's end judged if it is there."""
    inside = state["inside"] + 1
    sums = jax.tree.map(lambda a, k: a + state[k], state["sum"], {k: k for k in state["sum"]})
    ends = inside >= state["window"]
    mean = jax.tree.map(lambda a: a / inside.astype(state["past"].dtype), sums)

    old = Natural(state["l1"], state["l2"])

    # A loop of no or one turn: unlike a `cond`, it is skipped under vmap when nobody needs it. What
    # does not depend on the count would be moved out of the loop, and be done in every step.
    def look(carry: tuple[Array, Array, Natural]) -> tuple[Array, Array, Natural]:
        nothing = 0.0 * carry[0].astype(state["past"].dtype)
        near = {**state, "z": state["z"] + nothing, "l1": state["l1"] + nothing}
        free = jax.tree.map(lambda a: a + nothing, mean)
        value, fresh = _value(problem, near, free, how)
        # Judged on all rows, q without the noise of mini-batches is there to go on with.
        return carry[0] + 1, value, old if "judges" in state else fresh

    trips = ends.astype(jnp.int32)
    start = (jnp.int32(0), state["past"], old)
    _, value, sites = jax.lax.while_loop(lambda c: c[0] < trips, look, start)
    gain = value - state["past"]
    field = how.form.value is sparse.energy_at
    least = how.tolerance
    if how.batch is not None:
        per_row = _ROUGH if searched(problem, state["z"].shape[0]) else _PER_ROW
        least = jnp.maximum(least, per_row * problem.latent.size)
    quiet = ends & ~((jnp.abs(gain) if field else gain) > least)
    better = ends & (jnp.asarray(True) if field else gain > 0)
    pick = lambda yes, a, b: jax.tree.map(lambda x, y: jnp.where(yes, x, y), a, b)  # noqa: E731
    slower = quiet if how.batch is not None else jnp.asarray(False)
    return {
        **state,
        "l1": sites.l1,
        "l2": sites.l2,
        "inside": pick(ends, 0, inside).astype(jnp.int32),
        "sum": pick(ends, jax.tree.map(jnp.zeros_like, sums), sums),
        "adam": pick(quiet, jax.tree.map(jnp.zeros_like, state["adam"]), state["adam"]),
        "best": pick(better, mean, state["best"]),
        "past": pick(better, value, state["past"]),
        "gain": pick(ends, gain, state["gain"]),
        "quiet": state["quiet"] + quiet.astype(jnp.int32),
        "rate": pick(quiet, _REDUCE * state["rate"], state["rate"]),
        "rho": pick(slower, _REDUCE * state["rho"], state["rho"]),
        "window": pick(quiet, jnp.ceil(_GROW * state["window"]), state["window"]),
    }


def _value(
    problem: Problem, state: dict[str, Any], free: dict, how: Settings
) -> tuple[Array, Natural]:
    """The objective at ``free``, with q taken towards its optimum there, on the rows that judge.

    And q's sites there (those that are held).
    """
    theta, z = free["theta"], free.get("z", state["z"])
    some = part(problem, state.get("judges"))
    weight = problem.latent.size / some.latent.size
    sites = Natural(state["l1"], state["l2"])
    at = sparse.basis(problem, theta, z)
    own = sparse.whitened(at, sites) if how.form.tied else sites
    own = _settled(some, theta, z, own, weight, _JUDGE_STEPS)
    found, _ = how.form.value(some, theta, z, own, False, weight)
    held = sparse.coloured(at, own) if how.form.tied else own
    return found.value + beside(problem, theta, how.objective == "map"), held


def terminate(state: dict[str, Any]) -> tuple[Array, Array]:
    """Done after the last quiet window, or when steps fail one after the other."""
    lost = state["bad"] >= MOST_BAD
    code = jnp.where(lost, int(Status.NONFINITE), int(Status.OK)).astype(jnp.int32)
    return (state["quiet"] >= QUIET) | lost, code
