r"""Data-emphasised variational inference: hyperparameters of over-parameterised models by gradient.

Weights w (D of them), hyperparameters h (everything else: noise scales, length scales), N data:

    q(w) = N(m, s^2 I),      prior N(c, tau I)
    J(m, s, h, tau) = kappa E_q[log p(y | w, h)] + log p(h) - KL(q || prior)

The ordinary evidence lower bound has kappa = 1. With D >> N its KL term drowns the data, and a
family as small as q then does best by explaining nothing: the noise grows to the size of the data.
``kappa = D/N`` gives each of the D terms of the KL one term of the likelihood to weigh against, and
learning h by gradients of J picks up what a grid search on held-out data finds. The prior's
variance is in closed form,

    tau* = (|m - c|^2 + D s^2) / D,      KL(tau*) = D/2 log(tau*/s^2),

so that it is not a parameter at all. Expectations use antithetic pairs m +- s e; m, log s and h
climb by Adam, the step size falling to nothing along a cosine.

Source: Harvey, Petrov and Hughes (2025), "Learning hyperparameters via a data-emphasized
variational objective". Cost: ``particles`` gradients of the log likelihood a step; mini-batches
keep it independent of N.

Departures: J is maximised as it stands above, the papers' NLL/N + KL/(kappa N) being -J/(kappa N);
the model's own prior of the weights is only where they start; hyperparameters are points, and
their prior stays in J.

`VI` has this as ``objective="data_emphasised"``.

One scale for all weights suits features of equal size (random features, the last layer of a
trained network). A network of several layers with weights of different scales, trained from
nothing, pays for the difference in its KL, and the optimum may still be to explain nothing.
"""

from __future__ import annotations

import math
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Batches,
    Check,
    Inference,
    Status,
    Target,
    check_between,
    check_choice,
    check_count,
    check_options,
    listing,
    nearest,
)

_OPTIONS = (
    *("weights", "kappa", "draws", "steps", "step_size", "particles", "start", "batch_size"),
    *("dim", "starts"),
)
#: Optimiser steps where none are asked for.
STEPS = 5000
_BETAS, _FIRST_SD, _SETTLED = (0.9, 0.999), 0.1, 0.01
_STILL = 0.1
_LONGER = "the fit still climbs late in the run: more steps, max_steps=, or another step size"


def prior_variance(mean: Array, sd: Array, centre: Array | float = 0.0) -> Array:
    """The prior variance that maximises J: ``(|m - c|^2 + D s^2) / D``.

    Args:
        mean: of the weights, shape ``(D,)``.
        sd: common to all weights, a scalar.
        centre: of the prior.

    Example:
        >>> float(prior_variance(jnp.array([3.0, 4.0]), jnp.array(1.0)))
        13.5
    """
    return jnp.mean(jnp.square(mean - centre)) + jnp.square(sd)


def divergence(mean: Array, sd: Array, tau: Array | None = None, centre: float = 0.0) -> Array:
    """``KL(N(m, s^2 I) || N(c, tau I))``, at the best ``tau`` if none is given.

    Example:
        >>> m, s = jnp.array([3.0, 4.0]), jnp.array(1.0)
        >>> bool(jnp.isclose(divergence(m, s), divergence(m, s, prior_variance(m, s))))
        True
    """
    best = prior_variance(mean, sd, centre)
    tau = best if tau is None else tau
    size = mean.shape[0]
    return 0.5 * size * (best / tau - 1.0 + jnp.log(tau) - 2.0 * jnp.log(sd))


class DataEmphasis(Inference):
    """Weights with one isotropic Gaussian, hyperparameters as points, the data emphasised.

    Args:
        weights: the site of the weights: the name given to `pk.module` (all its arrays) or a
            random variable; its own prior is replaced by the learned ``N(0, tau I)``. None takes
            the model's one module.
        kappa: weight of the log likelihood; None is D/N, 1 the ordinary evidence lower bound.
        draws: draws that stand for the approximation in the posterior.
        steps: optimiser steps.
        step_size: Adam's first step size (unconstrained units).
        particles: draws of the weights a step, in antithetic pairs.
        start: where the weights begin: a draw from their "prior", or "zero".
        batch_size: rows of a mini-batch; None takes all rows.
        dim: the dim whose rows are drawn; None takes that of the observed variable.
        starts: independent fits, of which the best is kept; hyperparameters begin in the middle
            of what is likely in one start, and at a draw from their prior in several.

    Raises:
        TypeError, ValueError: a misspelt option, a number out of range, or (when fitting) a site
            that does not exist or is constrained.

    Example:
        >>> import probkit as pk
        >>> model = pk.Model(
        ...     w=pk.dist.Normal(0, 1).expand([20]),
        ...     noise=pk.dist.LogNormal(0, 1),
        ...     y=pk.rv(lambda w, noise: pk.dist.Normal(w[:5] + w[5:10], noise), dims="row"),
        ... )
        >>> method = DataEmphasis(weights="w", steps=200)
        >>> fit = pk.fit(model, {"y": [0.1, 0.5, -0.2, 0.3, 0.0]}, method=method, progress=False)
        >>> fit.approximation.stats["kappa"]
        4.0
    """

    kappa: float
    draws: int
    steps: int
    step_size: float
    weights: str | None = eqx.field(static=True)
    starts: int = eqx.field(static=True)
    start: str = eqx.field(static=True)
    particles: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    dim: str | None = eqx.field(static=True)

    def __init__(
        self,
        weights: str | None = None,
        kappa: float | None = None,
        draws: int = 1000,
        steps: int = STEPS,
        step_size: float = 0.01,
        particles: int = 2,
        start: str = "prior",
        batch_size: int | None = None,
        dim: str | None = None,
        starts: int = 1,
        **unknown: Any,
    ):
        check_options("DataEmphasis", unknown, _OPTIONS)
        check_choice("DataEmphasis(start)", start, ("prior", "zero"))
        self.weights = weights
        self.kappa = (
            0.0 if kappa is None else check_between("DataEmphasis(kappa)", kappa, 0.0, math.inf)
        )
        self.draws = check_count("DataEmphasis(draws)", draws)
        self.steps = check_count("DataEmphasis(steps)", steps, least=20)
        self.step_size = check_between("DataEmphasis(step_size)", step_size, 0.0, math.inf)
        self.particles = check_count("DataEmphasis(particles)", particles)
        self.start = start
        self.batch_size = (
            None if batch_size is None else check_count("DataEmphasis(batch_size)", batch_size)
        )
        self.dim = dim
        self.starts = check_count("DataEmphasis(starts)", starts)

    @property
    def chains(self) -> int:
        return self.starts

    @property
    def num_steps(self) -> int:
        return int(self.steps)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("latents", "likelihood")

    @property
    def batches(self) -> Batches | None:
        return None if self.batch_size is None else Batches(self.batch_size, self.dim)

    # -- the contract -------------------------------------------------------------------------

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        mask = _mask(target, self.weights)
        prior = target.program.flat.ravel(target.program.prior_point(key, target.arrays))
        prior = jnp.where(jnp.isfinite(prior), prior, 0.0).astype(target.dtype)
        # Hyperparameters begin in the middle of what is likely, which 0 is in unconstrained space.
        drawn = mask & (self.start == "prior") | ~mask & (self.starts > 1)
        place = jnp.where(jnp.asarray(drawn), prior, 0.0)
        params = {"place": place, "log_sd": jnp.asarray(math.log(_FIRST_SD), target.dtype)}
        blank = jax.tree.map(jnp.zeros_like, params)
        return {"params": params, "m": blank, "v": blank, "lost": jnp.asarray(False)}

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        fn = jax.value_and_grad(lambda p: self._objective(key, target, p, batch), has_aux=True)
        (value, parts), slope = fn(state["params"])
        finite = jnp.isfinite(value)
        for leaf in jax.tree.leaves(slope):
            finite = finite & jnp.all(jnp.isfinite(leaf))
        time = t.astype(target.dtype)
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * time / self.steps))
        rate = jnp.asarray(self.step_size, target.dtype) * fall
        new = adam(state, slope, rate, time)
        new["lost"] = ~finite
        # A step that is not finite is not taken: the last good state stays.
        new = {k: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new[k], state[k]) for k in new}
        place, free = new["params"]["place"], np.flatnonzero(~_mask(target, self.weights))
        parts["scales"] = jnp.append(place[free], new["params"]["log_sd"])
        return {**new, "lost": ~finite}, parts

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        code = jnp.where(state["lost"], int(Status.NONFINITE), int(Status.OK))
        return state["lost"], code.astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        mask = _mask(target, self.weights)
        tail = max(history["objective"].shape[1] // 20, 1)
        ends = history["objective"][:, -tail:].mean(axis=1)
        best = int(np.argmax(np.where(np.isfinite(ends), ends, -np.inf)))
        place, sd = (np.asarray(state["params"][k])[best] for k in ("place", "log_sd"))
        sd = np.exp(sd)
        kappa = float(self.kappa) or _kappa(target, mask)
        late = {k: np.asarray(history[k][best, -tail:], float) for k in ("objective", "elbo")}
        checks = (
            settled(history["objective"][best], tail, kappa * max(target.num_data, 1)),
            _still(history["scales"][best], tail, float(self.step_size)),
        )
        stats = {
            "family": "isotropic",
            "objective": "data_emphasised",
            "kappa": kappa,
            "weights": int(mask.sum()),
            "prior_sd": float(np.sqrt(np.mean(np.square(place[mask])) + sd**2)),
            "weight_sd": float(sd),
            "emphasised": float(late["objective"].mean()),
            "elbo": float(late["elbo"].mean()),
            "elbo_se": float(late["elbo"].std() / math.sqrt(tail)),
            "starts": len(ends),
        }
        return Approximation(
            sample=_sample,
            log_density=None,
            params={"mean": place, "sd": np.where(mask, sd, 0.0).astype(place.dtype)},
            draws=int(self.draws),
            key="isotropic",
            stats=stats,
            status=Status.OK if all(check.ok for check in checks) else Status.MAX_STEPS,
            checks=checks,
        )

    def _objective(
        self, key: Array, target: Target, params: dict[str, Array], batch: Batch | None
    ) -> tuple[Array, dict[str, Array]]:
        mask = _mask(target, self.weights)
        place, sd = params["place"], jnp.exp(params["log_sd"])
        flat = target.program.flat
        noise = jax.random.normal(key, (-(-self.particles // 2), place.shape[0]), place.dtype)
        noise = jnp.concatenate([noise, -noise]) * jnp.asarray(mask, place.dtype)
        fit = lambda e: target.log_likelihood(flat.unravel(place + sd * e), batch)  # noqa: E731
        likelihood = jnp.mean(jax.vmap(fit)(noise))
        weights = _named(target, self.weights)
        sites = [k for k in target.program.shapes if not _inside(k, weights)]
        terms = target.terms(flat.unravel(place), batch)
        hyper = sum((terms.prior[k] for k in sites if k in terms.prior), jnp.zeros((), place.dtype))
        # (Counted here: a traced target has no labels, and so no number of data.)
        rows = sum(v.size * terms.scale.get(k, 1.0) for k, v in terms.likelihood.items())
        spread = divergence(place[np.flatnonzero(mask)], sd)
        chosen = jnp.asarray(self.kappa, place.dtype)
        kappa = jnp.where(chosen > 0, chosen, float(mask.sum()) / rows)
        value = kappa * likelihood + hyper - spread
        parts = {"objective": value, "elbo": likelihood + hyper - spread}
        return -value, parts


def _inside(site: str, weights: str) -> bool:
    """Whether a site is the named one, or an array of the module of that name."""
    return site == weights or site.startswith((f"{weights}.", f"{weights}["))


def _named(target: Target, weights: str | None) -> str:
    """The weights' site: the one that was named, or else the model's one module."""
    if weights is not None:
        return weights
    parts = [k for k in target.program.shapes if "." in k or "[" in k]
    roots = list(dict.fromkeys(re.split(r"[.\[]", k, maxsplit=1)[0] for k in parts))
    if len(roots) != 1:
        found = f"the modules {listing(roots)}" if roots else "no module"
        raise ValueError(
            "VI(objective='data_emphasised'): expected one pk.module whose arrays are the weights, "
            f"found {found}; name the weights' site, weights=... Latent sites are "
            f"{listing(target.program.shapes)}."
        )
    return roots[0]


def _mask(target: Target, weights: str | None) -> np.ndarray:
    """Which coordinates are weights, shape ``(d,)``."""
    flat = target.program.flat
    mask = np.zeros(flat.size, bool)
    weights = _named(target, weights)
    for name, start in flat.offsets.items():
        if not _inside(name, weights):
            continue
        support = target.sites[name].support
        if target.sites[name].shape != flat.shapes[name] or "positive" in support:
            raise ValueError(
                f"VI(weights={weights!r}): expected sites on the real line, found {name!r} with "
                f"support {support}; the weights' Gaussian needs an unbounded prior"
            )
        mask[start : start + flat.sizes[name]] = True
    if not mask.any():
        raise ValueError(
            f"VI(weights={weights!r}): this model has no such site."
            f"{nearest(weights, flat.shapes)} Its latent sites are {listing(flat.shapes)}."
        )
    return mask


def _kappa(target: Target, mask: np.ndarray) -> float:
    return float(mask.sum()) / max(target.num_data, 1)


def adam(state: dict[str, Any], slope: dict[str, Any], rate: Array, time: Array) -> dict[str, Any]:
    """Adam's step (Kingma and Ba 2015, algorithm 1) downhill."""
    first, second = _BETAS
    m = jax.tree.map(lambda a, g: first * a + (1 - first) * g, state["m"], slope)
    v = jax.tree.map(lambda a, g: second * a + (1 - second) * jnp.square(g), state["v"], slope)
    one, two = 1 - first ** (time + 1), 1 - second ** (time + 1)
    move = lambda p, a, b: p - rate * (a / one) / (jnp.sqrt(b / two) + 1e-8)  # noqa: E731
    return {"params": jax.tree.map(move, state["params"], m, v), "m": m, "v": v}


def settled(objective: np.ndarray, tail: int, scale: float) -> Check:
    """Whether the run ended where it was after two thirds, while steps were still long.

    At the end the steps are so short that the objective stands still whatever is left to climb.
    """
    middle = 2 * len(objective) // 3
    late, early = (np.asarray(x, float) for x in (objective[-tail:], objective[middle:][:tail]))
    # What the draws' noise explains is no drift; differences of neighbours do not see the climb.
    noise = math.sqrt(4.5 * sum(np.square(np.diff(x)).mean() for x in (late, early)) / tail)
    drift = max(abs(float(late.mean() - early.mean())) - noise, 0.0) / scale
    good = drift < _SETTLED
    where = "nats an observation, between two thirds of the run and its end"
    return Check("settled", good, drift, _SETTLED, where, "" if good else _LONGER)


def _still(scales: np.ndarray, tail: int, step_size: float) -> Check:
    """The same of the hyperparameters and the weights' sd, which noisy objectives hide.

    Adam moves by at most its step size, so their way is told as a share of the longest way.
    """
    middle, count = 2 * len(scales) // 3, len(scales)
    moved = np.abs(np.mean(scales[-tail:] - scales[middle:][:tail], axis=0, dtype=float))
    time = np.arange(middle, count) / count
    share = float(moved.max()) / (step_size * float(np.sum(0.5 + 0.5 * np.cos(np.pi * time))))
    where = "way of a hyperparameter or sd since two thirds of the run, of the longest possible"
    good = share < _STILL
    return Check("hyperparameters_still", good, share, _STILL, where, "" if good else _LONGER)


def _sample(params: dict[str, Array], key: Array, n: int) -> Array:
    """Draws: the weights are Gaussian, the hyperparameters the same in all."""
    noise = jax.random.normal(key, (n, params["mean"].shape[0]), params["mean"].dtype)
    return params["mean"] + params["sd"] * noise
