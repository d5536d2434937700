"""The benchmarks' models, written three times: for probkit, for NumPyro, and by hand in JAX.

All three are the same density on the same unconstrained space; the hierarchical ones are
non-centred by hand where they are written by hand. ``hand`` and ``values`` take the dictionary
of unconstrained arrays and the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.scipy.stats import norm
from jaxtyping import Array
from numpyro import distributions as dist

import probkit as pk
from benchmarks import _data

Point = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One model.

    Attributes:
        data: arrays by name.
        model: for probkit; None where ``hand`` itself is the target.
        numpyro: a NumPyro model; None where ``hand`` is used as a potential.
        hand: log density of an unconstrained point, given the data.
        example: an unconstrained point of the hand-written densities.
        values: the reported values at an unconstrained point, given the data.
        names: how a site's unconstrained values are called here, by probkit's name.
        bind: options of ``model.bind``.
        x64: whether all of it runs in double precision.
    """

    data: dict[str, np.ndarray]
    model: Any
    numpyro: Callable[..., None] | None
    hand: Callable[[Point, Point], Array]
    example: dict[str, np.ndarray]
    values: Callable[[Point, Point], dict[str, Array]]
    names: dict[str, str] = field(default_factory=dict)
    bind: dict[str, Any] = field(default_factory=dict)
    x64: bool = False

    def target(self, **options: Any) -> pk.Target:
        """The probkit Target."""
        if self.model is None:
            return pk.Target.from_log_density(self.hand, self.example, self.data)
        return self.model.bind(self.data, **{**self.bind, **options})


def _half_cauchy(log_x: Array, scale: float) -> Array:
    """Log density of log x for x half-Cauchy."""
    return jnp.log(2 / (np.pi * scale)) - jnp.log1p((jnp.exp(log_x) / scale) ** 2) + log_x


def _half_normal(log_x: Array, scale: float) -> Array:
    return jnp.log(2.0) + norm.logpdf(jnp.exp(log_x), 0.0, scale) + log_x


# -- eight schools -------------------------------------------------------------------------


def schools() -> Case:
    """Eight schools, 10 dimensions."""

    def raw(y: Any, sigma: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", sigma.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    def hand(z: Point, data: Point) -> Array:
        theta = z["mu"] + jnp.exp(z["tau"]) * z["z"]
        prior = norm.logpdf(z["mu"], 0.0, 5.0) + _half_cauchy(z["tau"], 5.0)
        prior += jnp.sum(norm.logpdf(z["z"]))
        return prior + jnp.sum(norm.logpdf(data["y"], theta, data["sigma"]))

    def values(z: Point, data: Point) -> dict[str, Array]:
        tau = jnp.exp(z["tau"])
        return {"mu": z["mu"], "tau": tau, "theta": z["mu"] + tau * z["z"]}

    model = pk.Model(
        mu=dist.Normal(0, 5),
        tau=dist.HalfCauchy(5),
        theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
        y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
    )
    example = {"mu": np.zeros(()), "tau": np.zeros(()), "z": np.zeros(8)}
    return Case(_data.schools(), model, raw, hand, _single(example), values, {"theta": "z"})


# -- hierarchical logistic regression ------------------------------------------------------


def affairs() -> Case:
    """A hierarchical logistic regression, 6,366 rows, 36 groups, 44 dimensions."""

    def raw(x: Any, couple: Any, y: Any) -> None:
        mu: Any = numpyro.sample("mu", dist.Normal(0, 2))
        tau: Any = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("covariate", x.shape[1]):
            beta = numpyro.sample("beta", dist.Normal(0, 1))
        with numpyro.plate("couples", 36):
            z: Any = numpyro.sample("z", dist.Normal(0, 1))
        logits = (mu + tau * z)[couple] + x @ beta
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    def hand(z: Point, data: Point) -> Array:
        level = z["mu"] + jnp.exp(z["tau"]) * z["z"]
        logits = level[data["couple"]] + data["x"] @ z["beta"]
        prior = norm.logpdf(z["mu"], 0.0, 2.0) + _half_normal(z["tau"], 1.0)
        prior += jnp.sum(norm.logpdf(z["beta"])) + jnp.sum(norm.logpdf(z["z"]))
        return prior + jnp.sum(data["y"] * logits - jax.nn.softplus(logits))

    def values(z: Point, data: Point) -> dict[str, Array]:
        tau = jnp.exp(z["tau"])
        level = z["mu"] + tau * z["z"]
        return {"mu": z["mu"], "tau": tau, "beta": z["beta"], "level": level}

    model = pk.Model(
        mu=dist.Normal(0, 2),
        tau=dist.HalfNormal(1),
        beta=pk.rv(lambda: dist.Normal(0, 1), dims="covariate"),
        level=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="couple"),
        y=pk.rv(
            lambda level, beta, x, couple: dist.Bernoulli(logits=level[couple] + x @ beta),
            dims="row",
        ),
    )
    example = {"mu": np.zeros(()), "tau": np.zeros(()), "beta": np.zeros(6), "z": np.zeros(36)}
    bind = {"coords": {"couple": np.arange(36)}, "dims": {"x": ("row", "covariate")}}
    data = _data.affairs()
    return Case(data, model, raw, hand, _single(example), values, {"level": "z"}, bind)


# -- linear regression ---------------------------------------------------------------------


def visits() -> Case:
    """A linear regression, 20,190 rows, 11 dimensions."""

    def raw(x: Any, y: Any) -> None:
        alpha = numpyro.sample("alpha", dist.Normal(0, 2))
        noise = numpyro.sample("noise", dist.HalfNormal(1))
        with numpyro.plate("covariate", x.shape[1]):
            beta = numpyro.sample("beta", dist.Normal(0, 1))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(alpha + x @ beta, noise), obs=y)

    def hand(z: Point, data: Point) -> Array:
        mean = z["alpha"] + data["x"] @ z["beta"]
        prior = norm.logpdf(z["alpha"], 0.0, 2.0) + _half_normal(z["noise"], 1.0)
        prior += jnp.sum(norm.logpdf(z["beta"]))
        return prior + jnp.sum(norm.logpdf(data["y"], mean, jnp.exp(z["noise"])))

    def values(z: Point, data: Point) -> dict[str, Array]:
        return {"alpha": z["alpha"], "noise": jnp.exp(z["noise"]), "beta": z["beta"]}

    model = pk.Model(
        alpha=dist.Normal(0, 2),
        noise=dist.HalfNormal(1),
        beta=pk.rv(lambda: dist.Normal(0, 1), dims="covariate"),
        y=pk.rv(lambda alpha, noise, beta, x: dist.Normal(alpha + x @ beta, noise), dims="row"),
    )
    data = _data.visits()
    example = {"alpha": np.zeros(()), "noise": np.zeros(()), "beta": np.zeros(data["x"].shape[1])}
    bind = {"dims": {"x": ("row", "covariate")}}
    return Case(data, model, raw, hand, _single(example), values, {}, bind)


# -- a correlated Gaussian -----------------------------------------------------------------


def gauss100() -> Case:
    """A correlated Gaussian of 100 dimensions, as a plain log density everywhere."""

    def hand(z: Point, data: Point) -> Array:
        return -0.5 * z["x"] @ (data["precision"] @ z["x"])

    def values(z: Point, data: Point) -> dict[str, Array]:
        return {"x": z["x"]}

    example = _single({"x": np.zeros(100)})
    return Case(_data.precision(), None, None, hand, example, values)


# -- a Gaussian process' hyperparameters ---------------------------------------------------

_PRIORS = {"length": (0.0, 1.0), "amplitude": (0.0, 1.0), "noise": (-1.0, 1.0)}


def matern(time: Any, length: Any, amplitude: Any, noise: Any) -> Array:
    """Covariance matrix of a Matern-3/2 process and white noise."""
    r = jnp.sqrt(3.0) * jnp.abs(time[:, None] - time[None, :]) / length
    return amplitude**2 * (1 + r) * jnp.exp(-r) + noise**2 * jnp.eye(time.shape[0])


def process() -> Case:
    """Hyperparameters of a Matern-3/2 process on 200 points, 4 dimensions, in double precision."""

    def raw(time: Any, y: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(0, 1))
        free = {k: numpyro.sample(k, dist.LogNormal(*p)) for k, p in _PRIORS.items()}
        cov = matern(time, **free)
        numpyro.sample("y", dist.MultivariateNormal(mean * jnp.ones(time.shape), cov), obs=y)

    def hand(z: Point, data: Point) -> Array:
        tril = jnp.linalg.cholesky(matern(data["time"], **{k: jnp.exp(z[k]) for k in _PRIORS}))
        white = jax.scipy.linalg.solve_triangular(tril, data["y"] - z["mean"], lower=True)
        lp = norm.logpdf(z["mean"]) + sum(norm.logpdf(z[k], *p) for k, p in _PRIORS.items())
        return lp + jnp.sum(norm.logpdf(white)) - jnp.sum(jnp.log(jnp.diagonal(tril)))

    def values(z: Point, data: Point) -> dict[str, Array]:
        return {"mean": z["mean"], **{k: jnp.exp(z[k]) for k in _PRIORS}}

    def likelihood(mean: Any, length: Any, amplitude: Any, noise: Any, time: Any) -> Any:
        cov = matern(time, length, amplitude, noise)
        return dist.MultivariateNormal(mean * jnp.ones(time.shape), cov)

    model = pk.Model(
        mean=dist.Normal(0, 1),
        **{k: dist.LogNormal(*p) for k, p in _PRIORS.items()},
        y=pk.rv(likelihood, event_dims="year"),
    )
    example = {k: np.zeros(()) for k in ("mean", *_PRIORS)}
    return Case(_data.sunspots(), model, raw, hand, example, values, x64=True)


def _single(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v.astype(np.float32) for k, v in example.items()}


CASES: dict[str, Callable[[], Case]] = {
    "schools": schools,
    "affairs": affairs,
    "visits": visits,
    "gauss100": gauss100,
    "process": process,
}
