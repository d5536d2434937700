"""From the last state of a fit to an `Approximation`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Check, Status, Target, listing
from probkit.core._trees import in_precision
from probkit.inference.vi._engine import Recipe, inward, log_volume, outward
from probkit.inference.vi._family import Family, Params
from probkit.inference.vi._mode_check import mode_check
from probkit.inference.vi._smoothness import smoothness

_SPREAD, _LOST = 0.1, 0.01


def approximation(
    recipe: Recipe,
    name: str,
    target: Target,
    state: dict[str, Any],
    draws: int,
) -> Approximation:
    """The best start's fit, with the figures of the fit by name."""
    values = np.asarray(state["figures"]["value"], float)
    known = np.where(np.isfinite(values), values, -np.inf)
    chain = int(np.argmax(known))
    one = jax.tree.map(lambda x: np.asarray(x)[chain], state)
    params = {"frame": one["frame"], "family": one["best"]}
    done = bool(one["done"]) or name == "laplace"
    stats = {
        "family": name,
        "objective": recipe.objective,
        "elbo": float(np.where(np.isfinite(values[chain]), values[chain], np.nan)),
        "elbo_se": float(one["figures"]["se"]),
        "half_variance": float(one["figures"]["half_variance"]),
        "steps": int(one["count"]),
        "gradient_snr": _signal_to_noise(one),
        "starts": len(values),
        "starts_spread": float(np.max(known) - np.min(known))
        if np.isfinite(known).all()
        else np.nan,
        "nonfinite_steps": int(one["lost"]),
    }
    if name == "laplace":
        # No step was taken, so no comparison was made: the weights tell its ELBO.
        stats = {"family": name, "starts": len(values)}
    return Approximation(
        sample=sampler(recipe.family),
        log_density=density(recipe.family),
        params=params,
        draws=draws,
        key=("vi", recipe.family),
        stats=stats,
        status=Status.OK if done else Status.MAX_STEPS,
        checks=(*_agreement(values), *_trouble(target, one)),
        examine=(mode_check, smoothness),
    )


def _agreement(values: np.ndarray) -> list[Check]:
    """Whether independent starts ended at the same value of the objective."""
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return []
    spread = float(np.max(values) - np.min(values))
    advice = (
        "independent starts ended apart: the posterior may have several modes, or the steps are "
        "too few; more starts, family='mixture', or NUTS from several starting points"
    )
    good = spread < _SPREAD
    where = f"{len(values)} starts, nats between the best and the worst"
    return [Check("starts", good, spread, _SPREAD, where, "" if good else advice)]


def _trouble(target: Target, one: dict[str, Any]) -> list[Check]:
    """Steps whose gradient was not finite: how many, and which sites were to blame first."""
    lost, count = int(one["lost"]), float(one["count"])
    if not lost:
        return []
    share = lost / max(lost + count, 1.0)
    point = np.asarray(
        outward(jax.tree.map(jnp.asarray, one["frame"]), jnp.asarray(one["trouble"]))
    )
    blame = blamed_sites(target, point)
    advice = (
        "those steps were left out and the best fit so far was kept; bound the site's parameters "
        "away from where it overflows, or see target.check()"
    )
    return [Check("finite_steps", share < _LOST, share, _LOST, blame, advice)]


def blamed_sites(target: Target, point: np.ndarray) -> str:
    """The sites whose log density, or its gradient, is not finite at an unconstrained point."""
    place = target.program.flat.unravel_host(point)

    def terms(z: dict[str, Array]) -> dict[str, Array]:
        found = target.terms(z)
        return {k: jnp.sum(v) for k, v in {**found.prior, **found.likelihood}.items()}

    with in_precision(target.dtype):
        values = jax.jit(terms)(place)
        bad = [k for k, v in values.items() if not np.isfinite(v)]
        if bad:
            return f"log density of {listing(bad)}"
        slopes = jax.jit(jax.jacrev(terms))(place)
    finite = lambda tree: all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))  # noqa: E731
    bad = [k for k, v in slopes.items() if not finite(v)]
    return f"gradient of {listing(bad)}" if bad else "the objective"


def sampler(family: Family) -> Any:
    """``(params, key, n) -> (n, d)`` draws in the unconstrained space."""

    def sample(params: Params, key: Array, n: int) -> Array:
        frame = params["frame"]
        w = family.draw(params["family"], key, n, frame["centre"].shape[0])
        return jax.vmap(lambda x: outward(frame, x))(w)

    return sample


def density(family: Family) -> Any:
    """``(params, z) -> log q(z)``."""

    def log_density(params: Params, z: Array) -> Array:
        frame = params["frame"]
        return family.log_density(params["family"], inward(frame, z)) - log_volume(frame)

    return log_density


def _signal_to_noise(state: dict[str, Any]) -> float:
    """Squared norm of the gradient's running mean over its running second moment, at the end."""
    count = max(float(state["count"]), 1.0)
    first, second = 1.0 - 0.9**count, 1.0 - 0.999**count
    means = [np.asarray(x, float) / first for x in jax.tree.leaves(state["m"])]
    squares = [np.asarray(x, float) / second for x in jax.tree.leaves(state["v"])]
    top, bottom = sum(np.sum(x**2) for x in means), sum(np.sum(x) for x in squares)
    return float(top / bottom) if bottom > 0 else float("nan")
