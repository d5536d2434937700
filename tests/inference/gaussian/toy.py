"""A small Gaussian vector made by hand: the engines are tested on it without a model."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, log_ndtr

from probkit.core._latent import GaussianLatent
from probkit.core._trees import Flat
from probkit.inference.gaussian._problem import Problem


class Toy(GaussianLatent):
    """theta = (log sd, log length scale, log noise or shape); squared-exponential kernel."""

    name, dim = "f", "row"

    def __init__(self, n: int, likelihood: str, kind: str | None):
        self.size, self.likelihood, self.kind = n, likelihood, kind
        self.theta = Flat({"log_sd": (), "log_length": (), "log_scale": ()})

    def log_prior(self, theta, arrays):
        return -0.5 * jnp.sum((theta / 3.0) ** 2)

    def mean(self, theta, arrays):
        return 0.1 * jnp.sin(arrays["x"][:, 0]) * theta[0]

    def covariance(self, theta, arrays):
        return self.cross_covariance(theta, arrays["x"], arrays["x"], arrays)

    def points(self, arrays):
        return jnp.asarray(arrays["x"])

    def cross_covariance(self, theta, a, b, arrays):
        d2 = jnp.sum((a[:, None] - b[None]) ** 2, -1)
        return jnp.exp(2 * theta[0] - 0.5 * d2 * jnp.exp(-2 * theta[1]))

    def variance(self, theta, a, arrays):
        return jnp.full(a.shape[0], jnp.exp(2 * theta[0]))

    def log_likelihood(self, theta, f, arrays):
        y, scale = jnp.asarray(arrays["y"]), jnp.exp(theta[2])
        if self.likelihood == "gaussian":
            return -0.5 * ((y - f) / scale) ** 2 - theta[2] - 0.5 * np.log(2 * np.pi)
        if self.likelihood == "probit":
            return log_ndtr((2 * y - 1) * f)
        if self.likelihood == "logit":
            return -jnp.logaddexp(0.0, -(2 * y - 1) * f)
        if self.likelihood == "poisson":
            return y * f - jnp.exp(f) - gammaln(y + 1)
        if self.likelihood == "negative_binomial":
            r = 1.0 / scale
            log_odds = f + theta[2]
            normal = gammaln(y + r) - gammaln(r) - gammaln(y + 1)
            return normal + y * log_odds - (y + r) * jnp.logaddexp(0.0, log_odds)
        return -2.5 * jnp.log1p(((y - f) / scale) ** 2 / 4.0) - theta[2]

    def log_likelihood_rows(self, theta, f, rows, arrays):
        return self.log_likelihood(theta, f, {**arrays, "y": arrays["y"][rows]})

    def family(self, arrays):
        return self.kind

    def gaussian_terms(self, theta, arrays):
        y, a = arrays["y"], jnp.exp(-2 * theta[2]) * jnp.ones_like(arrays["y"])
        return a, a * y, -0.5 * a * y**2 - theta[2] - 0.5 * np.log(2 * np.pi)

    def probit_terms(self, theta, arrays):
        return jnp.asarray(2 * arrays["y"] - 1), jnp.zeros_like(arrays["y"])

    def point(self, theta, f, arrays):
        return {**self.theta.unravel(theta), "f": f}

    def split(self, z, arrays):
        return self.theta.ravel(z), z["f"]


def toy(likelihood: str, n: int = 30, seed: int = 0, *, closed: bool = True, wide: bool = True):
    """A problem with data drawn from the model; ``closed=False`` hides the closed form."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, size=(n, 2))
    f = np.sin(2 * x[:, 0]) + x[:, 1]
    y: Any = {
        "gaussian": lambda: f + 0.3 * rng.normal(size=n),
        "student": lambda: f + 0.3 * rng.standard_t(4, size=n),
        "poisson": lambda: rng.poisson(np.exp(f)),
        "negative_binomial": lambda: rng.poisson(np.exp(f) * rng.gamma(2.0, 0.5, size=n)),
    }.get(likelihood, lambda: f + 0.5 * rng.normal(size=n) > 0)()
    kind = likelihood if closed and likelihood in ("gaussian", "probit") else None
    dtype = np.float64 if wide else np.float32
    return Problem(Toy(n, likelihood, kind), {"x": x.astype(dtype), "y": y.astype(dtype)}, kind)


THETA = np.array([0.3, 0.2, -0.7])
