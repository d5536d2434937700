"""What the end of a search for hyperparameters amounts to: figures, checks, and the result."""

from __future__ import annotations

import warnings

import jax
import numpy as np

from probkit.core import Approximation, Status, Target
from probkit.core._check import Check
from probkit.core._programs import BRIEF, compiled
from probkit.inference.gaussian._fixed_point import CONVERGED
from probkit.inference.gaussian._learning import Engine
from probkit.inference.gaussian._posterior import approximation, summarise
from probkit.inference.gaussian._problem import WALL, placed
from probkit.inference.gaussian._several_problem import posed

#: Nats left to be gained that are let pass. A field without a potential need not have a root: then
#: the search ends where it is least, and a tenth of a nat there is less than half a posterior
#: standard deviation of a hyperparameter.
_LEFT, _LEFT_OF_ROOT = 0.01, 0.1
_EDGE = WALL - 1.0  # a hyperparameter this far out is on its way to the wall
_SAME = 0.1  # nats between the ends of searches that count as one
_MOST_JITTER = 1e-6  # of the mean diagonal: beyond, it is another model and is said


def finish(
    target: Target, state: dict, history: dict, draws: int, name: str, engine: Engine
) -> Approximation:
    """The best search's end as a distribution over the model's own space."""
    best = int(np.nanargmin(state["search_value"]))
    pick = jax.tree.map(lambda v: np.asarray(v[best]), state)
    lost = not np.isfinite(pick["search_value"])
    # Sites that are closed forms stay close to their terms; others may be anywhere.
    bounded = engine.tight is not None and pick["l2"].ndim == 3
    aside, dtype = pick["search_x"], pick["search_x"].dtype
    theta = placed(posed(target.program, target.arrays, engine.closed), aside)
    params = {"theta": theta, "l1": pick["l1"], "l2": pick["l2"], "arrays": target.arrays}
    figures = pick.get("told")
    if figures is None or any(np.any(np.isnan(v)) for v in figures.values()):
        figures = _summary(target, params, name, bounded)
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
        "starts_at_best": int(np.sum(ends > ends[best] - _SAME)),
    }
    left = _LEFT_OF_ROOT if engine.root else _LEFT
    checks = _checks(aside, stats, float(np.finfo(dtype).eps), allowed, left)
    if len(ends) > 1 and aside.size:
        checks = (*checks, _starts_check(ends))
    if bounded:
        stats["lower_bound"] = float(figures["bound"])
        checks = (*checks, _bound_check(stats, pick["l1"].shape[-1], engine.tight))
    converged = pick["reason"] == CONVERGED and stats["gain_left"] < left
    status = Status.OK if converged else Status.MAX_STEPS
    if not (np.isfinite(stats["log_evidence"]) and np.all(np.isfinite(figures["mean"]))):
        status = Status.NONFINITE
    return approximation(target, params, draws, stats, checks, status)


def _summary(target: Target, params: dict, name: str, bounded: bool) -> dict[str, np.ndarray]:
    """What `summarise` gives."""
    args = (params,)
    program = compiled(
        target.program,
        "gp_summary",
        (name, bounded),
        lambda p: summarise(target.program, p, bounded),
        args,
        options=BRIEF,
    )
    return {k: np.asarray(v) for k, v in program(*args).items()}


def _checks(
    aside: np.ndarray, stats: dict, eps: float, allowed: float, left: float
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
    far = float(np.max(np.abs(aside), initial=0.0))
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


def _starts_check(ends: np.ndarray) -> Check:
    """Whether the best end of a search was found twice; if not, it is noted and does not fail."""
    second, top = np.sort(np.where(np.isfinite(ends), ends, -np.inf))[-2:]
    gap = float(top - second) if np.isfinite(second) else float("inf")
    words = (
        f"only one of {len(ends)} searches for hyperparameters ended at the best optimum found, so "
        "that there may be a better one: allow more (starts=)"
    )
    found = gap < _SAME
    return Check("starts", True if found else None, gap, _SAME, "", "" if found else words)


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
        f"best hyperparameters found ({at or 'none'}, in the unconstrained space); {remedy}"
    )
