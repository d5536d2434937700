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
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Status, Target, check_between, check_choice, check_count
from probkit.core._check import Check
from probkit.core._programs import BRIEF, compiled
from probkit.inference.gaussian._broyden import Root, begin_root, chosen, follow, handed_over
from probkit.inference.gaussian._conditioning import Prior, Sites
from probkit.inference.gaussian._fixed_point import CONVERGED, NOT_FINITE, Found
from probkit.inference.gaussian._posterior import approximation, summarise
from probkit.inference.gaussian._problem import WALL, Problem
from probkit.inference.gaussian._search import Search, advance, begin
from probkit.inference.gaussian._several_problem import Several, check_rows, is_several, posed
from probkit.inference.gaussian._starts import starts

OPTIONS = ("draws", "objective", "starts", "screen", "max_steps", "tolerance")
_BYTES = 12  # matrices of n x n doubles alive at once, about
_REFUSED, _ROOTLESS = 12, 4  # trials in a row: of a search, and of one that may have no end
#: Nats left to be gained that are let pass. A field without a potential need not have a root: then
#: the search ends where it is least, and a tenth of a nat there is less than half a posterior
#: standard deviation of a hyperparameter.
_LEFT, _LEFT_OF_ROOT = 0.01, 0.1
_EDGE = WALL - 1.0  # a hyperparameter this far out is on its way to the wall
_MOST_JITTER = 1e-6  # of the mean diagonal: beyond, it is another model and is said
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
    inner["scouting"] = np.asarray(scouting)
    if engine.root:
        root = begin_root(candidates.shape[1], candidates.dtype)
        inner |= {f"root_{k}": v for k, v in root._asdict().items()}
    return {**state, **sites, **inner, "candidates": candidates, "log_z": np.zeros((), dtype)}


def step(
    target: Target, state: dict, engine: Engine, objective: str
) -> tuple[dict, dict[str, Array]]:
    """One evaluation at the trial point, and the next trial."""
    problem = posed(target.program, target.arrays, engine.closed)
    at = Search(**{k: state[f"search_{k}"] for k in Search._fields})
    candidates, scouting = state["candidates"], state["scouting"]
    look = functools.partial(_look, problem, state, objective, at.looks < candidates.shape[0])
    if engine.scout is None:
        value, slope, found, log_z = look(engine, at.trial)
    else:
        value, slope, found, log_z = jax.lax.cond(
            scouting,
            functools.partial(look, engine.scout),
            functools.partial(look, engine),
            at.trial,
        )
    new, taken = advance(at, value, slope, candidates)
    out = {"scouting": scouting, "candidates": candidates}
    if engine.root:
        root = Root(**{k: state[f"root_{k}"] for k in Root._fields})
        other, root, also = follow(at, root, value, slope)
        # The field of the scout is a gradient: its points leave no pairs.
        fresh = begin_root(candidates.shape[1], candidates.dtype)
        root = chosen(scouting, fresh, root)
        out |= {f"root_{k}": v for k, v in root._asdict().items()}
        new, taken = chosen(scouting, new, other), jnp.where(scouting, taken, also)
    if engine.scout is not None:
        searching = new.looks >= candidates.shape[0]
        there = (new.gain < _HANDOVER) | (new.refused >= _REFUSED)
        over = scouting & searching & there & jnp.isfinite(new.value)
        new = chosen(over, handed_over(new), new)
        # A scout that finds nothing anywhere is no reason not to look.
        alone = scouting & searching & ~jnp.isfinite(new.value)
        new = chosen(alone, begin(candidates), new)
        out["scouting"] = scouting & ~over & ~alone
    pick = lambda a, b: jnp.where(taken, a, b)  # noqa: E731
    out |= {f"search_{k}": v for k, v in new._asdict().items()}
    out |= {
        "l1": pick(found.sites.l1, state["l1"]),
        "l2": pick(found.sites.l2, state["l2"]),
        "residual": pick(found.residual, state["residual"]),
        "reason": pick(found.reason, state["reason"]),
        "log_z": pick(log_z, state["log_z"]),
    }
    return out, {"objective": -new.value, "site_steps": found.steps, "gain": new.gain}


def _look(
    problem: Problem | Several,
    state: dict,
    objective: str,
    cold: Array,
    engine: Engine,
    theta: Array,
) -> tuple[Array, Array, Found, Array]:
    """What is minimised at ``theta`` with its derivative, the sites, and the log evidence."""

    def loss(theta: Array) -> tuple[Array, tuple[Found, Array]]:
        theta0 = jax.lax.stop_gradient(theta)
        prior = problem.prior(theta0)
        flat = problem.start(theta0, prior)
        warm = Sites(state["l1"], state["l2"])
        known = problem.kind == "gaussian"
        start = flat if known else jax.tree.map(lambda a, b: jnp.where(cold, a, b), flat, warm)
        # (Without hyperparameters there is nothing to search for: the first look is the last.)
        precise = jnp.where(cold & (theta.size > 0), _ROUGH, _FINE)
        found = jax.lax.stop_gradient(engine.solve(problem, theta0, prior, start, precise))
        log_z = engine.value(problem, theta, found.sites)
        total = log_z - problem.penalty(theta)
        if objective == "map":
            total += problem.latent.log_prior(theta, problem.arrays)
        return -total, (found, log_z)

    (value, (found, log_z)), slope = jax.value_and_grad(loss, has_aux=True)(theta)
    lost = found.reason == NOT_FINITE
    if isinstance(problem, Several):
        # Sites a standard deviation off value nothing (a joint mode that runs away, for one).
        lost |= (found.reason != CONVERGED) & (found.residual > _ASTRAY)
    return jnp.where(lost, jnp.inf, value), slope, found, log_z


def terminate(state: dict, tolerance: Array | float, root: bool) -> tuple[Array, Array]:
    """Done when the quadratic model promises less than ``tolerance``, or no step is left."""
    searching = state["search_looks"] >= state["candidates"].shape[0]
    lost = searching & ~jnp.isfinite(state["search_value"])
    flat = state["search_gain"] < tolerance
    stuck = state["search_refused"] >= (_ROOTLESS if root else _REFUSED)
    # (A lost search is none of the result's business where another one ended.)
    return (searching & ~state["scouting"] & (flat | stuck)) | lost, jnp.int32(int(Status.OK))


def finish(
    target: Target, state: dict, history: dict, draws: int, name: str, engine: Engine
) -> Approximation:
    """The best search's end as a distribution over the model's own space."""
    best = int(np.nanargmin(state["search_value"]))
    pick = {k: np.asarray(v[best]) for k, v in state.items()}
    lost = not np.isfinite(pick["search_value"])
    # Sites that are closed forms stay close to their terms; others may be anywhere.
    bounded = engine.tight is not None and pick["l2"].ndim == 3
    theta, dtype = pick["search_x"], pick["search_x"].dtype
    params = {"theta": theta, "l1": pick["l1"], "l2": pick["l2"], "arrays": target.arrays}
    args = (params,)
    program = compiled(
        target.program,
        "gp_summary",
        (name, bounded),
        lambda p: summarise(target.program, p, bounded),
        args,
        options=BRIEF,
    )
    figures = {k: np.asarray(v) for k, v in program(*args).items()}
    jitter = float(np.max(figures["jitters"]))
    allowed = max(_MOST_JITTER, 100.0 * pick["l1"].shape[-1] * float(np.finfo(dtype).eps))
    if not jitter <= allowed:
        _warn_of_jitter(target, name, jitter, allowed, theta)
    ends = -state["search_value"]
    stats = {
        "log_evidence": -float("inf") if lost else float(pick["log_z"]),
        "elpd_loo": float(np.sum(figures["loo"])),
        "loo_i": figures["loo"],
        "f_mean": figures["mean"],
        "f_sd": figures["sd"],
        "site_shift": pick["l1"],
        "site_precision": pick["l2"],
        "theta": theta,
        "steps": history["objective"].shape[1],
        "site_steps": int(np.sum(history["site_steps"])),
        "site_residual": float(pick["residual"]),
        "gain_left": float("inf" if pick["scouting"] else pick["search_gain"]),
        "jitter": jitter,
        "starts": len(ends),
        "starts_at_best": int(np.sum(ends > ends[best] - 0.1)),
    }
    left = _LEFT_OF_ROOT if engine.root else _LEFT
    checks = _checks(theta, stats, float(np.finfo(dtype).eps), allowed, left)
    if bounded:
        stats["lower_bound"] = float(figures["bound"])
        checks = (*checks, _bound_check(stats, pick["l1"].shape[-1], engine.tight))
    converged = pick["reason"] == CONVERGED and stats["gain_left"] < left
    status = Status.OK if converged else Status.MAX_STEPS
    if not (np.isfinite(stats["log_evidence"]) and np.all(np.isfinite(figures["mean"]))):
        status = Status.NONFINITE
    return approximation(target, params, draws, stats, checks, status)


def _checks(
    theta: np.ndarray, stats: dict, eps: float, allowed: float, left: float
) -> tuple[Check, ...]:
    """What the search itself can say about its result."""
    residual, gain = stats["site_residual"], stats["gain_left"]
    limit = max(1e-4, 1e3 * float(eps))
    ok = bool(residual < limit)
    words = (
        "the sites did not settle: take smaller steps (a damping= or step= nearer to 0), or "
        "pk.NUTS()"
    )
    sites = Check("sites", ok, residual, limit, "", "" if ok else words)
    ok = bool(gain < left)
    words = "the search for hyperparameters was cut off: allow more max_steps, or more starts"
    search = Check("hyperparameters", ok, gain, left, "", "" if ok else words)
    far = float(np.max(np.abs(theta), initial=0.0))
    ok = far < _EDGE
    words = (
        "a hyperparameter ran to the edge of its range: the data do not bound it (separable "
        "classes, a constant outcome, or duplicate rows); give it an informative prior"
    )
    edge = Check("range", ok, far, _EDGE, "", "" if ok else words)
    ok = stats["jitter"] <= allowed
    words = "the covariance matrix is hardly positive definite: see the warning of the fit"
    jitter = Check("jitter", ok, stats["jitter"], allowed, "", "" if ok else words)
    return sites, search, edge, jitter


def _bound_check(stats: dict, rows: int, tight: float | None) -> Check:
    """Whether the evidence and the lower bound of the same Gaussian say about the same."""
    gap = abs(stats["log_evidence"] - stats["lower_bound"])
    gap, most = (gap if np.isfinite(gap) else float("inf")), max(1.0, (tight or 0.0) * rows)
    ok = bool(gap <= most)
    words = (
        "the Gaussian at the mode is not the posterior: the log evidence is far from the lower "
        "bound that it gives (a joint mode of a mean and its scale may follow the data closely, "
        "where next to no mass is); take pk.CVI(), or give the scale's process a tighter prior"
    )
    return Check("bound", ok, gap, most, "", "" if ok else words)


def _warn_of_jitter(
    target: Target, name: str, jitter: float, allowed: float, theta: np.ndarray
) -> None:
    """Warn of a covariance matrix that another one was put in the place of, or refuse it."""
    latent = posed(target.program, target.arrays, False).latent
    at = ", ".join(f"{k}={v:.3g}" for k, v in zip(latent.theta.labels(), theta, strict=True))
    where = f"{name}: site {latent.name!r}: the covariance matrix"
    remedy = (
        "check that the kernel is positive definite (a function of a distance need not be one: "
        "take a kernel of pk.kernels, or sums and products of them), that inputs and kernel are "
        "finite, and that rows which repeat an input have noise of their own"
    )
    if np.isfinite(jitter):
        warnings.warn(
            f"{where} got a jitter of {jitter:.1e} of its mean diagonal, expected at most "
            f"{allowed:.1g}; {remedy}",
            UserWarning,
            stacklevel=2,
        )
        return
    raise ValueError(
        f"{where} is not positive definite, even with a thousandth of its diagonal added, at the "
        f"best hyperparameters found ({at}, in the unconstrained space); {remedy}"
    )


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
