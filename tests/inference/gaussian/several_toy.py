"""Several small Gaussian vectors made by hand, and dense twins of what engines compute on them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from probkit.core._latents import GaussianLatents
from probkit.core._trees import Flat
from probkit.inference.gaussian._several_problem import Several


class ToySeveral(GaussianLatents):
    """theta = (log sd, log length scale, log scale); process ``c`` has its own sd and length.

    Likelihoods: ``softmax`` (labels), ``heteroscedastic`` (y ~ N(f0, exp(f1 + log scale))),
    ``logit`` (a label of its own for each process; with one process the toy of one vector is the
    same model, and with equal priors C of these are) and ``mixed`` (C normal outcomes a row, each
    of all functions, with sds `MIXED_SDS` exp(log scale)).
    """

    dim = "row"

    def __init__(self, n: int, count: int, likelihood: str, flat: float = 1.0, order=None):
        self.names = tuple(f"f{c}" for c in range(count))
        self.size, self.likelihood, self.flat = n, likelihood, flat
        self.order = np.arange(count) if order is None else np.asarray(order)
        self.theta = Flat({"log_sd": (), "log_length": (), "log_scale": ()})

    def log_prior(self, theta, arrays):
        return -0.5 * jnp.sum((theta / 3.0) ** 2)

    def _sds(self, theta):
        sds = jnp.exp(theta[0]) * (1.0 + 0.2 * self.order)
        return sds * jnp.where(self.order > 0, self.flat, 1.0)

    def mean(self, theta, arrays):
        wave = 0.1 * jnp.sin(arrays["x"][:, 0]) * theta[0]
        return jnp.where(self.order > 0, self.flat, 1.0)[:, None] * wave / (1 + self.order[:, None])

    def covariance(self, theta, arrays):
        return self.cross_covariance(theta, arrays, arrays)

    def cross_covariance(self, theta, arrays, other):
        d2 = jnp.sum((arrays["x"][:, None] - other["x"][None]) ** 2, -1)
        lengths = jnp.exp(theta[1]) * (1.0 + 0.3 * self.order)
        return self._sds(theta)[:, None, None] ** 2 * jnp.exp(
            -0.5 * d2 / lengths[:, None, None] ** 2
        )

    def variance(self, theta, arrays, other):
        return self._sds(theta)[:, None] ** 2 * jnp.ones(other["x"].shape[0])

    def log_likelihood(self, theta, f, arrays):
        y = jnp.asarray(arrays["y"])
        if self.likelihood == "softmax":
            place = jnp.argsort(self.order)  # labels are those of the plain order
            return f[place[y], jnp.arange(f.shape[1])] - logsumexp(f, axis=0)
        if self.likelihood == "heteroscedastic":
            log_sd = f[1] + theta[2]
            return -0.5 * ((y - f[0]) * jnp.exp(-log_sd)) ** 2 - log_sd - 0.5 * np.log(2 * np.pi)
        if self.likelihood == "mixed":
            scale = MIXED_SDS[: len(f), None] * jnp.exp(theta[2])
            gap = (y - MIXED[: len(f), : len(f)] @ f) / scale
            return jnp.sum(-0.5 * gap**2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi), axis=0)
        return -jnp.sum(jnp.logaddexp(0.0, -(2 * jnp.atleast_2d(y) - 1) * f), axis=0)

    def softmax(self, arrays):
        return self.likelihood == "softmax"

    def point(self, theta, f, arrays):
        return {**self.theta.unravel(theta), **dict(zip(self.names, f, strict=True))}


THETA = np.array([0.3, 0.2, -0.7])
MIXED = np.array([[1, 0.6, 0.2, 0], [-0.3, 1, 0, 0.5], [0, 0.4, 1, 0.3], [0.2, 0, -0.5, 1]])
MIXED_SDS = np.array([0.3, 1.0, 0.5, 2.0])


def toy(
    likelihood: str,
    n: int = 15,
    *,
    closed: bool = False,
    flat: float = 1.0,
    order=None,
    count: int = 1,
):
    """A problem with data that the model could have made; ``count`` is of mixed and logit ones."""
    rng = np.random.default_rng(2)
    x = rng.uniform(-2, 2, size=(n, 2))
    f = np.sin(2 * x[:, 0]) + x[:, 1]
    if likelihood == "softmax":
        count, y = 3, np.digitize(f + 0.5 * rng.normal(size=n), [-0.7, 0.6])
    elif likelihood == "heteroscedastic":
        count, y = 2, f + 0.3 * np.exp(0.5 * x[:, 0]) * rng.normal(size=n)
    elif likelihood == "mixed":
        y = f * np.linspace(-1, 1, count)[:, None] + 0.5 * rng.normal(size=(count, n))
    elif count > 1:
        y = (f + 0.5 * rng.normal(size=(count, n)) > 0).astype(float)
    else:
        y = (f + 0.5 * rng.normal(size=n) > 0).astype(float)
    latent = ToySeveral(n, count, likelihood, flat, order)
    return Several(latent, {"x": x, "y": y}, "softmax" if closed else None)


# -- dense twins: one vector of C n entries, process after process ----------------------------


def dense_prior(problem: Several) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(C n,)`` and block-diagonal covariance ``(C n, C n)``."""
    prior = problem.prior(jnp.asarray(THETA))
    count, n = prior.m.shape
    K = np.zeros((count * n, count * n))
    for c in range(count):
        K[c * n : (c + 1) * n, c * n : (c + 1) * n] = prior.K[c]
    return np.asarray(prior.m).ravel(), K


def spread_out(blocks: np.ndarray) -> np.ndarray:
    """Blocks ``(C, C, n)`` as a matrix ``(C n, C n)``."""
    count, _, n = blocks.shape
    out = np.zeros((count, n, count, n))
    for i in range(n):
        out[:, i, :, i] = blocks[:, :, i]
    return out.reshape(count * n, count * n)


def softmax_derivatives(f: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient ``(C, n)`` and negative Hessian ``(C, C, n)`` of the softmax terms."""
    p = np.exp(f - f.max(0))
    p /= p.sum(0)
    hot = np.eye(len(f))[y].T
    blocks = np.einsum("an,ab->abn", p, np.eye(len(f))) - np.einsum("an,bn->abn", p, p)
    return float(np.sum(np.log(np.sum(p * hot, axis=0)))), hot - p, blocks


def normal_derivatives(
    f: np.ndarray, y: np.ndarray, log_scale: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Those of a normal with a mean and a log sd of its own, not clipped."""
    precision, gap = np.exp(-2 * (f[1] + log_scale)), y - f[0]
    value = np.sum(-0.5 * gap**2 * precision - f[1] - log_scale - 0.5 * np.log(2 * np.pi))
    slope = np.stack([gap * precision, gap**2 * precision - 1.0])
    cross = 2 * gap * precision
    return value, slope, np.array([[precision, cross], [cross, 2 * gap**2 * precision]])
