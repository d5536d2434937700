"""From a figure to an entry of the verdict: the advice that goes with its name."""

from __future__ import annotations

from collections.abc import Callable

from probkit.core import Check, judged

Labels = Callable[[str, tuple[int, ...]], str]
"""Name of one component of a site from the site's name and the component's index."""

ADVICE = {
    "r_hat": (
        "the chains disagree: more warm-up and draws (warmup=, draws=); if it stays, look for "
        "several modes or for parameters that the data cannot tell apart, or try another "
        "parametrisation (reparam='noncentred' or 'centred' in fit)"
    ),
    "ess_bulk": (
        "the draws are too dependent for means and medians: more draws, metric='dense' for "
        "correlated parameters (metric='low_rank' where they are many), or another "
        "parametrisation (reparam='noncentred' or 'centred' in fit)"
    ),
    "ess_tail": (
        "the draws are too dependent for 5 % and 95 % quantiles: more draws, lighter-tailed "
        "priors on the scales, or another parametrisation (reparam= in fit)"
    ),
    "mcse": (
        "the Monte Carlo error of the mean is more than a tenth of the posterior sd: more draws"
    ),
    "divergences": (
        "the sampler left its path, so a region of the posterior is missing: a non-centred "
        "parametrisation (reparam='noncentred' in fit), a higher target_accept (0.95, 0.99), or a "
        "tighter prior on scales"
    ),
    "e_bfmi": (
        "the energy mixes slowly, as with heavy tails or a funnel: a non-centred parametrisation "
        "(reparam='noncentred' in fit), or lighter-tailed priors on the scales"
    ),
    "tree_depth": (
        "trajectories are cut short, which is slow and not wrong: bring parameters to a common "
        "scale, adapt a richer mass matrix (metric='low_rank' or 'dense'), or allow more "
        "(max_depth=)"
    ),
    "non_finite": (
        "a draw that is not a number has no summary: look for overflow (exp, powers) or division "
        "by zero in the site named, or run in float64"
    ),
    "stuck_chains": (
        "a chain has not moved, so its draws carry one value: longer warm-up (warmup=), a higher "
        "target_accept, another seed= (it starts elsewhere), or another parametrisation "
        "(reparam= in fit)"
    ),
    "loo_k": (
        "leave-one-out is unreliable for these observations, which the model finds surprising: "
        "look at them, use a likelihood with heavier tails, or refit without them"
    ),
}


def plain_label(site: str, index: tuple[int, ...]) -> str:
    """``theta[3]``, ``corr[0, 1]``, or the bare name of a scalar."""
    return f"{site}[{', '.join(map(str, index))}]" if index else site


def judge(
    name: str, value: float, threshold: float, direction: str, where: str = "", note: str = ""
) -> Check:
    """The entry for one figure, with the advice of its name if it failed."""
    return judged(name, value, threshold, direction, where, ADVICE[name], note)
