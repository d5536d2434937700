"""What an approximation is judged by, and draws corrected by its importance weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from probkit.core import Check, Draws, Weights, check_count, importance_checks, weigh
from probkit.core._weights import DRAWS

if TYPE_CHECKING:
    from probkit.results._posterior import Posterior


def weights(posterior: Posterior) -> Weights | None:
    """See `Posterior.weights`."""
    found = posterior.approximation
    if found is None or found.log_density is None:
        return None
    if found.weights is not None:
        return found.weights
    count = None if found.draws <= DRAWS else found.draws
    return weigh(posterior.target, found, posterior._stream(1), count)


def demanded(posterior: Posterior, name: str) -> Weights:
    """The weights, or a ValueError that says why there are none."""
    found = posterior.weights
    if found is None:
        kind = type(posterior.method).__name__
        raise ValueError(
            f"{name}: expected an approximation with a density, as pk.VI() or pk.Laplace() fit; "
            f"{kind} has none. posterior.log_evidence works for draws too"
        )
    return found


def checks(posterior: Posterior) -> list[Check]:
    """Checks of the weights, those the method made itself, and those it asks for."""
    if "approximation_checks" in posterior._cache:
        return posterior._cache["approximation_checks"]
    fitted, found = posterior.approximation, posterior.weights
    assert fitted is not None
    if found is None:
        out = [*fitted.checks] or [_unweighed(posterior)]
    else:
        out = [*found.checks(_labels(posterior)), *fitted.checks]
        for number, judge in enumerate(fitted.examine):
            out += _asked(posterior, judge, number, found)
    posterior._cache["approximation_checks"] = out
    return out


def _unweighed(posterior: Posterior) -> Check:
    why = (
        f"{type(posterior.method).__name__} gives points without a density, so that nothing was "
        "compared with the posterior: compare them with pk.VI() or pk.NUTS()"
    )
    return Check("density", None, float("nan"), 0.0, "", why)


def _asked(posterior: Posterior, judge, number: int, found: Weights) -> list[Check]:
    try:
        key = posterior._stream(20 + number)
        return list(judge(posterior.target, posterior.approximation, key, found))
    except Exception as error:  # a judge that fails must not cost the verdict
        why = f"could not be computed: {type(error).__name__}: {error}"
        name = getattr(judge, "__name__", "check")
        return [Check(name, None, float("nan"), 0.0, "", why)]


def notes(posterior: Posterior) -> tuple[str, ...]:
    """ELBO and log evidence in words, for the verdict."""
    found = posterior.weights
    if found is None:
        return ()
    gap = found.log_evidence.value - found.elbo.value
    words = f"ELBO {found.elbo}, log evidence {found.log_evidence}"
    if found.best.trusted:
        words += f": KL divergence from the posterior {max(gap, 0.0):.3f} nat"
    return (words,)


def _labels(posterior: Posterior):
    """Names of the coordinates of the unconstrained space, with the model's own labels."""
    flat = posterior.target.program.flat

    def label(position: int) -> str:
        for name, start in flat.offsets.items():
            if start <= position < start + flat.sizes[name]:
                index = np.unravel_index(position - start, flat.shapes[name] or (1,))
                inside = tuple(int(i) for i in index) if flat.shapes[name] else ()
                return posterior.label(name, inside)
        return f"coordinate {position}"

    return label


def resampled(posterior: Posterior, draws: int | None, seed: int) -> Posterior:
    """See `Posterior.importance_resample`."""
    found = demanded(posterior, "importance_resample").best
    share = np.exp(found.smoothed)
    if not np.isfinite(share).all():
        raise ValueError(
            "importance_resample: no weight is finite (the log density is not, at the "
            "approximation's draws); see posterior.target.check()"
        )
    assert posterior.approximation is not None
    count = posterior.approximation.draws if draws is None else draws
    count = check_count("importance_resample(draws)", count)
    rng = np.random.default_rng([*posterior._stream(10).ravel().tolist(), seed])
    # One uniform for all: each draw is taken floor or ceil of its expected number of times.
    places = (np.arange(count) + rng.random()) / count
    rows = np.searchsorted(np.cumsum(share), places * share.sum()).clip(0, len(share) - 1)
    rows = rng.permutation(rows)
    stats = {"lp": found.log_p[rows][None]}
    output = Draws(found.points[rows][None], stats, status=posterior.status)
    out = type(posterior)(
        posterior.target,
        posterior.method,
        replace(posterior._run, output=output),
        posterior._stream(11),
    )
    kept = [c for c in checks(posterior) if c.name == "modes"]
    out._inherited = (*importance_checks(found.log_weights), *kept)
    return out
