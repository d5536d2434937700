r"""What the sparse engines leave: q(u) at its optimum on all rows, judged, and ready to predict.

Hyperparameters and q end at their optimum on all rows (`_sparse_search`; of very many rows q alone
does). Predictions, with ``w = L^-1 k_Z(x*)``:

    mean* = m* + w'mu = m* + k_Z(x*)'a,      var* = k** - w'(I - P^-1) w = k** - |H k_Z(x*)|^2

with ``a = L^-T mu`` (``mean_weights``) and ``H = C'L^-1``, ``C C' = I - P^-1``
(``variance_weights``): O(m) and O(m^2) a row.

What the points lose is ``s_i = k_ii - w_i'w_i``: its share of the prior variance, and
``b_i s_i / 2``, the nats that it takes from the bound at row i (exactly, for Gaussian terms;
Titsias 2009).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Status, Target
from probkit.core._check import Check, judged
from probkit.core._programs import compiled
from probkit.core._target import Program
from probkit.core._trees import in_precision
from probkit.inference.gaussian import _sparse as sparse
from probkit.inference.gaussian import _sparse_learning as learning
from probkit.inference.gaussian._posterior import problem_of
from probkit.inference.gaussian._problem import WALL, Problem, aside_of
from probkit.inference.gaussian._sparse import Natural
from probkit.inference.gaussian._sparse_learning import QUIET, Settings, searched
from probkit.inference.gaussian._sparse_rows import BLOCK, by_rows
from probkit.inference.gaussian._sparse_search import polish, search

_SETTLED, _MOST_JITTER, _LOST = 1e-3, 1e-6, 0.05
_LEFT, _LEFT_OF_ROOT = 0.01, 0.1  # nats left to be gained that are let pass, as in `_learning`


def summarise(problem: Problem, theta: Array, z: Array, sites: Natural, block: int = BLOCK) -> dict:
    """Moments and leave-one-out densities of each row ``(n,)``, and what predictions need."""
    at = sparse.basis(problem, theta, z)
    q = sparse.gaussian(sites)

    def some(few: Problem) -> dict[str, Array]:
        seen = sparse.project(few, theta, z, at)
        each = sparse.marginals(seen, q)
        terms = sparse.expected_terms(few, theta, seen, each)
        away = sparse.cavities(seen, each, terms)
        return {
            "mean": seen.mean + each.t,
            "sd": jnp.sqrt(each.s + each.c),
            "loo": few.tilted(theta, away.m, away.v).value,
            "phi": away.phi,
            "left": each.s,
            "whole": seen.whole,
            "lost": 0.5 * terms.l2 * each.s,
        }

    out = by_rows(problem, some, block)
    log_g = 0.5 * (jnp.dot(sites.l1, q.mu) - q.log_det)
    root = at.tril @ q.root.T
    shrunk = jnp.eye(z.shape[0], dtype=z.dtype) - q.root.T @ q.root
    energy = log_g + jnp.sum(out["loo"] + out["phi"])
    parts = {"u_mean": at.tril @ q.mu, "u_root": root, "mu": q.mu, "shrunk": shrunk}
    return {**out, **parts, "tril": at.tril, "jitter": at.jitter, "energy": energy}


def predict_rows(target: Target, fitted: Approximation, new: Target) -> dict[str, np.ndarray]:
    """``mean``, ``var`` of ``f`` and the outcomes' ``log_density`` at other rows, ``(n*,)`` each.

    Args:
        target: what was fitted.
        fitted: what a sparse method returned for it (``posterior.approximation``).
        new: the same model bound to other rows.
    """

    def fn(found: dict, arrays: dict, there: dict) -> dict[str, Array]:
        problem, theta = problem_of(target.program, arrays), found["theta"]

        def some(few: Problem) -> dict[str, Array]:
            x = few.latent.points(there)
            cross = problem.latent.cross_covariance(theta, found["inducing_points"], x, arrays)
            mean = few.latent.mean(theta, there) + cross.T @ found["mean_weights"]
            prior = few.latent.variance(theta, x, there)
            var = prior - jnp.sum((found["variance_weights"] @ cross) ** 2, axis=0)
            var = jnp.maximum(var, 8.0 * jnp.finfo(prior.dtype).eps * prior)
            return {"mean": mean, "var": var, "log_density": few.tilted(theta, mean, var).value}

        return by_rows(problem_of(new.program, there), some)

    names = ("theta", "inducing_points", "mean_weights", "variance_weights")
    args = ({k: fitted.stats[k] for k in names}, target.arrays, new.arrays)
    with in_precision(target.dtype):
        program = compiled(new.program, "sparse_rows", target.program, fn, args)
        return {k: np.asarray(v) for k, v in program(*args).items()}


def finish(target: Target, state: dict, history: dict, draws: int, how: Settings) -> Approximation:
    """The best search's end as a distribution over hyperparameters and inducing values."""
    ends = np.where(np.isfinite(state["past"]), state["past"], -np.inf)
    best = int(np.argmax(ends))
    pick = jax.tree.map(lambda v: np.asarray(v[best]), {k: state[k] for k in _KEPT})
    # A run that was cut off in its first window has judged nothing yet.
    end = pick["best"] if np.isfinite(pick["past"]) else {k: pick[k] for k in pick["best"]}
    pick |= {"z": pick["z"], **end}
    theta = pick["theta"]
    args = ({k: pick[k] for k in ("theta", "z", "l1", "l2")}, target.arrays)
    name = (how.name, how.objective)
    fn = _finisher(target.program, how)
    found = {
        k: np.asarray(v)
        for k, v in compiled(target.program, "sparse", name, fn, args)(*args).items()
    }
    theta = found["theta"]
    stats = _stats(found, pick, history, theta, ends, how)
    checks = _checks(aside_of(target.gaussian_latent, theta), stats, how)
    if np.isinf(stats["jitter"]):
        raise ValueError(_words_of_jitter(target, how, stats["jitter"]))
    status = Status.OK if checks[0].ok and checks[1].ok else Status.MAX_STEPS
    if not (np.isfinite(stats["elbo"]) and np.all(np.isfinite(found["mean"]))):
        status = Status.NONFINITE
    elif not stats["jitter"] <= _allowed(pick["z"]):
        warnings.warn(_words_of_jitter(target, how, stats["jitter"]), UserWarning, stacklevel=2)
    latent = target.program.gaussian_latent(target.arrays)
    own = latent.induced(target, pick["z"], float(found["jitter"]))
    made = _approximation(own, latent.theta, found, theta, draws, stats, checks, status)
    return replace(made, source=target, ahead=_ahead)


def _ahead(target: Target, fitted: Approximation, new: Target) -> np.ndarray:
    return predict_rows(target, fitted, new)["log_density"]


_KEPT = ("theta", "best", "z", "l1", "l2", "past", "gain", "quiet")


def _weights(found: dict) -> dict[str, np.ndarray]:
    """What means and variances at new rows are linear, and quadratic, in."""
    from scipy.linalg import solve_triangular

    values, vectors = np.linalg.eigh(np.nan_to_num(found["shrunk"]))
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    both = np.concatenate([found["mu"][:, None], root], axis=1)
    out = solve_triangular(found["tril"], both, trans=1, lower=True, check_finite=False)
    return {"mean_weights": out[:, 0], "variance_weights": out[:, 1:].T}


def _finisher(program: Program, how: Settings) -> Callable[[dict, dict], dict[str, Array]]:
    tied, choose_map = how.form.tied, how.objective == "map"
    field = how.form.value is sparse.energy_at

    def fn(pick: dict, arrays: dict) -> dict[str, Array]:
        problem = problem_of(program, arrays)
        theta, z = pick["theta"], pick["z"]
        sites = Natural(pick["l1"], pick["l2"])
        if tied:
            sites = sparse.whitened(sparse.basis(problem, theta, z), sites)
        beside = lambda t: learning.beside(problem, t, choose_map)  # noqa: E731
        extra: dict[str, Array] = {}
        if searched(problem, z.shape[0]):
            end = search(problem, theta, z, sites, beside, field)
            theta, sites = end.theta, end.sites
            extra = {"looks": end.looks, "gain": end.gain}
        done = polish(problem, theta, z, sites)
        out = summarise(problem, theta, z, done.sites)
        own = {"l1": done.sites.l1, "l2": done.sites.l2, "elbo": done.elbo, "theta": theta}
        return {**out, **own, **extra, "residual": done.residual, "polish_steps": done.steps}

    return fn


def _stats(
    found: dict, pick: dict, history: dict, theta: np.ndarray, ends: np.ndarray, how: Settings
) -> dict[str, Any]:
    """Figures of the fit by name."""
    mean_loss = float(np.mean(found["lost"]))
    return {
        "log_evidence": float(found["energy" if how.form.value is sparse.energy_at else "elbo"]),
        "elbo": float(found["elbo"]),
        "energy": float(found["energy"]),
        "elpd_loo": float(np.sum(found["loo"])),
        "loo_i": found["loo"],
        "f_mean": found["mean"],
        "f_sd": found["sd"],
        "theta": theta,
        "inducing_points": pick["z"],
        "inducing": len(pick["z"]),
        "u_mean": found["u_mean"],
        **_weights(found),
        "site_shift": found["l1"],
        "site_precision": found["l2"],
        "explained": 1.0 - float(np.sum(found["left"]) / np.sum(found["whole"])),
        "lost_per_row": mean_loss,
        "steps": history["objective"].shape[1],
        "polish_steps": int(found["polish_steps"]),
        "site_residual": float(found["residual"]),
        "gain_left": float(found.get("gain", pick["gain"])),
        "evaluations": int(found.get("looks", 0)),
        "quiet_windows": int(pick["quiet"]),
        "jitter": float(found["jitter"]),
        "starts": len(ends),
    }


def _allowed(z: np.ndarray) -> float:
    return max(_MOST_JITTER, 100.0 * len(z) * float(np.finfo(z.dtype).eps))


def _checks(aside: np.ndarray, stats: dict, how: Settings) -> tuple[Check, ...]:
    """What the fit can say about its result."""
    far = float(np.max(np.abs(aside), initial=0.0))
    words = (
        f"the inducing points leave {1.0 - stats['explained']:.1%} of the prior variance unseen "
        f"and cost {stats['lost_per_row']:.3g} nats a row of the bound: use more points "
        f"(inducing=, now {stats['inducing']}), or choose='greedy'"
    )
    return (
        judged(
            "sites",
            stats["site_residual"],
            _SETTLED,
            advice="q did not settle on all rows: use a smaller step, or pk.NUTS()",
        ),
        _search_check(stats, how),
        judged(
            "range",
            far,
            WALL - 1.0,
            advice=(
                "a hyperparameter ran to the edge of its range: the data do not bound it "
                "(separable classes, a constant outcome, or duplicate rows); give it an "
                "informative prior"
            ),
        ),
        judged("inducing", stats["lost_per_row"], _LOST, advice=words),
        judged(
            "jitter",
            stats["jitter"],
            _allowed(stats["inducing_points"]) * (1.0 + 1e-9),
            advice="the covariance of the inducing points is hardly positive definite: use fewer",
        ),
    )


def _search_check(stats: dict, how: Settings) -> Check:
    """Whether the hyperparameters are at their optimum, or (beyond its reach) stopped gaining."""
    words = (
        f"the search for hyperparameters was cut off (the last figure: {stats['gain_left']:.3g} "
        "nats): allow more max_steps, or a larger rate"
    )
    if not stats["evaluations"]:
        return judged("search", float(QUIET - stats["quiet_windows"]), 1.0, advice=words)
    limit = _LEFT_OF_ROOT if how.form.value is sparse.energy_at else _LEFT
    return judged("search", stats["gain_left"], limit, advice=words)


def _words_of_jitter(target: Target, how: Settings, jitter: float) -> str:
    latent = target.program.gaussian_latent(target.arrays)
    where = f"{how.name}: site {latent.name!r}: the covariance of the inducing points "
    if np.isinf(jitter):
        return where + (
            "is not positive definite, even with a thousandth of its diagonal added; check that "
            "the kernel is positive definite (a function of a distance need not be one: take a "
            "kernel of pk.kernels), and that inputs and kernel are finite"
        )
    return where + (
        f"got a jitter of {jitter:.1e} of its mean diagonal; use fewer inducing points, or, if "
        "that does not help, check that the kernel is positive definite (take one of pk.kernels)"
    )


def _approximation(
    own: Target,
    theta_sites: Any,
    found: dict,
    theta: np.ndarray,
    draws: int,
    stats: dict[str, Any],
    checks: tuple[Check, ...],
    status: Status,
) -> Approximation:
    program = own.program
    site = next(k for k in program.shapes if k not in theta_sites.shapes)

    def sample(params: dict, key: Array, n: int) -> Array:
        noise = jax.random.normal(key, (n, params["u_mean"].shape[0]), params["u_mean"].dtype)
        u = params["u_mean"] + noise @ params["u_root"].T
        fixed = theta_sites.unravel(params["theta"])
        return jax.vmap(lambda u: program.flat.ravel({**fixed, site: u}))(u)

    return Approximation(
        sample=sample,
        log_density=None,
        params={"theta": theta, "u_mean": found["u_mean"], "u_root": found["u_root"]},
        draws=draws,
        key="inducing_values",
        log_evidence=stats["log_evidence"],
        stats=stats,
        status=status,
        checks=checks,
        target=own,
    )
