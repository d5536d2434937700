r"""Hyperparameters by maximising an engine's log evidence: what all engines' methods share.

    theta* = argmax log Z(theta)                          (``objective="ml2"``)
    theta* = argmax log Z(theta) + log p(theta)           (``objective="map"``)

with ``log p`` in the unconstrained space, log Jacobian included. From a bad start even an exact
evidence leads to a useless optimum (a length scale so short that the data are noise), so each
search begins at the best of several scattered points, and there can be several searches; the best
end is kept. ``theta`` is a point: its own uncertainty is not in the result.

Every step of a search is one evaluation: the prior's covariance, the engine's sites from where they
were, the energy and its derivative. An engine whose evaluations are dear (variational inference,
the hybrid) has a scout, EP: it searches to the optimum of the scout's evidence, and goes on from
there, with the scout's sites and inverse Hessian. A few evaluations of its own are then enough.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Target, check_between, check_choice, check_count
from probkit.core._one_kernel import as_one_kernel
from probkit.inference.gaussian._broyden import Root, begin_root, chosen, follow, handed_over
from probkit.inference.gaussian._conditioning import Prior, Sites, little_jitter
from probkit.inference.gaussian._fixed_point import CONVERGED, NOT_FINITE, Found
from probkit.inference.gaussian._problem import Problem, placed
from probkit.inference.gaussian._search import Search, advance, begin, needed
from probkit.inference.gaussian._several_problem import Several, check_rows, is_several, posed
from probkit.inference.gaussian._starts import starts

OPTIONS = ("draws", "objective", "starts", "screen", "max_steps", "tolerance")
_BYTES = 12  # matrices of n x n doubles alive at once, about
_REFUSED, _ROOTLESS = 12, 4  # trials in a row: of a search, and of one that may have no end
#: Residuals of the sites while starts are compared, and afterwards. (The energies of EP and CVI are
#: stationary in the sites: a residual r costs r^2 in them, and r in their derivatives.)
_ROUGH, _FINE = 1e-2, 1e-5
_ASTRAY = 0.3  # a residual of sites of several processes, in sds, whose energy says nothing
_HANDOVER = 1e-3  # nats that a scout leaves to be gained


class Engine(NamedTuple):
    """The two functions of an engine.

    Attributes:
        solve: ``(problem, theta, prior, start, tolerance) -> Found``: its sites.
        value: ``(problem, theta, sites) -> scalar``, with the derivative that is meant.
        root: whether the derivative is not that of the value (sites are frozen in it).
        check: raises where the engine cannot do the problem.
        scout: an engine that is quick and ends close by, whose optimum the search begins with.
        closed: of an engine for several processes: whether its sites of softmax terms are their
            probabilities.
        several: the engine for models with several processes, where there is one.
        told: ``(problem, theta, least) -> value, sites, figures`` of an engine that has all at
            hand: figures are those of `summarise`, but for the prior's own jitter, and NaN where
            that takes more. Below the value ``least`` the derivative may be NaN: nobody asks.
        tight: nats a row that its log evidence may lie above the evidence lower bound of its own
            Gaussian; None where that says nothing.
    """

    solve: Callable[[Any, Array, Prior, Sites, Array], Found]
    value: Callable[[Any, Array, Sites], Array]
    root: bool = False
    check: Callable[[Any], None] = lambda problem: None
    scout: Engine | None = None
    closed: bool = False
    several: Engine | None = None
    told: Callable[[Any, Array, Array], tuple[Array, Sites, dict[str, Array]]] | None = None
    tight: float | None = None

    def fitting(self, target: Target) -> Engine:
        """This engine, or the one for several processes where the model has several."""
        if self.several is not None and is_several(target.program, target.arrays):
            return self.several
        return self


class Options(NamedTuple):
    """Checked values of the options that all engines share."""

    draws: int
    objective: str
    starts: int
    screen: int
    max_steps: int
    tolerance: float

    @staticmethod
    def checked(
        name: str,
        draws: Any,
        objective: Any,
        starts: Any,
        screen: Any,
        max_steps: Any,
        tolerance: Any,
    ) -> Options:
        """The options of the method ``name``, or an error that names the wrong one."""
        check_choice(f"{name}(objective)", objective, ("map", "ml2"))
        return Options(
            check_count(f"{name}(draws)", draws),
            str(objective),
            check_count(f"{name}(starts)", starts),
            check_count(f"{name}(screen)", screen),
            check_count(f"{name}(max_steps)", max_steps),
            check_between(f"{name}(tolerance)", tolerance, 0.0, 1.0),
        )


def init(rng: np.random.Generator, target: Target, engine: Engine, screen: int) -> dict:
    """The state of one search: points to look at, and sites to start from (on the host)."""
    problem = posed(target.program, target.arrays, engine.closed)
    engine.check(problem)
    scouting = engine.scout is not None
    if isinstance(problem, Several):
        check_rows(problem, 8.0 * _BYTES, memory())
    else:
        _check_memory(problem.latent.name, problem.latent.size, None)
    latent, dtype = problem.latent, target.dtype
    place = rng.integers(2**32, dtype=np.uint32)
    candidates = starts(place, screen, latent.theta.size, dtype)
    blank = problem.blank(dtype)
    state = {f"search_{k}": v for k, v in begin(candidates)._asdict().items()}
    sites = {"l1": blank.l1, "l2": blank.l2}
    inner = {"residual": np.full((), np.inf, dtype), "reason": np.zeros((), np.int32)}
    inner |= {"scouting": np.asarray(scouting), "done": np.asarray(False)}
    if engine.root:
        root = begin_root(candidates.shape[1], candidates.dtype)
        inner |= {f"root_{k}": v for k, v in root._asdict().items()}
    if engine.told is not None:
        rows = np.full(latent.size, np.nan, dtype)
        both = np.full(2, np.nan, dtype)
        inner["told"] = {"mean": rows, "sd": rows, "loo": rows, "jitters": both}
    return {**state, **sites, **inner, "candidates": candidates, "log_z": np.zeros((), dtype)}


def step(
    target: Target, state: dict, engine: Engine, objective: str, tolerance: Array | float
) -> tuple[dict, dict[str, Array]]:
    """One evaluation at the trial point, and the next trial."""
    problem = posed(target.program, target.arrays, engine.closed)
    # (Points of a search are told from where the prior is.)
    at = Search(**{k: state[f"search_{k}"] for k in Search._fields})
    candidates, scouting = state["candidates"], state["scouting"]
    look = functools.partial(_look, problem, state, objective, at)
    if engine.scout is None:
        value, slope, seen = look(engine, at.trial)
    else:
        value, slope, seen = jax.lax.cond(
            scouting,
            functools.partial(look, engine.scout),
            functools.partial(look, engine),
            at.trial,
        )
    root = Root(**{k: state[f"root_{k}"] for k in Root._fields}) if engine.root else None
    judge = as_one_kernel(functools.partial(_judged, engine))
    new = judge(at, root, value, slope, candidates, scouting, tolerance)
    pick = lambda a, b: jnp.where(new.taken, a, b)  # noqa: E731
    out = {f"search_{k}": v for k, v in new.search._asdict().items()}
    if new.root is not None:
        out |= {f"root_{k}": v for k, v in new.root._asdict().items()}
    if engine.told is not None:
        whole = functools.partial(_whole, problem, placed(problem, at.trial))
        # (A search that is done goes on while others do, and may leave the point it told of.)
        old = state["told"]
        known = old | {"jitters": jnp.where(new.taken, jnp.nan, old["jitters"])}
        out["told"] = jax.lax.cond(new.last, whole, lambda told: known, seen.told)
    found = seen.found
    out |= {
        "l1": pick(found.sites.l1, state["l1"]),
        "l2": pick(found.sites.l2, state["l2"]),
        "residual": pick(found.residual, state["residual"]),
        "reason": pick(found.reason, state["reason"]),
        "log_z": pick(seen.log_z, state["log_z"]),
        "candidates": candidates,
        "scouting": new.scouting,
        "done": new.done,
    }
    value, gain = new.search.value, new.search.gain
    return out, {"objective": -value, "site_steps": found.steps, "gain": gain}


class Judged(NamedTuple):
    """Where a search goes on; whether the trial was taken, and is where it ends."""

    search: Search
    root: Root | None
    scouting: Array
    taken: Array
    last: Array
    done: Array


def _judged(
    engine: Engine,
    at: Search,
    root: Root | None,
    value: Array,
    slope: Array,
    candidates: Array,
    scouting: Array,
    tolerance: Array,
) -> Judged:
    """The trial judged, whose value and derivative these are."""
    new, taken = advance(at, value, slope, candidates)
    if root is not None:
        other, root, also = follow(at, root, value, slope)
        # The field of the scout is a gradient: its points leave no pairs.
        root = chosen(scouting, begin_root(candidates.shape[1], candidates.dtype), root)
        new, taken = chosen(scouting, new, other), jnp.where(scouting, taken, also)
    if engine.scout is not None:
        searching = new.looks >= candidates.shape[0]
        there = (new.gain < _HANDOVER) | (new.refused >= _REFUSED)
        over = scouting & searching & there & jnp.isfinite(new.value)
        new = chosen(over, handed_over(new), new)
        # A scout that finds nothing anywhere is no reason not to look.
        alone = scouting & searching & ~jnp.isfinite(new.value)
        new = chosen(alone, begin(candidates), new)
        scouting &= ~over & ~alone
    searching = new.looks >= candidates.shape[0]
    lost = searching & ~jnp.isfinite(new.value)
    # Less than the tolerance is left by the quadratic model, or no step is.
    flat = new.gain < tolerance
    stuck = new.refused >= (_REFUSED if root is None else _ROOTLESS)
    done = (searching & ~scouting & (flat | stuck)) | lost
    return Judged(new, root, scouting, taken, taken & searching & flat, done)


class Seen(NamedTuple):
    """What an engine finds at a point, beside the value and the derivative of the objective.

    ``told`` is empty but for an engine that has it at hand.
    """

    found: Found
    log_z: Array
    told: dict[str, Array]


def _whole(problem: Problem | Several, theta: Array, told: dict[str, Array]) -> dict[str, Array]:
    """What an engine told, with the jitter of the prior itself (which draws are made with)."""
    rest = {k: v for k, v in told.items() if k != "jitter"}
    # (K is made anew: to keep it for this would cost every look the time to write it down.)
    own = little_jitter(problem.prior(theta).K)
    return {**rest, "jitters": jnp.stack([told["jitter"], own])}


def _look(
    problem: Problem | Several,
    state: dict,
    objective: str,
    at: Search,
    engine: Engine,
    trial: Array,
) -> tuple[Array, Array, Seen]:
    """What is minimised at a point, with its derivative, and what else there is to see."""

    candidates = state["candidates"]
    cold = at.looks < candidates.shape[0]

    def loss(trial: Array) -> tuple[Array, Seen]:
        theta = placed(problem, trial)
        cost = problem.penalty(theta)
        if objective == "map":
            cost -= problem.latent.log_prior(theta, problem.arrays)
        if engine.told is None:
            found = _solved(problem, state, cold, engine, jax.lax.stop_gradient(theta))
            log_z, told = engine.value(problem, theta, found.sites), {}
        else:
            least = jax.lax.stop_gradient(cost) - needed(at, candidates)
            log_z, sites, told = engine.told(problem, theta, least)
            found = Found(sites, jnp.zeros((), theta.dtype), jnp.int32(0), jnp.int32(CONVERGED))
        return cost - log_z, Seen(found, log_z, told)

    (value, seen), slope = jax.value_and_grad(loss, has_aux=True)(trial)
    found = seen.found
    lost = found.reason == NOT_FINITE
    if isinstance(problem, Several):
        # Sites a standard deviation off value nothing (a joint mode that runs away, for one).
        lost |= (found.reason != CONVERGED) & (found.residual > _ASTRAY)
    return jnp.where(lost, jnp.inf, value), slope, seen


def _solved(
    problem: Problem | Several, state: dict, cold: Array, engine: Engine, theta: Array
) -> Found:
    """The engine's sites at ``theta``: from where they were, or from the start where ``cold``."""
    prior = problem.prior(theta)
    flat = problem.start(theta, prior)
    warm = Sites(state["l1"], state["l2"])
    known = problem.kind == "gaussian"
    start = flat if known else jax.tree.map(lambda a, b: jnp.where(cold, a, b), flat, warm)
    # (Without hyperparameters there is nothing to search for: the first look is the last.)
    precise = jnp.where(cold & (theta.size > 0), _ROUGH, _FINE)
    return jax.lax.stop_gradient(engine.solve(problem, theta, prior, start, precise))


def _check_memory(name: str, n: int, most: float | None) -> None:
    """Raise where some matrices of the size of the covariance do not fit in memory."""
    most = memory() if most is None else most
    need = 8.0 * _BYTES * n**2
    if need > most:
        raise ValueError(
            f"site {name!r}: a dense Gaussian process of {n} rows needs about {need / 1e9:.0f} GB, "
            f"and this machine has {most / 1e9:.0f} GB: use pk.SVGP(batch_size=512), whose memory "
            "does not grow with the square of the rows, or fit a subset of at most "
            f"{int((most / 8.0 / _BYTES) ** 0.5)} rows"
        )


def memory() -> float:
    """Bytes of main memory; infinite on a system that does not tell."""
    import os

    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return float("inf")
