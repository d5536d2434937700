r"""Gradients of expectations, each random choice with its own estimator.

An objective is a program that makes its random choices through ``site``::

    def objective(site, p):
        x = site("x", dist.Normal(p["m"], 1.0))                       # reparameterised
        k = site("k", dist.Bernoulli(logits=x), "enumerate")          # summed over
        return reward(x, k)

`expectation` returns a scalar whose value estimates E[objective] and whose gradient estimates the
gradient of E[objective] without bias. With the choices z of one run, the estimators add

    "reparam", "implicit"  nothing: z is a differentiable function of noise. Gamma, beta and
                           Dirichlet draws are made in log space (`_log_gamma`)
    "rejection"            f grad log(q/r)                                        (`_rejection`)
    "score"                (f - b) grad log q(z), b the mean of f over the other draws
    "enumerate"            sum_v q(v) f(v): every value of the site, in every combination
    "measure"              sum_v grad q(v) f(v): every value of this site alone, the rest drawn

(for a Bernoulli the last is the measure-valued derivative grad p (f(1) - f(0))). Choices may depend
on earlier ones in any way: each site's distribution is a function of the values before it, and its
log probability is differentiated through them.

Sources: Schulman et al. (2015), "Gradient estimation using stochastic computation graphs", NeurIPS,
eq. 5, for the score terms; Lew et al. (2023), "ADEV", POPL, for composing estimators site by site;
Kool et al. (2019) for the leave-one-out baseline. Cost: one run of the program a draw and a
combination of the enumerated values, and one more for each value of each "measure" site.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree
from numpyro import distributions as dist

from probkit.core import check_choice, check_count
from probkit.inference.vi._log_gamma import log_beta_draw, log_dirichlet_draw, log_gamma_draw
from probkit.inference.vi._rejection import rejection_log_gamma

ESTIMATORS = ("reparam", "implicit", "rejection", "score", "enumerate", "measure")
_LISTED = ("enumerate", "measure")
_GAMMAS = (dist.Gamma, dist.Beta, dist.Dirichlet)


@dataclass
class _Run:
    """One run of the program: its forced values, and what its sites add to the surrogate."""

    key: Array
    forced: dict[str, Array]
    weight: Array = field(default_factory=lambda: jnp.zeros(()))
    score: Array = field(default_factory=lambda: jnp.zeros(()))
    ratio: Array = field(default_factory=lambda: jnp.zeros(()))
    chances: dict[str, Array] = field(default_factory=dict)
    listed: dict[str, tuple[str, int]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def site(
        self, name: str, fn: Any, estimator: str | None = None, *, log: bool = False, boost: int = 4
    ) -> Array:
        """The value of one random choice; see `expectation`."""
        if name in self.names:
            raise ValueError(
                f"site {name!r}: declared twice; each random choice needs its own name"
            )
        self.names.append(name)
        chosen = _estimator(name, fn, estimator)
        if log and not isinstance(fn, _GAMMAS):
            raise ValueError(
                f"site {name!r}: log=True is for Gamma, Beta and Dirichlet, found "
                f"{type(fn).__name__}"
            )
        # A site's key depends on its place only: runs that differ in a forced value share noise.
        key = jax.random.fold_in(self.key, len(self.names))
        if chosen in _LISTED:
            return self._listed(name, fn, chosen, key)
        if chosen == "score":
            y = jax.lax.stop_gradient(_plain(key, fn))
            self.score = self.score + jnp.sum(_log_prob(fn, y))
        elif chosen == "rejection":
            y, ratio = _rejected(key, fn, boost)
            self.ratio = self.ratio + ratio
        else:
            y = _plain(key, fn)
        return y if log or not isinstance(fn, _GAMMAS) else jnp.exp(y)

    def _listed(self, name: str, fn: Any, estimator: str, key: Array) -> Array:
        values, logits = _outcomes(name, fn)
        self.listed[name] = (estimator, logits.shape[-1])
        if name in self.forced:
            place = self.forced[name]
        else:
            place = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        if estimator == "enumerate":
            self.weight = self.weight + logits[place]
        else:
            self.chances[name] = jnp.exp(logits)
        return values[place]


def expectation(
    key: Array,
    program: Callable[..., Array],
    params: PyTree,
    *,
    draws: int = 1,
    baseline: ArrayLike | None = None,
) -> Array:
    """An estimate of ``E[program(site, params)]`` whose gradient is unbiased (traceable).

    Args:
        key: a typed key.
        program: calls ``site(name, distribution, estimator=None, log=False, boost=4)`` for each of
            its random choices and returns a scalar. ``log=True`` returns the logarithm of a gamma,
            beta or Dirichlet value; ``boost`` is the shape augmentation of "rejection". Without an
            estimator, continuous sites are reparameterised and discrete ones enumerated.
        params: what to differentiate with respect to.
        draws: independent runs to average.
        baseline: subtracted from the objective in the score terms: None takes the mean of the
            other draws (0 for one draw); a number of yours, such as a running mean (`running`).

    Raises:
        ValueError: an estimator that does not exist or does not fit the distribution, or a name
            used twice.

    Example:
        >>> def objective(site, p):
        ...     return site("x", dist.Normal(p, 1.0)) ** 2
        >>> grad = jax.grad(lambda p: expectation(jax.random.key(0), objective, p, draws=4000))
        >>> bool(jnp.abs(grad(1.5) - 3.0) < 0.2)
        True
    """
    count = check_count("expectation(draws)", draws)
    plan = _plan(key, program, params)
    keys = jax.random.split(key, count)
    value, score, extra = jax.vmap(lambda k: _one(k, program, params, plan))(keys)
    stop = jax.lax.stop_gradient
    if baseline is not None:
        level = jnp.broadcast_to(jnp.asarray(baseline, value.dtype), (count,))
    elif count > 1:
        level = (jnp.sum(stop(value)) - stop(value)) / (count - 1)
    else:
        level = jnp.zeros(count, value.dtype)
    # `score` pairs (weight * value, weight) of each combination with its sum of log q.
    surplus = score["reward"] - level * score["plain"]
    return jnp.mean(value + (surplus - stop(surplus)) + (extra - stop(extra)))


def running(baseline: ArrayLike, value: ArrayLike, keep: float = 0.9) -> Array:
    """The next running mean: ``keep`` of the old one and the rest of the new value.

    Example:
        >>> float(running(1.0, 2.0, keep=0.75))
        1.25
    """
    return jax.lax.stop_gradient(keep * jnp.asarray(baseline) + (1 - keep) * jnp.asarray(value))


def signal(gradients: ArrayLike) -> dict[str, Array]:
    """Mean, total variance and signal-to-noise of gradient draws, shape ``(n, p)``.

    Returns:
        ``mean`` (p,), ``variance`` = tr Var(g), ``size`` = |E g|^2 (its bias removed, so it may be
        below 0), and ``snr`` = max(size, 0) / variance.

    Example:
        >>> found = signal(1.0 + jax.random.normal(jax.random.key(0), (1000, 2)))
        >>> bool(jnp.abs(found["snr"] - 1.0) < 0.2)
        True
    """
    g = jnp.asarray(gradients)
    mean, variance = jnp.mean(g, axis=0), jnp.sum(jnp.var(g, axis=0, ddof=1))
    size = jnp.sum(jnp.square(mean)) - variance / g.shape[0]
    return {
        "mean": mean,
        "variance": variance,
        "size": size,
        "snr": jnp.maximum(size, 0.0) / variance,
    }


def _plan(key: Array, program: Callable[..., Array], params: PyTree) -> dict[str, tuple[str, int]]:
    """Estimator and number of values of each listed site, from one abstract run."""
    found: dict[str, tuple[str, int]] = {}

    def look(p: PyTree) -> Array:
        run = _Run(key, {})
        out = jnp.asarray(program(run.site, p))
        found.update(run.listed)
        return out

    shape = jax.eval_shape(look, params).shape
    if shape != ():
        raise ValueError(f"expectation: expected the program to return a scalar, found {shape}")
    return found


def _one(
    key: Array, program: Callable[..., Array], params: PyTree, plan: dict[str, tuple[str, int]]
) -> tuple[Array, dict[str, Array], Array]:
    """One draw: its value, its score terms by factor, and terms with a gradient only."""
    summed = [(name, n) for name, (how, n) in plan.items() if how == "enumerate"]
    measured = [(name, n) for name, (how, n) in plan.items() if how == "measure"]
    stop = jax.lax.stop_gradient
    value = reward = plain = extra = jnp.zeros(())
    for combination in itertools.product(*(range(n) for _, n in summed)):
        held = {name: jnp.asarray(v) for (name, _), v in zip(summed, combination, strict=True)}
        run = _Run(key, held)
        f = program(run.site, params)
        weight = jnp.exp(run.weight)
        value = value + weight * f
        reward = reward + stop(weight * f) * run.score
        plain = plain + stop(weight) * run.score
        extra = extra + stop(weight * f) * run.ratio
        for name, n in measured:
            # (The weight is the outcome's own: what is enumerated may depend on this choice.)
            worth = [_worth(key, program, params, {**held, name: jnp.asarray(v)}) for v in range(n)]
            extra = extra + jnp.dot(run.chances[name], stop(jnp.stack(worth)))
    return value, {"reward": reward, "plain": plain}, extra


def _worth(
    key: Array, program: Callable[..., Array], params: PyTree, held: dict[str, Array]
) -> Array:
    """The objective with some choices held, times the probability of the enumerated ones."""
    run = _Run(key, held)
    f = program(run.site, params)
    return jnp.exp(run.weight) * f


# -- distributions --------------------------------------------------------------------------------


def _estimator(name: str, fn: Any, estimator: str | None) -> str:
    if estimator is not None:
        check_choice(f"site {name!r} (estimator)", estimator, ESTIMATORS)
    discrete = bool(fn.support.is_discrete)
    chosen = estimator or ("enumerate" if discrete else "reparam")
    kind = type(fn).__name__
    if chosen == "rejection" and not isinstance(fn, _GAMMAS):
        raise ValueError(
            f"site {name!r}: 'rejection' is for Gamma, Beta and Dirichlet, found {kind}; use "
            "'reparam' or 'score'"
        )
    if chosen in ("reparam", "implicit") and not fn.has_rsample:
        raise ValueError(
            f"site {name!r}: {kind} has no reparameterised draw; use 'score'"
            + (", 'enumerate' or 'measure'" if discrete else "")
        )
    return chosen


def _plain(key: Array, fn: Any) -> Array:
    """A draw, differentiable where there is a way; the logarithm for gamma, beta, Dirichlet."""
    if issubclass(type(fn), dist.Gamma):
        return log_gamma_draw(key, fn.concentration, fn.rate)
    if issubclass(type(fn), dist.Beta):
        return log_beta_draw(key, fn.concentration1, fn.concentration0)[0]
    if issubclass(type(fn), dist.Dirichlet):
        return log_dirichlet_draw(key, fn.concentration)
    return fn.sample(key)


def _rejected(key: Array, fn: Any, boost: int) -> tuple[Array, Array]:
    if issubclass(type(fn), dist.Gamma):
        y, ratio = rejection_log_gamma(key, fn.concentration, boost)
        return y - jnp.log(fn.rate), jnp.sum(ratio)
    if issubclass(type(fn), dist.Beta):
        both = jnp.stack([fn.concentration1, fn.concentration0])
        y, ratio = rejection_log_gamma(key, both, boost)
        return y[0] - jnp.logaddexp(y[0], y[1]), jnp.sum(ratio)
    y, ratio = rejection_log_gamma(key, fn.concentration, boost)
    return y - jax.scipy.special.logsumexp(y, axis=-1, keepdims=True), jnp.sum(ratio)


def _log_prob(fn: Any, y: Array) -> Array:
    """Log density of what `_plain` drew (of the logarithm's exponential, up to a constant)."""
    if issubclass(type(fn), dist.Gamma):
        a, b = fn.concentration, fn.rate
        return a * jnp.log(b) + a * y - b * jnp.exp(y) - jax.scipy.special.gammaln(a)
    if issubclass(type(fn), dist.Beta):
        # log(1 - z), with z not rounded to one
        rest = jnp.log(-jnp.expm1(jnp.minimum(y, -jnp.finfo(y.dtype).tiny)))
        a, b = fn.concentration1, fn.concentration0
        norm = jax.scipy.special.betaln(a, b)
        return a * y + (b - 1) * rest - norm
    if issubclass(type(fn), dist.Dirichlet):
        a = fn.concentration
        gammaln = jax.scipy.special.gammaln
        norm = jnp.sum(gammaln(a), axis=-1) - gammaln(jnp.sum(a, axis=-1))
        return jnp.sum(a * y, axis=-1) - norm
    return fn.log_prob(y)


def _outcomes(name: str, fn: Any) -> tuple[Array, Array]:
    """Values of a scalar discrete site and their log probabilities, each of shape ``(n,)``."""
    if fn.batch_shape or fn.event_shape or not fn.has_enumerate_support:
        raise ValueError(
            f"site {name!r}: 'enumerate' and 'measure' need one choice among finitely many values, "
            f"found {type(fn).__name__} of shape {fn.shape()}; use one site for each, or 'score'"
        )
    values = fn.enumerate_support()
    return values, jax.vmap(fn.log_prob)(values)
